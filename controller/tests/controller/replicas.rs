//! Replicas: told to both their hosts, heard of from them, and promoted when the guest's host is gone.

use std::time::Duration;

use throughline_wire::v1::{
    self, DiskFormat, GuestState, agent_message::Message as Up, controller_message::Message as Down,
};
use tonic::Code;

use crate::support::*;

type Fabric = v1::fabric_client::FabricClient<tonic::transport::Channel>;

/// web-1, which has a disk, running on h1; h2 and h3 could keep replicas of it.
async fn three_hosts(controller: &Controller) -> (Fabric, [Agent; 3]) {
    let mut fabric = controller.fabric().await;
    fabric.create_network(blue()).await.unwrap();
    let agents = three_agents(controller).await;
    let mut guest = web(1, "h1");
    let image = "/srv/images/base".into();
    guest.spec.as_mut().unwrap().disks =
        vec![v1::Disk { name: "root".into(), size: 1 << 30, image, ..Default::default() }];
    fabric.create_guest(guest).await.unwrap();
    comes_to(&agents[0], &mut fabric, 1, GuestState::Running).await;
    (fabric, agents)
}

async fn three_agents(controller: &Controller) -> [Agent; 3] {
    [controller.agent("h1", 1).await, controller.agent("h2", 2).await, controller.agent("h3", 3).await]
}

/// The controller on the same record, started anew, and its agents.
async fn anew(controller: Controller, agents: [Agent; 3], state: &StateDir) -> (Controller, Fabric) {
    controller.stop().await;
    drop(agents);
    let controller = Controller::start(state).await;
    let fabric = controller.fabric().await;
    (controller, fabric)
}

fn at(host: &str) -> v1::CreateReplicaRequest {
    v1::CreateReplicaRequest { guest: "web-1".into(), host: host.into(), ..Default::default() }
}

fn get(host: &str) -> v1::GetReplicaRequest {
    v1::GetReplicaRequest { guest: "web-1".into(), host: host.into() }
}

fn delete_at(host: &str) -> v1::DeleteReplicaRequest {
    v1::DeleteReplicaRequest { guest: "web-1".into(), host: host.into() }
}

fn promote(host: &str) -> v1::PromoteReplicaRequest {
    v1::PromoteReplicaRequest { guest: "web-1".into(), host: host.into(), point: 0, even_if_connected: false }
}

async fn guest(fabric: &mut Fabric) -> v1::Guest {
    fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner()
}

async fn is_gone(fabric: &mut Fabric, name: &str) {
    while fabric.get_host(v1::GetHostRequest { name: name.into() }).await.unwrap().into_inner().connected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is(generation: u64, state: GuestState) -> v1::ObservedGuest {
    v1::ObservedGuest { name: "web-1".into(), generation, state: state.into(), detail: String::new() }
}

async fn comes_to(agent: &Agent, fabric: &mut Fabric, generation: u64, state: GuestState) {
    let guests = vec![is(generation, state)];
    agent.send(Up::Observed(v1::ObservedState { revision: 1, guests, ..Default::default() })).await;
    while guest(fabric).await.state() != state {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a host says that keeps nothing of any guest but these points.
fn keeps(id: &str, numbers: &[u64]) -> v1::ObservedReplica {
    let points = numbers.iter().map(|number| v1::Point { number: *number, at_ms: 1_000 * number, quiesced: false });
    v1::ObservedReplica { id: id.into(), points: points.collect(), ..Default::default() }
}

async fn says(agent: &Agent, revision: u64, replicas: Vec<v1::ObservedReplica>) {
    agent.send(Up::Observed(v1::ObservedState { revision, replicas, ..Default::default() })).await;
}

/// The replica, once it is as a test waits for.
async fn replica(fabric: &mut Fabric, host: &str, fits: impl Fn(&v1::Replica) -> bool) -> v1::Replica {
    loop {
        let replica = fabric.get_replica(get(host)).await.unwrap().into_inner();
        if fits(&replica) {
            return replica;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn numbers(replica: &v1::Replica) -> Vec<u64> {
    replica.points.iter().map(|point| point.number).collect()
}

/// The id of a replica at a host, by its desired state.
async fn id_at(keeper: &mut Agent) -> String {
    keeper.desired(|it| !it.replicas.is_empty()).await.replicas[0].id.clone()
}

#[tokio::test]
async fn both_hosts_are_told_until_what_is_kept_is_gone() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, h3]) = three_hosts(&controller).await;
    let made = fabric.create_replica(at("h2")).await.unwrap().into_inner();
    assert_eq!((made.every_ms, made.keep, made.late_ms), (60_000, 3, 90_000), "what was left open is filled in");
    assert_eq!((made.points, made.lag_ms), (vec![], None));
    let sent = h1.desired(|it| !it.replications.is_empty()).await.replications;
    let kept = h2.desired(|it| !it.replicas.is_empty()).await;
    assert!(kept.replications.is_empty() && kept.guests.is_empty());
    let (sent, kept) = (sent[0].clone(), kept.replicas[0].clone());
    assert_eq!((&sent.id, &sent.token, sent.token.len()), (&kept.id, &kept.token, 64));
    let expected = ("h2", "192.0.2.2", "192.0.2.2:7701", 1, 60_000);
    let told = (&*sent.host, &*sent.vtep, &*sent.peer_endpoint, sent.generation, sent.every_ms);
    assert_eq!((told, sent.guest.as_str()), (expected, "web-1"));
    assert_eq!((&*kept.source, &*kept.source_vtep, kept.generation, kept.keep), ("h1", "192.0.2.1", 1, 3));
    assert_eq!(kept.spec.as_ref().unwrap().disks[0].format(), DiskFormat::Raw);

    let (controller, mut fabric) = anew(controller, [h1, h2, h3], &state).await;
    let [mut h1, mut h2, h3] = three_agents(&controller).await;
    assert_eq!(h1.desired(|_| true).await.replications, [sent]);
    assert_eq!(h2.desired(|_| true).await.replicas, std::slice::from_ref(&kept));
    fabric.delete_replica(delete_at("h2")).await.unwrap();
    assert_eq!(told_of(fabric.get_replica(get("h2")).await), (Code::NotFound, "UNKNOWN_REPLICA", "host"));
    h1.desired(|it| it.replications.is_empty()).await;
    let ordered = h2.desired(|it| !it.remove_replicas.is_empty()).await;
    assert_eq!((ordered.remove_replicas, ordered.replicas), (vec![kept.id.clone()], vec![]));

    // Neither word from before the order, nor while something is left, nor another host's.
    let red = v1::CreateNetworkRequest { network: Some(v1::Network { name: "red".into(), vni: 8, mtu: 0 }) };
    says(&h2, ordered.revision - 1, vec![]).await;
    says(&h2, ordered.revision, vec![keeps(&kept.id, &[])]).await;
    says(&h1, u64::MAX, vec![]).await;
    fabric.create_network(red).await.unwrap();
    let still = h2.desired(|it| it.networks.len() == 2).await;
    assert_eq!(still.remove_replicas, [kept.id]);
    says(&h2, still.revision, vec![]).await;
    h2.desired(|it| it.remove_replicas.is_empty()).await;
    let by_lag = v1::CreateReplicaRequest { target_lag_ms: 30_000, ..at("h2") };
    let again = fabric.create_replica(by_lag).await.unwrap().into_inner();
    assert_eq!(again.points, vec![], "and it may be made again");
    assert_eq!((again.every_ms, again.target_lag_ms, again.late_ms), (0, 30_000, 30_000));
    let (controller, _fabric) = anew(controller, [h1, h2, h3], &state).await;
    let [mut h1, _h2, _h3] = three_agents(&controller).await;
    let told = h1.desired(|it| !it.replications.is_empty()).await.replications;
    assert_eq!((told[0].every_ms, told[0].target_lag_ms), (0, 30_000), "and by a controller that was restarted");
    controller.stop().await;
}

/// As [`told`], to be compared with words.
fn told_of<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> (Code, &'static str, &'static str) {
    let (code, reason, field) = told(answer);
    (code, reason.leak(), field.leak())
}

#[tokio::test]
async fn each_host_is_believed_on_its_own_part() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [h1, mut h2, h3]) = three_hosts(&controller).await;
    fabric.create_replica(v1::CreateReplicaRequest { every_ms: 1_000, ..at("h2") }).await.unwrap();
    let id = id_at(&mut h2).await;
    let failure = v1::Failure { reason: "NO_ROOM".into(), message: "no room\nleft".into() };
    let word = |numbers: &[u64], copied, failure: Option<&v1::Failure>| {
        let failure = failure.cloned();
        v1::ObservedReplica { copied, total: 2 * copied, failure, ..keeps(&id, numbers) }
    };
    says(&h3, 1, vec![word(&[7, 8], 70, Some(&failure))]).await;
    says(&h2, 1, vec![word(&[1, 2], 20, None)]).await;
    says(&h1, 1, vec![word(&[9], 10, None)]).await;
    let seen = replica(&mut fabric, "h2", |it| it.copied == 10 && !it.points.is_empty()).await;
    assert_eq!((numbers(&seen), seen.total, seen.failure.clone()), (vec![1, 2], 20, None));
    let lag = seen.lag_ms.unwrap();
    assert!(lag > 1_000_000 && seen.late_ms == 11_333, "2 s after 1970: {lag}");

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let fresh = v1::Point { number: 3, at_ms: now, quiesced: true };
    says(&h2, 1, vec![v1::ObservedReplica { points: vec![fresh], ..keeps(&id, &[]) }]).await;
    says(&h1, 1, vec![word(&[], 0, Some(&failure))]).await;
    let seen = replica(&mut fabric, "h2", |it| it.failure.is_some() && it.points.len() == 1).await;
    assert!(seen.lag_ms.unwrap() < seen.late_ms, "{seen:?}");
    assert_eq!((&seen.points, seen.copied), (&vec![fresh], 0));
    assert_eq!(seen.failure.unwrap().message, "no room\u{fffd}left", "on one line");

    // Stopped, with all of it over there: it lags no more.
    says(&h2, 1, vec![word(&[4], 0, None)]).await;
    replica(&mut fabric, "h2", |it| it.lag_ms.is_some_and(|lag| lag > 1_000_000)).await;
    fabric.stop_guest(v1::StopGuestRequest { name: "web-1".into(), stop: None }).await.unwrap();
    says(&h1, 1, vec![v1::ObservedReplica { at_rest: true, ..keeps(&id, &[]) }]).await;
    replica(&mut fabric, "h2", |it| it.lag_ms == Some(0)).await;
    fabric.start_guest(v1::StartGuestRequest { name: "web-1".into() }).await.unwrap();
    replica(&mut fabric, "h2", |it| it.lag_ms.is_some_and(|lag| lag > 1_000_000)).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_guest_fails_over_and_its_old_host_is_fenced() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [h1, mut h2, h3]) = three_hosts(&controller).await;
    fabric.create_replica(at("h2")).await.unwrap();
    let id = id_at(&mut h2).await;
    says(&h2, 1, vec![keeps(&id, &[3, 4])]).await;
    replica(&mut fabric, "h2", |it| it.points.len() == 2).await;
    let refused = told_of(fabric.promote_replica(promote("h2")).await);
    assert_eq!(refused, (Code::FailedPrecondition, "SOURCE_CONNECTED", "even_if_connected"));
    let (controller, mut fabric) = anew(controller, [h1, h2, h3], &state).await;

    // The site of h1 is gone. What h2 has, it says anew.
    let (mut h2, mut h3) = (controller.agent("h2", 2).await, controller.agent("h3", 3).await);
    assert_eq!(told_of(fabric.promote_replica(promote("h2")).await), (Code::FailedPrecondition, "NO_POINT", "point"));
    says(&h2, 1, vec![keeps(&id, &[3, 4])]).await;
    replica(&mut fabric, "h2", |it| it.points.len() == 2).await;
    let nowhere = v1::PromoteReplicaRequest { point: 2, ..promote("h2") };
    assert_eq!(told_of(fabric.promote_replica(nowhere).await), (Code::NotFound, "UNKNOWN_POINT", "point"));
    let promoted = fabric.promote_replica(promote("h2")).await.unwrap().into_inner();
    assert_eq!((&*promoted.host, promoted.generation, &*promoted.promoted_from), ("h2", 2, "h1"));
    assert_eq!((promoted.state(), promoted.detail.as_str()), (GuestState::Starting, ""));
    let wanted = h2.desired(|it| !it.guests.is_empty()).await;
    let peer = h3.desired(|it| it.networks[0].bindings.iter().any(|binding| binding.host == "h2")).await;
    let binding = &peer.networks[0].bindings[0];
    assert_eq!((binding.generation, &*binding.port.as_ref().unwrap().ips[0]), (2, "10.7.0.10"), "peers reach it there");
    assert_eq!(told_of(fabric.delete_replica(delete_at("h2")).await).1, "REPLICA_PROMOTED");
    controller.stop().await;
    drop((h2, h3));

    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    let mut h2 = controller.agent("h2", 2).await;
    let still = h2.desired(|_| true).await;
    assert_eq!((&still.guests, &still.replicas), (&wanted.guests, &wanted.replicas), "it is on record");
    let wanted = &wanted.guests[0];
    let promotion = v1::Promotion { replica_id: id.clone(), point: 4 };
    assert_eq!((wanted.generation, wanted.boot, &wanted.promotion), (2, true, &Some(promotion)));
    let disk = &wanted.spec.as_ref().unwrap().disks[0];
    assert_eq!((disk.format(), disk.image.as_str()), (DiskFormat::Qcow2, ""), "as a replica's are");
    assert_eq!(still.replicas[0].source, "", "nobody sends any more");

    // The old host comes back with its copy: that ends, with its disks kept, and its word is not believed.
    let owned = v1::OwnedGuest { spec: wanted.spec.clone(), generation: 1, vnis: vec![7], stopped: false };
    let greeting = v1::Hello { guests: vec![owned], ..hello("h1", 1) };
    let mut h1 = Agent::connect(controller.address, greeting).await.unwrap();
    let ordered = h1.desired(|_| true).await;
    assert_eq!((ordered.end_guests.clone(), ordered.guests), (vec![end_guest("web-1", 1)], vec![]));
    for generation in [1, 2, 3] {
        let guests = vec![is(generation, GuestState::Running)];
        let replicas = vec![keeps(&id, &[9])];
        h1.send(Up::Observed(v1::ObservedState { revision: 1, guests, replicas, problems: vec![] })).await;
    }
    says(&h2, 1, vec![keeps(&id, &[3, 4])]).await;
    let seen = replica(&mut fabric, "h2", |it| !it.points.is_empty()).await;
    assert_eq!(numbers(&seen), [3, 4]);
    let believed = guest(&mut fabric).await;
    assert_ne!((&*believed.host, believed.state()), ("h1", GuestState::Running));
    assert_eq!((&*believed.host, believed.generation), ("h2", 2));

    // The new host has it: the replica has served, and the guest's next one is to be where it was.
    comes_to(&h2, &mut fabric, 2, GuestState::Running).await;
    let served = h2.desired(|it| !it.remove_replicas.is_empty()).await;
    assert_eq!((served.remove_replicas, served.replicas), (vec![id.clone()], vec![]));
    assert_eq!((served.guests[0].boot, &served.guests[0].promotion), (false, &None));
    fabric.create_replica(at("h1")).await.unwrap();
    let kept = h1.desired(|it| !it.replicas.is_empty()).await;
    assert_eq!((kept.end_guests, &*kept.replicas[0].source), (vec![end_guest("web-1", 1)], "h2"));
    assert_ne!(kept.replicas[0].id, id);
    says(&h1, ordered.revision, vec![]).await;
    h1.desired(|it| it.end_guests.is_empty()).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_connected_host_ends_its_copy_first() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [h1, mut h2, h3]) = three_hosts(&controller).await;
    fabric.create_replica(at("h2")).await.unwrap();
    let id = id_at(&mut h2).await;
    says(&h2, 1, vec![keeps(&id, &[1])]).await;
    replica(&mut fabric, "h2", |it| !it.points.is_empty()).await;
    let anyway = v1::PromoteReplicaRequest { even_if_connected: true, ..promote("h2") };
    let promoted = fabric.promote_replica(anyway.clone()).await.unwrap().into_inner();
    assert!(promoted.detail.contains("ended on h1"), "{}", promoted.detail);
    let waiting = h2.desired(|it| it.replicas.first().is_some_and(|it| it.source.is_empty())).await;
    assert_eq!((waiting.guests, waiting.replicas[0].generation), (vec![], 2), "its points stay, and nobody sends");
    let (controller, mut fabric) = anew(controller, [h1, h2, h3], &state).await;

    // Also when the new host is back first: the old one was there, and may be again.
    let mut h2 = controller.agent("h2", 2).await;
    assert_eq!(h2.desired(|_| true).await.guests, []);
    let mut h1 = controller.agent("h1", 1).await;
    let ordered = h1.desired(|_| true).await;
    assert!(ordered.end_guests.is_empty(), "it says that it has no guest");
    assert_eq!(h2.desired(|it| !it.guests.is_empty()).await.guests[0].generation, 2);

    // Before the new host has it, another point may be chosen; nobody is left to wait for.
    says(&h2, 1, vec![keeps(&id, &[1, 2])]).await;
    replica(&mut fabric, "h2", |it| it.points.len() == 2).await;
    let again = fabric.promote_replica(v1::PromoteReplicaRequest { point: 1, ..promote("h2") }).await.unwrap();
    assert_eq!((again.get_ref().generation, &*again.get_ref().promoted_from), (3, "h1"));
    let wanted = h2.desired(|it| it.guests.first().is_some_and(|it| it.generation == 3)).await;
    assert_eq!(wanted.guests[0].promotion, Some(v1::Promotion { replica_id: id, point: 1 }));
    controller.stop().await;
}

#[tokio::test]
async fn who_waits_for_a_host_that_went_away_promotes_again() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [h1, mut h2, _h3]) = three_hosts(&controller).await;
    fabric.create_replica(at("h2")).await.unwrap();
    let id = id_at(&mut h2).await;
    says(&h2, 1, vec![keeps(&id, &[1])]).await;
    replica(&mut fabric, "h2", |it| !it.points.is_empty()).await;
    let anyway = v1::PromoteReplicaRequest { even_if_connected: true, ..promote("h2") };
    fabric.promote_replica(anyway).await.unwrap();
    assert_eq!(told_of(fabric.promote_replica(promote("h2")).await).1, "SOURCE_CONNECTED");
    drop(h1);
    is_gone(&mut fabric, "h1").await;
    fabric.promote_replica(promote("h2")).await.unwrap();
    let wanted = h2.desired(|it| !it.guests.is_empty()).await;
    assert_eq!(wanted.guests[0].generation, 3);
    let greeting = v1::Hello {
        guests: vec![v1::OwnedGuest {
            spec: wanted.guests[0].spec.clone(),
            generation: 1,
            vnis: vec![7],
            stopped: false,
        }],
        ..hello("h1", 1)
    };
    let mut h1 = Agent::connect(controller.address, greeting).await.unwrap();
    assert_eq!(h1.desired(|_| true).await.end_guests, [end_guest("web-1", 1)]);
    controller.stop().await;
}

#[tokio::test]
async fn a_replica_follows_the_guest() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, mut h3]) = three_hosts(&controller).await;
    fabric.create_replica(at("h3")).await.unwrap();
    let of_h3 = id_at(&mut h3).await;

    // A move: the guest is h2's then, and so is the sending.
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    assert_eq!(
        told_of(fabric.promote_replica(promote("h3")).await),
        (Code::FailedPrecondition, "ALREADY_MIGRATING", "guest")
    );
    assert_eq!(told_of(fabric.create_replica(at("h2")).await).1, "ALREADY_MIGRATING");
    begin(&id, &mut h1, &mut h2).await;
    h2.update(v1::MigrationUpdate { generation: 2, ..update(&id, v1::Role::Destination, v1::Step::Committed) }).await;
    for peer in [&mut h3, &mut h1] {
        let Down::Rebind(rebind) = peer.order().await else { panic!("peers are told") };
        peer.ack(&rebind).await;
    }
    for (end, role) in [(&mut h1, v1::Role::Source), (&mut h2, v1::Role::Destination)] {
        let Down::Settle(_) = end.order().await else { panic!("both settle") };
        end.news(&id, role, v1::Step::Settled).await;
    }
    while !guest(&mut fabric).await.migration_id.is_empty() {}
    let sent = h2.desired(|it| !it.replications.is_empty()).await;
    assert_eq!((&sent.replications[0].id, sent.replications[0].generation), (&of_h3, 2));
    h1.desired(|it| it.replications.is_empty()).await;
    h3.desired(|it| it.replicas.first().is_some_and(|it| it.source == "h2" && it.generation == 2)).await;

    // It has one, wherever it is.
    assert_eq!(told_of(fabric.create_replica(at("h1")).await), (Code::ResourceExhausted, "TOO_MANY_REPLICAS", "host"));
    let listed = fabric.list_replicas(v1::ListReplicasRequest::default()).await.unwrap().into_inner().replicas;
    assert_eq!(listed.iter().map(|it| it.host.as_str()).collect::<Vec<_>>(), ["h3"]);
    controller.stop().await;
}

#[tokio::test]
async fn a_replica_is_in_the_way_and_says_so() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [h1, h2, _h3]) = three_hosts(&controller).await;
    fabric.create_replica(at("h2")).await.unwrap();
    assert_eq!(told_of(fabric.create_replica(at("h2")).await), (Code::AlreadyExists, "REPLICA_EXISTS", "host"));
    let delete = v1::DeleteGuestRequest { name: "web-1".into(), disks: v1::DiskFate::Delete.into() };
    assert_eq!(
        told_of(fabric.delete_guest(delete.clone()).await),
        (Code::FailedPrecondition, "REPLICA_EXISTS", "name")
    );
    let refused = told_of(fabric.migrate_guest(move_web_1("r-1", "h2")).await);
    assert_eq!(refused, (Code::FailedPrecondition, "REPLICA_AT_DESTINATION", "destination_host"));
    let to_h2 = v1::DeleteHostRequest { name: "h2".into() };
    drop(h2);
    is_gone(&mut fabric, "h2").await;
    let refused = fabric.delete_host(to_h2.clone()).await.unwrap_err();
    assert!(refused.message().contains("a replica of guest web-1"), "{}", refused.message());
    assert_eq!(told_of(fabric.promote_replica(promote("h2")).await).1, "SOURCE_CONNECTED");
    drop(h1);
    is_gone(&mut fabric, "h1").await;
    assert_eq!(told_of(fabric.promote_replica(promote("h2")).await).1, "HOST_DOWN");
    fabric.delete_replica(delete_at("h2")).await.unwrap();
    fabric.delete_host(to_h2).await.expect("what it is still to delete is forgotten with it");
    fabric.delete_guest(delete).await.unwrap();
    controller.stop().await;
}

#[tokio::test]
async fn what_did_not_come_up_goes_with_its_guest() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [h1, mut h2, _h3]) = three_hosts(&controller).await;
    fabric.create_replica(at("h2")).await.unwrap();
    let id = id_at(&mut h2).await;
    says(&h2, 1, vec![keeps(&id, &[1])]).await;
    replica(&mut fabric, "h2", |it| !it.points.is_empty()).await;
    drop(h1);
    is_gone(&mut fabric, "h1").await;
    fabric.promote_replica(promote("h2")).await.unwrap();
    comes_to(&h2, &mut fabric, 2, GuestState::Failed).await;
    fabric.get_replica(get("h2")).await.expect("it may be promoted again");
    let delete = v1::DeleteGuestRequest { name: "web-1".into(), disks: v1::DiskFate::Delete.into() };
    fabric.delete_guest(delete).await.unwrap();
    let ordered = h2.desired(|it| !it.end_guests.is_empty()).await;
    assert_eq!((ordered.remove_replicas, ordered.replicas), (vec![id], vec![]));
    assert_eq!(told_of(fabric.get_replica(get("h2")).await).1, "UNKNOWN_REPLICA");
    controller.stop().await;
}

#[tokio::test]
async fn replicas_are_listed_and_wrong_ones_named() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, _agents) = three_hosts(&controller).await;
    fabric.create_guest(web(2, "h1")).await.unwrap();
    let mut third = web(3, "h1");
    third.spec.as_mut().unwrap().disks = vec![v1::Disk { name: "root".into(), size: 1 << 30, ..Default::default() }];
    fabric.create_guest(third).await.unwrap();
    type Change = fn(&mut v1::CreateReplicaRequest);
    let wrong: [(Change, Code, &str, &str); 10] = [
        (|it| it.guest = "web-9".into(), Code::NotFound, "UNKNOWN_GUEST", "guest"),
        (|it| it.guest = "web-2".into(), Code::FailedPrecondition, "GUEST_HAS_NO_DISK", "guest"),
        (|it| it.guest = "../web".into(), Code::InvalidArgument, "INVALID_NAME", "guest"),
        (|it| it.host = "h9".into(), Code::NotFound, "UNKNOWN_HOST", "host"),
        (|it| it.host = "h1".into(), Code::FailedPrecondition, "SAME_HOST", "host"),
        (|it| it.every_ms = 999, Code::InvalidArgument, "OUT_OF_RANGE", "every_ms"),
        (|it| it.target_lag_ms = 1_999, Code::InvalidArgument, "OUT_OF_RANGE", "target_lag_ms"),
        (
            |it| (it.every_ms, it.target_lag_ms) = (1_000, 2_000),
            Code::InvalidArgument,
            "INVALID_VALUE",
            "target_lag_ms",
        ),
        (|it| it.keep = 65, Code::InvalidArgument, "OUT_OF_RANGE", "keep"),
        (|it| it.bandwidth = 5, Code::InvalidArgument, "OUT_OF_RANGE", "bandwidth"),
    ];
    for (change, code, reason, field) in wrong {
        let mut request = at("h2");
        change(&mut request);
        assert_eq!(told_of(fabric.create_replica(request).await), (code, reason, field));
    }
    for guest in ["web-3", "web-1"] {
        fabric.create_replica(v1::CreateReplicaRequest { guest: guest.into(), ..at("h2") }).await.unwrap();
    }
    let page =
        |guest: &str, page_token: String| v1::ListReplicasRequest { page_size: 1, page_token, guest: guest.into() };
    let first = fabric.list_replicas(page("", String::new())).await.unwrap().into_inner();
    let second = fabric.list_replicas(page("", first.next_page_token.clone())).await.unwrap().into_inner();
    assert_eq!((&*first.replicas[0].guest, &*second.replicas[0].guest), ("web-1", "web-3"));
    assert_eq!(second.next_page_token, "");
    let crossed = told_of(fabric.list_replicas(page("web-1", first.next_page_token)).await);
    assert_eq!(crossed, (Code::InvalidArgument, "INVALID_VALUE", "page_token"));
    assert_eq!(fabric.list_replicas(page("web-2", String::new())).await.unwrap().into_inner().replicas, []);
    controller.stop().await;
}

fn test(point: u64, for_ms: u32) -> v1::TestReplicaRequest {
    v1::TestReplicaRequest { guest: "web-1".into(), host: "h2".into(), point, for_ms }
}

fn end_test() -> v1::EndReplicaTestRequest {
    v1::EndReplicaTestRequest { guest: "web-1".into(), host: "h2".into() }
}

/// What the host says of a replica that is being tested.
fn tests(id: &str, test: &v1::DesiredTest, state: v1::TestState) -> v1::ObservedReplica {
    let console = "/state/serial.log".to_owned();
    let test = v1::ObservedTest { id: test.id.clone(), state: state.into(), console, ..Default::default() };
    v1::ObservedReplica { test: Some(test), ..keeps(id, &[3, 4]) }
}

async fn memory_used(fabric: &mut Fabric, host: &str) -> u64 {
    fabric.get_host(v1::GetHostRequest { name: host.into() }).await.unwrap().into_inner().memory_used_kib
}

/// The replica, once its test is in that state.
async fn test_is(fabric: &mut Fabric, state: v1::TestState) -> v1::ReplicaTest {
    replica(fabric, "h2", |it| it.test.as_ref().is_some_and(|test| test.state() == state)).await.test.unwrap()
}

#[tokio::test]
async fn a_replica_is_tested_and_its_guest_is_not_concerned() {
    use v1::TestState::{Ended, Ending, Failed, Running, Starting};
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, h3]) = three_hosts(&controller).await;
    fabric.create_replica(at("h2")).await.unwrap();
    let id = id_at(&mut h2).await;
    assert_eq!(told_of(fabric.test_replica(test(0, 0)).await), (Code::FailedPrecondition, "NO_POINT", "point"));
    says(&h2, 1, vec![keeps(&id, &[3, 4])]).await;
    replica(&mut fabric, "h2", |it| it.points.len() == 2).await;
    assert_eq!(told_of(fabric.test_replica(test(2, 0)).await).1, "UNKNOWN_POINT");
    assert_eq!(told_of(fabric.end_replica_test(end_test()).await), (Code::FailedPrecondition, "NO_TEST", "host"));
    let before = (guest(&mut fabric).await, memory_used(&mut fabric, "h2").await);

    let begun = fabric.test_replica(test(0, 0)).await.unwrap().into_inner().test.unwrap();
    assert_eq!((begun.point, begun.state(), begun.ends_ms - begun.since_ms), (4, Starting, 300_000));
    let ordered = h2.desired(|it| it.replicas[0].test.is_some()).await.replicas[0].test.clone().unwrap();
    assert_eq!((ordered.point, ordered.for_ms), (4, 300_000));
    assert_eq!(told_of(fabric.test_replica(test(3, 0)).await).1, "TEST_UNDER_WAY");
    assert_eq!(
        memory_used(&mut fabric, "h2").await,
        before.1 + before.0.spec.as_ref().unwrap().memory_kib,
        "it has its guest's memory there"
    );
    // Nobody else's word counts.
    says(&h1, 1, vec![tests(&id, &ordered, Failed)]).await;
    says(&h3, 1, vec![tests(&id, &ordered, Failed)]).await;
    says(&h2, 1, vec![tests(&id, &ordered, Running)]).await;
    assert_eq!(test_is(&mut fabric, Running).await.console, "/state/serial.log");
    let now = guest(&mut fabric).await;
    assert_eq!((&now.host, now.generation, now.state()), (&before.0.host, before.0.generation, before.0.state()));

    // By word.
    let ending = fabric.end_replica_test(end_test()).await.unwrap().into_inner().test.unwrap();
    assert_eq!(ending.state(), Ending);
    h2.desired(|it| it.replicas[0].test.is_none()).await;
    says(&h2, 1, vec![tests(&id, &ordered, Running)]).await;
    says(&h2, 1, vec![keeps(&id, &[3, 4])]).await;
    assert_eq!(test_is(&mut fabric, Ended).await.console, "");
    assert_eq!(memory_used(&mut fabric, "h2").await, before.1);

    // By the clock.
    fabric.test_replica(test(3, 1_000)).await.unwrap();
    let second = h2.desired(|it| it.replicas[0].test.is_some()).await.replicas[0].test.clone().unwrap();
    assert_ne!(second.id, ordered.id);
    says(&h2, 1, vec![tests(&id, &second, Running)]).await;
    h2.desired(|it| it.replicas[0].test.is_none()).await;
    says(&h2, 1, vec![keeps(&id, &[3, 4])]).await;
    test_is(&mut fabric, Ended).await;

    // By its own failure: the host is told to forget it.
    fabric.test_replica(test(0, 0)).await.unwrap();
    let third = h2.desired(|it| it.replicas[0].test.is_some()).await.replicas[0].test.clone().unwrap();
    let mut failed = tests(&id, &third, Failed);
    failed.test.as_mut().unwrap().failure = Some(v1::Failure { reason: "HYPERVISOR".into(), message: "no".into() });
    says(&h2, 1, vec![failed]).await;
    assert_eq!(test_is(&mut fabric, Failed).await.failure.unwrap().reason, "HYPERVISOR");
    h2.desired(|it| it.replicas[0].test.is_none()).await;

    // By the host's loss: a test is not begun again by an agent that comes back.
    fabric.test_replica(test(0, 0)).await.unwrap();
    h2.desired(|it| it.replicas[0].test.is_some()).await;
    drop(h2);
    assert_eq!(test_is(&mut fabric, Ending).await.failure.unwrap().reason, "HOST_DOWN");
    let mut h2 = controller.agent("h2", 2).await;
    assert_eq!(h2.desired(|_| true).await.replicas[0].test, None);
    says(&h2, 1, vec![keeps(&id, &[3, 4])]).await;
    test_is(&mut fabric, Failed).await;

    // By a failover, which it is not in the way of.
    fabric.test_replica(test(3, 0)).await.unwrap();
    h2.desired(|it| it.replicas[0].test.is_some()).await;
    let anyway = v1::PromoteReplicaRequest { even_if_connected: true, ..promote("h2") };
    fabric.promote_replica(anyway).await.unwrap();
    let promoting = h2.desired(|it| it.replicas.first().is_some_and(|it| it.source.is_empty())).await;
    assert_eq!(promoting.replicas[0].test, None);
    says(&h2, 1, vec![keeps(&id, &[3, 4])]).await;
    test_is(&mut fabric, Ended).await;
    assert_eq!(told_of(fabric.test_replica(test(0, 0)).await).1, "REPLICA_PROMOTED");
    h1.desired(|it| !it.end_guests.is_empty()).await;
    controller.stop().await;
}
