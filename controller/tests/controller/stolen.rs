//! What somebody can do who has an agent's certificate and is not its agent: nothing to a host that it does not name.

use std::time::Duration;

use throughline_controller::Config;
use throughline_wire::v1::{
    self, Phase, Role, Step, agent_message::Message as Up, controller_message::Message as Down,
};
use tonic::Code;

use crate::support::*;

type Fabric = v1::fabric_client::FabricClient<tonic::transport::Channel>;

async fn controller(state: &StateDir) -> Controller {
    let config = Config { heartbeat: Duration::from_millis(200), ..Config::new(&state.0) };
    Controller::with_doors(config, &["agent/h2"]).await
}

/// What was stolen from h2, attached as h2 in its place.
async fn thief(controller: &Controller) -> Agent {
    Agent::connect(controller.door("agent/h2"), hello("h2", 2)).await.expect("the certificate names h2")
}

async fn refused(controller: &Controller, hello: v1::Hello) -> (Code, String, String) {
    told(Agent::connect(controller.door("agent/h2"), hello).await.map(|_| ()))
}

async fn guest(fabric: &mut Fabric, name: &str) -> v1::Guest {
    fabric.get_guest(named_guest(name)).await.unwrap().into_inner()
}

async fn migration(fabric: &mut Fabric, id: &str) -> v1::Migration {
    fabric.get_migration(v1::GetMigrationRequest { id: id.into() }).await.unwrap().into_inner()
}

/// Everything an agent said before this has been heard when it returns: its messages are heard in order.
async fn heard(fabric: &mut Fabric, agent: &Agent, host: &str) {
    let before = fabric.get_host(v1::GetHostRequest { name: host.into() }).await.unwrap().into_inner();
    assert!(before.connected, "{before:?}");
    agent.send(Up::Observed(v1::ObservedState::default())).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn it_cannot_be_another_host() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (mut fabric, [h1, _h2, _h3]) = controller.three_hosts().await;
    for name in ["h1", "h3", "h9"] {
        let refused = refused(&controller, hello(name, 9)).await;
        assert_eq!(refused, (Code::PermissionDenied, "NOT_YOUR_HOST".into(), "hello.host".into()), "{name}");
    }
    heard(&mut fabric, &h1, "h1").await;
    let h9 = told(fabric.get_host(v1::GetHostRequest { name: "h9".into() }).await);
    assert_eq!(h9.1, "UNKNOWN_HOST", "it was not taken in");
    controller.stop().await;
}

#[tokio::test]
async fn it_cannot_be_where_another_host_is() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (mut fabric, _agents) = controller.three_hosts().await;
    let there = v1::Hello { vtep: "192.0.2.1".into(), ..hello("h2", 2) };
    let answer = refused(&controller, there).await;
    assert_eq!(answer, (Code::AlreadyExists, "VTEP_IN_USE".into(), "hello.vtep".into()));
    let there = v1::Hello { peer_endpoint: "192.0.2.1:7701".into(), ..hello("h2", 2) };
    let answer = refused(&controller, there).await;
    assert_eq!(answer, (Code::AlreadyExists, "PEER_ENDPOINT_IN_USE".into(), "hello.peer_endpoint".into()));
    for vtep in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1"] {
        let nowhere = v1::Hello { vtep: vtep.into(), ..hello("h2", 2) };
        let answer = refused(&controller, nowhere).await;
        assert_eq!(answer, (Code::InvalidArgument, "INVALID_VALUE".into(), "hello.vtep".into()), "{vtep}");
    }
    let h2 = fabric.get_host(v1::GetHostRequest { name: "h2".into() }).await.unwrap().into_inner();
    assert_eq!((h2.vtep.as_str(), h2.peer_endpoint.as_str()), ("192.0.2.2", "192.0.2.2:7701"));
    controller.stop().await;
}

#[tokio::test]
async fn it_says_nothing_of_another_hosts_guests() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (mut fabric, [mut h1, h2, _h3]) = controller.three_hosts().await;
    drop(h2);
    let h2 = thief(&controller).await;
    let before = guest(&mut fabric, "web-1").await;
    for generation in [1, 2, u64::MAX] {
        let mut observed = v1::ObservedGuest { name: "web-1".into(), generation, ..Default::default() };
        observed.set_state(v1::GuestState::Failed);
        h2.send(Up::Observed(v1::ObservedState {
            revision: u64::MAX,
            guests: vec![observed],
            problems: vec![],
            ..Default::default()
        }))
        .await;
    }
    heard(&mut fabric, &h2, "h2").await;
    assert_eq!(guest(&mut fabric, "web-1").await, before);
    // Nor that something ordered of another host is done.
    fabric.delete_guest(delete("web-1")).await.unwrap();
    h1.desired(|it| !it.end_guests.is_empty()).await;
    h2.send(Up::Observed(v1::ObservedState { revision: u64::MAX, ..Default::default() })).await;
    heard(&mut fabric, &h2, "h2").await;
    fabric
        .create_network(v1::CreateNetworkRequest { network: Some(v1::Network { name: "red".into(), vni: 8, mtu: 0 }) })
        .await
        .unwrap();
    let still = h1.desired(|it| it.networks.len() == 2).await;
    assert_eq!(still.end_guests.len(), 1, "h1 is still to end it");
    controller.stop().await;
}

#[tokio::test]
async fn it_has_no_say_in_a_move_it_has_no_part_in() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (mut fabric, [mut h1, h2, h3]) = controller.three_hosts().await;
    drop((h2, h3));
    let thief = thief(&controller).await;
    // The move goes to h4.
    let mut h4 = controller.agent("h4", 4).await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h4")).await.unwrap().into_inner().id;
    let Down::Expect(_) = h4.order().await else { panic!("the destination is told first") };
    let steps = [Step::Expecting, Step::Committed, Step::Running, Step::GateOpen, Step::Settled, Step::Aborted];
    for role in [Role::Source, Role::Destination] {
        for step in steps {
            let mut news = update(&id, role, step);
            news.generation = 2;
            thief.update(news).await;
        }
    }
    heard(&mut fabric, &thief, "h2").await;
    let untouched = migration(&mut fabric, &id).await;
    assert_eq!((untouched.phase(), untouched.failure), (Phase::Preparing, None));
    h4.news(&id, Role::Destination, Step::Expecting).await;
    let Down::Start(_) = h1.order().await else { panic!("it goes on") };
    controller.stop().await;
}

#[tokio::test]
async fn a_source_cannot_commit_nor_a_destination_speak_for_the_source() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (mut fabric, [mut h1, mut h2, _h3]) = controller.three_hosts().await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    begin(&id, &mut h1, &mut h2).await;
    // The source in the destination's name, and in its own what is not its to say.
    for (role, step) in [
        (Role::Destination, Step::Committed),
        (Role::Destination, Step::Running),
        (Role::Source, Step::Committed),
        (Role::Source, Step::Running),
        (Role::Source, Step::GateOpen),
    ] {
        let mut news = update(&id, role, step);
        news.generation = 2;
        h1.update(news).await;
    }
    // The destination in the source's name, and at generations that are not the next.
    for (role, step) in [(Role::Source, Step::Precopy), (Role::Source, Step::Aborted), (Role::Source, Step::Settled)] {
        h2.news(&id, role, step).await;
    }
    for generation in [1, 3, u64::MAX] {
        let mut news = update(&id, Role::Destination, Step::Committed);
        news.generation = generation;
        h2.update(news).await;
    }
    heard(&mut fabric, &h1, "h1").await;
    heard(&mut fabric, &h2, "h2").await;
    assert_eq!(migration(&mut fabric, &id).await.phase(), Phase::Preparing);
    let owner = guest(&mut fabric, "web-1").await;
    assert_eq!((owner.host.as_str(), owner.generation), ("h1", 1));
    controller.stop().await;
}

#[tokio::test]
async fn an_acknowledgement_counts_only_from_whom_it_was_asked() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (mut fabric, [mut h1, mut h2, mut h3]) = controller.three_hosts().await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    begin(&id, &mut h1, &mut h2).await;
    h2.news(&id, Role::Destination, Step::Running).await;
    let Down::Rebind(asked) = h3.order().await else { panic!("the peer is told") };
    // Neither end was asked yet; and nobody was asked of a second port, or of another migration.
    for agent in [&h1, &h2] {
        agent.ack(&asked).await;
        agent.ack(&v1::Rebind { rebind_id: format!("{id}/1"), ..asked.clone() }).await;
        agent.ack(&v1::Rebind { rebind_id: "another/0".into(), ..asked.clone() }).await;
    }
    heard(&mut fabric, &h1, "h1").await;
    heard(&mut fabric, &h2, "h2").await;
    assert_eq!(migration(&mut fabric, &id).await.phase(), Phase::Committed, "h3 has not acknowledged");
    h3.ack(&asked).await;
    let Down::Rebind(_) = h1.order().await else { panic!("now the source's turn has come") };
    controller.stop().await;
}

#[tokio::test]
async fn it_cannot_end_the_controllers_command() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (mut fabric, [mut h1, h2, _h3]) = controller.three_hosts().await;
    let own = h2.mandate.clone();
    drop(h2);
    let forged = [
        v1::Mandate { term: u64::MAX, life: 7, ..own.clone() },
        v1::Mandate { term: own.term + 1, life: 7, proof: vec![], ..own.clone() },
        v1::Mandate { life: 7, ..own.clone() },
    ];
    for obeyed in forged {
        let claimed = v1::Hello { obeyed: Some(obeyed), ..hello("h2", 2) };
        let refused = refused(&controller, claimed).await;
        assert_eq!(refused, (Code::PermissionDenied, "TERM_UNPROVED".into(), "hello.obeyed".into()));
    }
    // Nor by a refusal, nor by another fabric's id.
    let thief = thief(&controller).await;
    assert_eq!(thief.mandate, own, "no term was raised");
    let beaten = v1::Failure { reason: "STALE_TERM".into(), message: "term 1 is beaten".into() };
    thief.send(Up::Refused(beaten)).await;
    let elsewhere = v1::Mandate { fabric_id: "elsewhere".into(), term: u64::MAX, life: 1, proof: vec![] };
    let theirs = v1::Hello { obeyed: Some(elsewhere), ..hello("h2", 2) };
    assert_eq!(refused(&controller, theirs).await.1, "OTHER_FABRIC");
    let red = v1::Network { name: "red".into(), vni: 8, mtu: 0 };
    fabric.create_network(v1::CreateNetworkRequest { network: Some(red) }).await.expect("it commands");
    h1.desired(|it| it.networks.len() == 2).await;
    controller.stop().await;
}

#[tokio::test]
async fn it_cannot_take_another_hosts_guest_by_claiming_it() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (mut fabric, [_h1, h2, mut h3]) = controller.three_hosts().await;
    drop(h2);
    let before = guest(&mut fabric, "web-1").await;
    let spec = before.spec.clone().unwrap();
    let ghost = |name: &str| {
        let mut spec = v1::GuestSpec { name: name.into(), ..spec.clone() };
        spec.ports[0].id = u32::MAX;
        spec
    };
    // By its name, and by its addresses under another name.
    for (spec, generation) in [(spec.clone(), 2), (spec.clone(), u64::MAX), (ghost("ghost"), u64::MAX)] {
        let guests = vec![v1::OwnedGuest { spec: Some(spec), generation, vnis: vec![7], stopped: false }];
        let claimed = v1::Hello { guests, ..hello("h2", 2) };
        drop(Agent::connect(controller.door("agent/h2"), claimed).await.expect("it is h2"));
        assert_eq!(guest(&mut fabric, "web-1").await, before);
    }
    // What it says of numbers in use counts, but not so far that none are left for others.
    let made =
        fabric.create_guest(v1::CreateGuestRequest { host: "h1".into(), ..web(2, "h1") }).await.unwrap().into_inner();
    assert_eq!((made.generation, made.spec.unwrap().ports[0].id), (3, 2));
    let told = h3.desired(|it| it.networks[0].bindings.len() >= 2).await;
    for binding in &told.networks[0].bindings {
        assert_eq!((binding.host.as_str(), binding.vtep.as_str()), ("h1", "192.0.2.1"), "{binding:?}");
    }
    controller.stop().await;
    let log = std::fs::read_to_string(state.0.join("audit.log")).unwrap();
    assert!(log.contains("CLAIM_NOT_BELIEVED"), "{log}");
}

#[tokio::test]
async fn a_restored_record_believes_what_hosts_say_when_it_is_told_to() {
    let state = StateDir::new();
    let first = self::controller(&state).await;
    let (mut fabric, agents) = first.three_hosts().await;
    let spec = guest(&mut fabric, "web-1").await.spec;
    first.stop().await;
    drop(agents);
    let owned = v1::OwnedGuest { spec, generation: 2, vnis: vec![7], stopped: false };
    for (restored, host) in [(false, "h1"), (true, "h2")] {
        let controller = Controller::with_doors(Config { restored, ..Config::new(&state.0) }, &["agent/h2"]).await;
        let mut fabric = controller.fabric().await;
        let claimed = v1::Hello { guests: vec![owned.clone()], ..hello("h2", 2) };
        let _h2 = Agent::connect(controller.door("agent/h2"), claimed).await.unwrap();
        assert_eq!(guest(&mut fabric, "web-1").await.host, host);
        controller.stop().await;
    }
}
