//! Who commands, and what a controller on an old or empty record may not do.

use std::{fs, os::unix::fs::DirBuilderExt as _, path::Path};

use crate::support::*;
use throughline_wire::v1::{self, Role, Step, agent_message::Message as Up, controller_message::Message as Down};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

type Fabric = v1::fabric_client::FabricClient<tonic::transport::Channel>;

/// A record that was started once, and a copy of it.
async fn with_copy() -> (StateDir, StateDir) {
    let (state, aside) = (StateDir::new(), StateDir::new());
    let controller = Controller::start(&state).await;
    controller.agent("h9", 9).await;
    controller.stop().await;
    copy(&state.0, &aside.0);
    (state, aside)
}

/// What the last of so many controllers on a record commands by.
async fn commanded_by(state: &StateDir, starts: usize) -> v1::Mandate {
    let mut last = None;
    for _ in 0..starts {
        let controller = Controller::start(state).await;
        last = Some(controller.agent("h9", 9).await.mandate.clone());
        controller.stop().await;
    }
    last.unwrap()
}

fn obeyed(hello: v1::Hello, mandate: v1::Mandate) -> v1::Hello {
    v1::Hello { obeyed: Some(mandate), ..hello }
}

async fn guest(fabric: &mut Fabric, name: &str) -> v1::Guest {
    fabric.get_guest(named_guest(name)).await.unwrap().into_inner()
}

async fn host(fabric: &mut Fabric, name: &str) -> v1::Host {
    fabric.get_host(v1::GetHostRequest { name: name.into() }).await.unwrap().into_inner()
}

/// A guest as its host's journal has it.
fn owned(guest: &v1::Guest, generation: u64) -> v1::OwnedGuest {
    v1::OwnedGuest { spec: guest.spec.clone(), generation, vnis: vec![7], stopped: false }
}

fn copy(from: &Path, to: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test]
async fn each_start_is_a_new_term_of_the_same_fabric() {
    let state = StateDir::new();
    let mut before: Option<v1::Mandate> = None;
    for term in 1..4 {
        let controller = Controller::start(&state).await;
        let agent = controller.agent("h1", 1).await;
        let mandate = agent.mandate.clone();
        assert_eq!(mandate.term, term);
        if let Some(before) = before.replace(mandate.clone()) {
            assert_eq!(before.fabric_id, mandate.fabric_id);
            assert_ne!(before.life, mandate.life);
        }
        controller.stop().await;
    }
}

#[tokio::test]
async fn an_old_record_goes_above_the_terms_it_hears_of() {
    let (state, aside) = with_copy().await;
    let later = commanded_by(&aside, 6).await;
    assert_eq!(later.term, 7);
    let controller = Controller::start(&state).await;
    let mut h1 = controller.agent("h1", 1).await;
    let h2 = Agent::connect(controller.address, obeyed(hello("h2", 2), later)).await.unwrap();
    assert_eq!((h2.mandate.term, h2.mandate.life), (8, h1.mandate.life));
    let again = loop {
        match h1.next().await {
            Down::Welcome(welcome) => break welcome.mandate.unwrap(),
            Down::Desired(_) => {}
            order => panic!("{order:?}"),
        }
    };
    assert_eq!(again, h2.mandate, "who was greeted before hears of it");
    controller.stop().await;
    let controller = Controller::start(&state).await;
    assert_eq!(controller.agent("h1", 1).await.mandate.term, 9, "it was durable");
    controller.stop().await;
}

/// The controller commands nobody any more, says so, and still answers questions.
async fn assert_stood_down(controller: &Controller, fabric: &mut Fabric) {
    let (code, reason, _) = told(fabric.create_network(blue()).await);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "STALE_TERM"));
    let (code, reason, _) = told(Agent::connect(controller.address, hello("h3", 3)).await.map(|_| ()));
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "STALE_TERM"));
    for listed in fabric.list_hosts(v1::ListHostsRequest::default()).await.unwrap().into_inner().hosts {
        assert!(!listed.connected, "{listed:?}");
        assert_eq!(listed.refusal.expect("it says why").reason, "STALE_TERM");
    }
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", controller.address)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest { service: "throughline.v1.Fabric".into() };
    while health.check(request.clone()).await.unwrap().into_inner().status() != ServingStatus::NotServing {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn ends_with(agent: &mut Agent, reason: &str) {
    loop {
        match agent.try_next().await {
            Ok(Some(_)) => {}
            other => return assert_eq!(told(other).1, reason),
        }
    }
}

#[tokio::test]
async fn a_controller_whose_host_was_taken_stands_down() {
    let (state, aside) = with_copy().await;
    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    let (h1, mut h2) = (controller.agent("h1", 1).await, controller.agent("h2", 2).await);
    let taken = obeyed(hello("h1", 1), commanded_by(&aside, 1).await);
    drop(h1);
    let refused = told(Agent::connect(controller.address, taken.clone()).await.map(|_| ()));
    assert_eq!((refused.0, refused.1.as_str()), (Code::FailedPrecondition, "STALE_TERM"));
    ends_with(&mut h2, "STALE_TERM").await;
    assert_stood_down(&controller, &mut fabric).await;
    controller.stop().await;

    // Started anew, on purpose, it takes the host back in a term above.
    let controller = Controller::start(&state).await;
    let h1 = Agent::connect(controller.address, taken).await.unwrap();
    assert_eq!(h1.mandate.term, 3);
    controller.stop().await;
}

#[tokio::test]
async fn an_agent_that_refuses_is_alone_with_that() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    let (h1, mut h2) = (controller.agent("h1", 1).await, controller.agent("h2", 2).await);
    let failure = v1::Failure { reason: "STALE_TERM".into(), message: "term 1 is beaten by term 2".into() };
    h1.send(Up::Refused(failure.clone())).await;
    while host(&mut fabric, "h1").await.connected {}
    assert_eq!(host(&mut fabric, "h1").await.refusal, Some(failure));
    fabric.create_network(blue()).await.expect("it commands all others");
    h2.desired(|it| it.networks.len() == 1).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_host_of_another_fabric_is_left_alone_and_shown() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    let h1 = controller.agent("h1", 1).await;
    let elsewhere = v1::Mandate { fabric_id: "elsewhere".into(), term: 1, life: 1, proof: vec![] };
    let theirs = obeyed(hello("h2", 2), elsewhere);
    let refused = told(Agent::connect(controller.address, theirs.clone()).await.map(|_| ()));
    assert_eq!((refused.0, refused.1.as_str()), (Code::PermissionDenied, "OTHER_FABRIC"));
    let shown = host(&mut fabric, "h2").await;
    let why = shown.refusal.unwrap();
    assert_eq!((shown.connected, why.reason.as_str()), (false, "OTHER_FABRIC"));
    assert!(why.message.contains("fabric elsewhere"), "{}", why.message);
    assert!(why.message.contains(&format!("--join {}", h1.mandate.fabric_id)), "{}", why.message);
    let listed = fabric.list_hosts(v1::ListHostsRequest::default()).await.unwrap().into_inner().hosts;
    assert_eq!(listed.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["h1", "h2"]);
    assert!(listed[0].connected && listed[0].refusal.is_none());

    // Its operator gives it to this fabric.
    let joined = v1::Mandate { term: 0, life: 0, ..h1.mandate.clone() };
    Agent::connect(controller.address, obeyed(theirs, joined)).await.unwrap();
    assert_eq!(host(&mut fabric, "h2").await.refusal, None);
    controller.stop().await;
}

/// web-1 moved from h1 to h2 and web-2 made on h1, after a copy of the record was put aside.
async fn restored() -> (StateDir, v1::Guest, v1::Guest, v1::Mandate) {
    let (state, aside) = (StateDir::new(), StateDir::new());
    let controller = Controller::start(&state).await;
    let (_, agents) = controller.three_hosts().await;
    controller.stop().await;
    drop(agents);
    copy(&state.0, &aside.0);

    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    let (mut h1, mut h2) = (controller.agent("h1", 1).await, controller.agent("h2", 2).await);
    h1.runs("web-1", 1).await;
    while guest(&mut fabric, "web-1").await.state() != v1::GuestState::Running {}
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    begin(&id, &mut h1, &mut h2).await;
    h2.news(&id, Role::Destination, Step::Running).await;
    fabric.create_guest(web(2, "h1")).await.unwrap();
    while guest(&mut fabric, "web-1").await.host != "h2" {}
    let (web_1, web_2) = (guest(&mut fabric, "web-1").await, guest(&mut fabric, "web-2").await);
    let mandate = h2.mandate.clone();
    controller.stop().await;
    (aside, web_1, web_2, mandate)
}

#[tokio::test]
async fn a_restored_record_follows_the_hosts() {
    let (state, web_1, web_2, mandate) = restored().await;
    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    assert_eq!(guest(&mut fabric, "web-1").await.host, "h1", "this record knows nothing of the move");

    let with = |hello, guests| v1::Hello { guests, ..obeyed(hello, mandate.clone()) };
    let greeting = with(hello("h1", 1), vec![owned(&web_2, web_2.generation)]);
    let mut h1 = Agent::connect(controller.address, greeting).await.unwrap();
    assert!(h1.mandate.term > mandate.term);
    let before = h1.desired(|_| true).await;
    assert_eq!(before.guests.len(), 1);
    assert!(!before.guests[0].boot, "web-1 may run elsewhere: it is not started a second time");
    assert_eq!((before.end_guests, before.remove_networks), (vec![], vec![]), "nothing goes that is not known");

    let greeting = with(hello("h2", 2), vec![owned(&web_1, web_1.generation)]);
    let mut h2 = Agent::connect(controller.address, greeting).await.unwrap();
    let follows = guest(&mut fabric, "web-1").await;
    assert_eq!((follows.host.as_str(), follows.generation), ("h2", web_1.generation));
    let there = h2.desired(|it| !it.guests.is_empty()).await;
    assert_eq!(there.guests[0].generation, web_1.generation);
    h1.desired(|it| it.guests.is_empty()).await;

    let unknown = guest(&mut fabric, "web-2").await;
    assert!(unknown.unknown && unknown.detail.contains("UNKNOWN_GUEST"), "{unknown:?}");
    assert_eq!((unknown.host.as_str(), unknown.spec.clone()), ("h1", web_2.spec.clone()));
    h1.runs("web-2", web_2.generation).await;
    while guest(&mut fabric, "web-2").await.state() != v1::GuestState::Running {}
    let listed = fabric.list_guests(v1::ListGuestsRequest::default()).await.unwrap().into_inner().guests;
    assert_eq!(listed.iter().map(|it| it.unknown).collect::<Vec<_>>(), [false, true]);
    let bindings = &there.networks[0].bindings;
    let leads = |host: &str, generation| bindings.iter().any(|it| it.host == host && it.generation == generation);
    assert!(leads("h1", web_2.generation) && leads("h2", web_1.generation), "{bindings:?}");

    // What it uses is taken: its name, its addresses, its network, its ports' numbers and generations.
    let reason = |refused: (Code, String, String)| refused.1;
    assert_eq!(reason(told(fabric.create_guest(web(2, "h2")).await)), "NAME_IN_USE");
    let mut same_address = web(3, "h2");
    same_address.spec.as_mut().unwrap().ports[0].ips = web_2.spec.as_ref().unwrap().ports[0].ips.clone();
    assert_eq!(reason(told(fabric.create_guest(same_address).await)), "IP_IN_USE");
    let made = fabric.create_guest(web(4, "h2")).await.unwrap().into_inner();
    assert!(made.generation > web_2.generation, "{made:?}");
    assert!(made.spec.unwrap().ports[0].id > web_2.spec.as_ref().unwrap().ports[0].id);

    // Until an operator says so.
    fabric.delete_guest(delete("web-2")).await.unwrap();
    let ordered = h1.desired(|it| !it.end_guests.is_empty()).await;
    let end = end_guest("web-2", web_2.generation);
    assert_eq!(ordered.end_guests, [end]);
    controller.stop().await;
}

#[tokio::test]
async fn what_goes_is_named_until_it_is_gone() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, h3]) = controller.three_hosts().await;
    fabric.delete_guest(delete("web-1")).await.unwrap();
    fabric.delete_network(v1::DeleteNetworkRequest { name: "blue".into() }).await.unwrap();
    let ordered = h1.desired(|it| !it.end_guests.is_empty() && !it.remove_networks.is_empty()).await;
    assert_eq!(ordered.end_guests, [end_guest("web-1", 1)]);
    assert_eq!(h2.desired(|it| !it.remove_networks.is_empty()).await.remove_networks, [7]);
    controller.stop().await;
    drop((h1, h2, h3));

    // The order outlives the controller, and ends when the host says that all of it was done.
    let controller = Controller::start(&state).await;
    let mut h1 = controller.agent("h1", 1).await;
    let ordered = h1.desired(|_| true).await;
    assert!(ordered.end_guests.is_empty(), "it says that it has no guest");
    assert_eq!(ordered.remove_networks, [7]);
    let done = |revision, problems| {
        Up::Observed(v1::ObservedState { revision, guests: vec![], problems, ..Default::default() })
    };
    h1.send(done(ordered.revision, vec!["a guest is on it".into()])).await;
    h1.send(done(ordered.revision, vec![])).await;
    assert!(h1.desired(|_| true).await.remove_networks.is_empty());
    controller.stop().await;
}

#[tokio::test]
async fn what_has_a_name_or_an_address_again_begins_above_who_had_it() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, h2, h3]) = controller.three_hosts().await;
    let first = guest(&mut fabric, "web-1").await;
    fabric.delete_guest(delete("web-1")).await.unwrap();
    let mut again = web(1, "h1");
    let mac = first.spec.unwrap().ports[0].mac.clone();
    again.spec.as_mut().unwrap().ports[0].mac.clone_from(&mac);
    let second = fabric.create_guest(again).await.unwrap().into_inner();
    assert_eq!((first.generation, second.generation), (1, 2));
    let both = h1.desired(|it| !it.end_guests.is_empty() && !it.guests.is_empty()).await;
    assert_eq!(both.end_guests, [end_guest("web-1", 1)], "the old one ends");
    assert_eq!((both.guests[0].generation, both.guests[0].boot), (2, true), "and the new one is started");

    fabric.delete_guest(delete("web-1")).await.unwrap();
    let port = v1::Port { network: "blue".into(), mac, ips: vec!["10.7.0.1".into()], ..Default::default() };
    let gateway = v1::Endpoint { name: "gw0".into(), host: "h3".into(), port: Some(port), ..Default::default() };
    let request = v1::CreateEndpointRequest { endpoint: Some(gateway) };
    assert_eq!(fabric.create_endpoint(request).await.unwrap().into_inner().generation, 3);
    let bound = h1.desired(|it| it.networks[0].bindings.iter().any(|binding| binding.host == "h3")).await;
    assert_eq!(bound.networks[0].bindings[0].generation, 3);
    controller.stop().await;
    drop((h1, h2, h3));

    let controller = Controller::start(&state).await;
    let (mut fabric, _h2) = (controller.fabric().await, controller.agent("h2", 2).await);
    let third = fabric.create_guest(web(1, "h2")).await.unwrap().into_inner();
    assert_eq!(third.generation, 4, "also after a restart");
    controller.stop().await;
}

#[tokio::test]
async fn an_operators_word_ends_what_a_dead_destination_cannot() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, _h3]) = controller.three_hosts().await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    begin(&id, &mut h1, &mut h2).await;
    let resolve = |word: v1::Word| v1::ResolveMigrationRequest { id: id.clone(), word: word.into() };
    let reason = |refused: (Code, String, String)| refused.1;
    assert_eq!(reason(told(fabric.resolve_migration(resolve(v1::Word::Unspecified)).await)), "MISSING_FIELD");
    assert_eq!(reason(told(fabric.resolve_migration(resolve(v1::Word::GuestStays)).await)), "NOT_UNRESOLVED");
    h1.news(&id, Role::Source, Step::Paused).await;
    fabric.cancel_migration(v1::CancelMigrationRequest { id: id.clone() }).await.unwrap();
    let refused = told(fabric.resolve_migration(resolve(v1::Word::GuestStays)).await);
    assert_eq!(reason(refused), "DESTINATION_CONNECTED");
    drop(h2);
    while host(&mut fabric, "h2").await.connected {}
    fabric.resolve_migration(resolve(v1::Word::GuestStays)).await.unwrap();
    let Down::Abort(_) = h1.order().await else { panic!("it was cancelled first") };
    let Down::Resolve(word) = h1.order().await else { panic!("the source is told") };
    assert!(word.guest_stays);
    h1.news(&id, Role::Source, Step::Aborted).await;
    while guest(&mut fabric, "web-1").await.migration_id == id {}
    let stays = guest(&mut fabric, "web-1").await;
    assert_eq!((stays.host.as_str(), stays.generation), ("h1", 3), "above what the destination can have come to");
    h1.desired(|it| it.guests[0].generation == 3).await;

    // It comes back after all, with the guest: its copy ends, and it is not moved there.
    let hello = v1::Hello { guests: vec![owned(&stays, 2)], ..hello("h2", 2) };
    let mut h2 = Agent::connect(controller.address, hello).await.unwrap();
    let ordered = h2.desired(|_| true).await;
    assert_eq!(ordered.end_guests, [end_guest("web-1", 2)]);
    let mut committed = update(&id, Role::Destination, Step::Committed);
    committed.generation = 2;
    h2.update(committed).await;
    assert!(matches!(h2.order().await, Down::Settle(_)), "it ends its part first");
    assert_eq!(guest(&mut fabric, "web-1").await.host, "h1");
    controller.stop().await;
}
