//! Migrations, played by scripted agents over real gRPC.

use std::collections::BTreeSet;

use crate::support::*;
use throughline_wire::v1::{self, MigrationEvent, Phase, Role, Step, controller_message::Message as Down};
use tonic::Code;

type Fabric = v1::fabric_client::FabricClient<tonic::transport::Channel>;

async fn watch(fabric: &mut Fabric, id: &str) -> tonic::Streaming<MigrationEvent> {
    fabric.watch_migration(v1::WatchMigrationRequest { id: id.into() }).await.unwrap().into_inner()
}

async fn to_the_end(mut events: tonic::Streaming<MigrationEvent>) -> Vec<MigrationEvent> {
    let mut all = Vec::new();
    while let Some(event) = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap() {
        all.push(event);
    }
    all
}

async fn get(fabric: &mut Fabric, id: &str) -> v1::Migration {
    fabric.get_migration(v1::GetMigrationRequest { id: id.into() }).await.unwrap().into_inner()
}

/// Both ends up to pre-copy; the plan each was told.
async fn introduce(id: &str, h1: &mut Agent, h2: &mut Agent) -> v1::MigrationPlan {
    let Down::Expect(expect) = h2.order().await else { panic!("the destination is told first") };
    h2.news(id, Role::Destination, Step::Expecting).await;
    let Down::Start(start) = h1.order().await else { panic!("then the source") };
    assert_eq!(expect.plan, start.plan, "the same plan to each");
    h1.news(id, Role::Source, Step::Precopy).await;
    start.plan.unwrap()
}

async fn commit(id: &str, h2: &Agent) {
    let mut committed = update(id, Role::Destination, Step::Committed);
    committed.generation = 2;
    committed.report = Some(v1::CutoverReport { committed_at_ns: 5, overflowed: 1, ..Default::default() });
    h2.update(committed).await;
    h2.news(id, Role::Destination, Step::Running).await;
}

async fn rebind(agent: &mut Agent) -> v1::Rebind {
    match agent.order().await {
        Down::Rebind(rebind) => rebind,
        other => panic!("a rebind was due: {other:?}"),
    }
}

#[tokio::test]
async fn a_guest_moves() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, mut h3]) = controller.three_hosts().await;
    let accepted = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner();
    let id = accepted.id.clone();
    assert_eq!((accepted.phase(), accepted.source_host.as_str()), (Phase::Preparing, "h1"));
    let live = tokio::spawn(to_the_end(watch(&mut fabric, &id).await));

    let plan = introduce(&id, &mut h1, &mut h2).await;
    let port = &plan.ports[0];
    assert_eq!((plan.generation, plan.token.len()), (1, 64));
    let secret = port.markers[0].secret.clone();
    assert_eq!(secret.len(), 16);
    let h3s = v1::MarkerPeer { host: "h3".into(), vtep: "192.0.2.3".into(), index: 0, secret: secret.clone() };
    assert_eq!(port.markers, [h3s]);
    assert!((1..1 << 24).contains(&port.carry_id));
    assert_eq!(u8::from_str_radix(&port.marker_mac[..2], 16).unwrap() & 3, 2, "local, unicast");

    let refused = told(fabric.delete_guest(delete("web-1")).await);
    assert_eq!(refused, (Code::FailedPrecondition, "ALREADY_MIGRATING".into(), "guest".into()));
    let mut progress = update(&id, Role::Source, Step::Progress);
    progress.progress = Some(v1::Progress { total: 268_427_264, transferred: 1 << 20, ..Default::default() });
    h1.update(progress).await;
    h1.news(&id, Role::Source, Step::Armed).await;
    let mut paused = update(&id, Role::Source, Step::Paused);
    paused.report = Some(v1::CutoverReport { stopped_at_ns: 3, held: 40, overflowed: 2, ..Default::default() });
    h1.update(paused).await;
    commit(&id, &h2).await;

    // h3's next message is the rebind, before any desired state that knows of the move.
    let told_h3 = loop {
        match h3.next().await {
            Down::Rebind(rebind) => break rebind,
            Down::Desired(it) => assert!(it.networks.iter().flat_map(|n| &n.bindings).all(|b| b.generation == 1)),
            other => panic!("{other:?}"),
        }
    };
    let binding = told_h3.binding.as_ref().unwrap();
    assert_eq!((binding.host.as_str(), binding.vtep.as_str(), binding.generation), ("h2", "192.0.2.2", 2));
    assert_eq!((told_h3.old_vtep.as_str(), told_h3.marker_index), ("192.0.2.1", 0));
    assert_eq!((told_h3.carry_id, &told_h3.marker_mac), (port.carry_id, &port.marker_mac));
    assert_eq!(told_h3.marker_secret, secret, "its own");
    let refused = told(fabric.cancel_migration(v1::CancelMigrationRequest { id: id.clone() }).await);
    assert_eq!(refused, (Code::FailedPrecondition, "TOO_LATE".into(), "id".into()));
    h3.ack(&told_h3).await;
    let told_h1 = rebind(&mut h1).await;
    assert_eq!(told_h1.marker_index, 65_535, "nothing else on h1 can send: its markers do not count");
    assert!(told_h1.marker_secret.is_empty(), "nor is it told whose others are");
    h1.ack(&told_h1).await;

    for (agent, role) in [(&mut h1, Role::Source), (&mut h2, Role::Destination)] {
        let Down::Settle(settle) = agent.order().await else { panic!("settle was due") };
        assert_eq!(settle.migration_id, id);
        agent.news(&id, role, Step::Settled).await;
    }
    let events = live.await.unwrap();
    let end = events.last().unwrap().migration.clone().unwrap();
    assert_eq!(end.phase(), Phase::Done);
    let report = end.report.unwrap();
    assert_eq!((report.held, report.overflowed, report.stopped_at_ns), (40, 3, 3));
    assert!(report.settled_at_ns > 0 && end.ended_at_ms >= end.created_at_ms);
    let phases: Vec<Phase> = events.iter().map(|it| it.migration.as_ref().unwrap().phase()).collect();
    assert!(phases.is_sorted());
    let distinct: BTreeSet<_> = phases.iter().map(|it| *it as i32).collect();
    assert_eq!(distinct.len(), 7, "every phase but ABORTED was seen: {phases:?}");
    assert!(events.windows(2).all(|two| two[0].sequence + 1 == two[1].sequence), "no gap, no repetition");

    let late = to_the_end(watch(&mut fabric, &id).await).await;
    assert_eq!(late, events, "a late watcher gets the same history");
    let guest = fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner();
    assert_eq!((guest.host.as_str(), guest.generation, guest.migration_id.as_str()), ("h2", 2, ""));
    assert_eq!(guest.state(), v1::GuestState::Running);
    let gained = h2.desired(|it| it.guests.len() == 1).await;
    assert_eq!(gained.guests[0].generation, 2);
    h1.desired(|it| it.guests.is_empty()).await;

    // And back again, at the next generation.
    let back = fabric.migrate_guest(move_web_1("r-2", "")).await.unwrap().into_inner();
    assert_eq!((back.destination_host.as_str(), back.generation), ("h1", 2));
    controller.stop().await;
}

#[tokio::test]
async fn one_request_id_is_one_migration() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, _agents) = controller.three_hosts().await;
    let first = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner();
    let again = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner();
    assert_eq!(first.id, again.id);
    let refused = told(fabric.migrate_guest(move_web_1("r-1", "")).await);
    assert_eq!(refused, (Code::AlreadyExists, "REQUEST_ID_REUSED".into(), "request_id".into()));
    let refused = told(fabric.migrate_guest(move_web_1("r-2", "h2")).await);
    assert_eq!(refused, (Code::FailedPrecondition, "ALREADY_MIGRATING".into(), "guest".into()));
    for (request, reason, field) in [
        (move_web_1("", "h2"), "OUT_OF_RANGE", "request_id"),
        (move_web_1("r\n", "h2"), "INVALID_VALUE", "request_id"),
        (move_web_1("r-3", "a/b"), "INVALID_NAME", "destination_host"),
    ] {
        let refused = told(fabric.migrate_guest(request).await);
        assert_eq!(refused, (Code::InvalidArgument, reason.to_owned(), field.to_owned()));
    }
    let all = fabric.list_migrations(v1::ListMigrationsRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.migrations.len(), 1);
    let refused = told(fabric.get_migration(v1::GetMigrationRequest { id: "m".into() }).await);
    assert_eq!(refused, (Code::NotFound, "UNKNOWN_MIGRATION".into(), "id".into()));
    controller.stop().await;
}

#[tokio::test]
async fn a_cancelled_guest_stays_and_can_move_later() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, _h3]) = controller.three_hosts().await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    introduce(&id, &mut h1, &mut h2).await;
    fabric.cancel_migration(v1::CancelMigrationRequest { id: id.clone() }).await.unwrap();
    for (agent, role) in [(&mut h1, Role::Source), (&mut h2, Role::Destination)] {
        let Down::Abort(abort) = agent.order().await else { panic!("an abort was due") };
        assert_eq!(abort.failure.unwrap().reason, "CANCELLED");
        agent.news(&id, role, Step::Aborted).await;
    }
    let events = to_the_end(watch(&mut fabric, &id).await).await;
    let end = events.last().unwrap().migration.clone().unwrap();
    assert_eq!((end.phase(), end.failure.unwrap().reason.as_str()), (Phase::Aborted, "CANCELLED"));
    let guest = fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner();
    assert_eq!((guest.host.as_str(), guest.generation, guest.state()), ("h1", 1, v1::GuestState::Running));
    let second = fabric.migrate_guest(move_web_1("r-2", "h2")).await.unwrap().into_inner();
    assert_ne!(second.id, id);
    controller.stop().await;
}

#[tokio::test]
async fn a_lost_destination_leaves_the_word_to_the_source() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, _h3]) = controller.three_hosts().await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    introduce(&id, &mut h1, &mut h2).await;
    drop(h2);
    let mut aborted = update(&id, Role::Source, Step::Aborted);
    aborted.failure = Some(v1::Failure { reason: "PEER_LOST".into(), message: "the destination is gone".into() });
    h1.update(aborted).await;
    let events = to_the_end(watch(&mut fabric, &id).await).await;
    let end = events.last().unwrap().migration.clone().unwrap();
    assert_eq!((end.phase(), end.failure.unwrap().reason.as_str()), (Phase::Aborted, "PEER_LOST"));
    let _h2 = controller.agent("h2", 2).await;
    fabric.migrate_guest(move_web_1("r-2", "h2")).await.expect("a second try is admitted");
    controller.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_record_and_goes_on() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, h3]) = controller.three_hosts().await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    introduce(&id, &mut h1, &mut h2).await;
    let guests = fabric.list_guests(v1::ListGuestsRequest::default()).await.unwrap().into_inner();
    while get(&mut fabric, &id).await.phase() != Phase::Precopy {}
    controller.stop().await;
    drop((h1, h2, h3));

    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    assert_eq!(get(&mut fabric, &id).await.phase(), Phase::Precopy);
    let mut kept = fabric.list_guests(v1::ListGuestsRequest::default()).await.unwrap().into_inner();
    assert_eq!(kept.guests[0].state(), v1::GuestState::Unspecified, "not reported to this controller yet");
    kept.guests[0].set_state(v1::GuestState::Running);
    assert_eq!(kept, guests);

    let mut h1 = controller.agent("h1", 1).await;
    let h2 = controller.agent("h2", 2).await;
    let mut h3 = controller.peer("h3", 3).await;
    commit(&id, &h2).await;
    let told_h3 = rebind(&mut h3).await;
    h3.ack(&told_h3).await;
    let told_h1 = rebind(&mut h1).await;
    h1.ack(&told_h1).await;
    h1.news(&id, Role::Source, Step::Settled).await;
    h2.news(&id, Role::Destination, Step::Settled).await;
    let events = to_the_end(watch(&mut fabric, &id).await).await;
    assert_eq!(events.last().unwrap().migration.as_ref().unwrap().phase(), Phase::Done);
    assert!(events.windows(2).all(|two| two[0].sequence < two[1].sequence));
    let again = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner();
    assert_eq!(again.id, id, "request ids outlive a restart");
    controller.stop().await;
}

#[tokio::test]
async fn migrations_are_listed_newest_first() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, _h3]) = controller.three_hosts().await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let id = fabric.migrate_guest(move_web_1(&format!("r-{n}"), "h2")).await.unwrap().into_inner().id;
        introduce(&id, &mut h1, &mut h2).await;
        h1.news(&id, Role::Source, Step::Aborted).await;
        let Down::Abort(_) = h2.order().await else { panic!("an abort was due") };
        h2.news(&id, Role::Destination, Step::Aborted).await;
        to_the_end(watch(&mut fabric, &id).await).await;
        ids.insert(0, id);
    }
    let request = |page_token| v1::ListMigrationsRequest { page_size: 2, page_token, guest: "web-1".into() };
    let first = fabric.list_migrations(request(String::new())).await.unwrap().into_inner();
    let second = fabric.list_migrations(request(first.next_page_token)).await.unwrap().into_inner();
    let listed: Vec<_> = first.migrations.into_iter().chain(second.migrations).map(|it| it.id).collect();
    assert_eq!((listed, second.next_page_token.as_str()), (ids, ""));
    controller.stop().await;
}
