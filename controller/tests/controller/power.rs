//! Guests are stopped and started by word of an operator; the host learns it with its desired state.

use throughline_controller::Config;
use throughline_wire::v1::{
    self, GuestState, agent_message::Message as Up, controller_message::Message as Down, fabric_client::FabricClient,
};
use tonic::transport::Channel;

use crate::support::*;

fn stop(cut_after_ms: Option<u32>) -> v1::StopGuestRequest {
    v1::StopGuestRequest { name: "web-1".into(), stop: Some(v1::Stop { cut_after_ms }) }
}

fn start() -> v1::StartGuestRequest {
    v1::StartGuestRequest { name: "web-1".into() }
}

async fn is(agent: &Agent, fabric: &mut FabricClient<Channel>, generation: u64, state: GuestState) {
    let guest = v1::ObservedGuest { name: "web-1".into(), generation, state: state.into(), detail: String::new() };
    agent
        .send(Up::Observed(v1::ObservedState {
            revision: 1,
            guests: vec![guest],
            problems: vec![],
            ..Default::default()
        }))
        .await;
    while fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner().state() != state {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_guest_is_stopped_and_started_at_generations_of_their_own() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, _h2, _h3]) = controller.three_hosts().await;

    let stopping = fabric.stop_guest(stop(None)).await.unwrap().into_inner();
    assert_eq!((stopping.state(), stopping.generation), (GuestState::Stopping, 2));
    let wanted = h1.desired(|it| it.guests.iter().any(|guest| guest.stop.is_some())).await;
    assert_eq!((wanted.guests[0].stop, wanted.guests[0].generation), (Some(v1::Stop { cut_after_ms: None }), 2));
    assert!(!wanted.guests[0].boot, "it has been seen to run");
    assert_eq!(told(fabric.migrate_guest(move_web_1("r-1", "h2")).await).1, "GUEST_NOT_RUNNING");

    let impatient = fabric.stop_guest(stop(Some(0))).await.unwrap().into_inner();
    assert_eq!(impatient.generation, 2, "the same turn of the switch, said otherwise");
    h1.desired(|it| it.guests[0].stop == Some(v1::Stop { cut_after_ms: Some(0) })).await;
    is(&h1, &mut fabric, 2, GuestState::Stopped).await;

    let starting = fabric.start_guest(start()).await.unwrap().into_inner();
    assert_eq!((starting.state(), starting.generation), (GuestState::Starting, 3));
    let wanted = h1.desired(|it| it.guests[0].stop.is_none()).await;
    assert_eq!(wanted.guests[0].generation, 3);
    is(&h1, &mut fabric, 3, GuestState::Running).await;
    let again = fabric.start_guest(start()).await.unwrap().into_inner();
    assert_eq!((again.state(), again.generation), (GuestState::Running, 3), "it runs already");

    let begun = fabric.migrate_guest(move_web_1("r-2", "h2")).await.unwrap().into_inner();
    assert_eq!(told(fabric.stop_guest(stop(None)).await).1, "ALREADY_MIGRATING");
    assert_eq!(told(fabric.start_guest(start()).await).1, "ALREADY_MIGRATING");
    assert_eq!(begun.generation, 3);
}

#[tokio::test]
async fn a_stopped_guest_moves_stopped() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, mut h3]) = controller.three_hosts().await;
    fabric.stop_guest(stop(None)).await.unwrap();
    is(&h1, &mut fabric, 2, GuestState::Stopped).await;
    let id = fabric.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner().id;
    let Down::Expect(expect) = h2.order().await else { panic!("the destination is told first") };
    let plan = expect.plan.unwrap();
    assert!(plan.cold && plan.ports.iter().all(|port| port.markers.is_empty()), "{plan:?}");
    h2.news(&id, v1::Role::Destination, v1::Step::Expecting).await;
    let Down::Start(start) = h1.order().await else { panic!("then the source") };
    assert_eq!(start.plan, Some(plan));
    h2.update(v1::MigrationUpdate { generation: 3, ..update(&id, v1::Role::Destination, v1::Step::Committed) }).await;
    let Down::Rebind(rebind) = h3.order().await else { panic!("peers are told as ever") };
    assert_eq!(rebind.marker_secret, Vec::<u8>::new());
    let there = fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner();
    assert_eq!((there.host.as_str(), there.generation, there.state()), ("h2", 3, GuestState::Stopped));
    let wanted = h2.desired(|it| !it.guests.is_empty()).await;
    assert_eq!(wanted.guests[0].stop, Some(v1::Stop { cut_after_ms: None }), "it is not to run there either");
}

#[tokio::test]
async fn a_failed_guest_is_stopped_before_it_is_started() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [h1, _h2, _h3]) = controller.three_hosts().await;
    is(&h1, &mut fabric, 1, GuestState::Failed).await;
    assert_eq!(
        told(fabric.start_guest(start()).await),
        (tonic::Code::FailedPrecondition, "GUEST_FAILED".into(), "name".into())
    );
    fabric.stop_guest(stop(None)).await.unwrap();
    is(&h1, &mut fabric, 2, GuestState::Stopped).await;
    fabric.start_guest(start()).await.unwrap();

    let nobody = v1::StopGuestRequest { name: "web-9".into(), stop: None };
    assert_eq!(told(fabric.stop_guest(nobody).await).1, "UNKNOWN_GUEST");
    let nameless = v1::StopGuestRequest { name: "../web".into(), stop: None };
    assert_eq!(told(fabric.stop_guest(nameless).await).2, "name");
    assert_eq!(told(fabric.stop_guest(stop(Some(u32::MAX))).await).2, "stop.cut_after_ms");
}

#[tokio::test]
async fn a_stopped_guest_stays_stopped_whatever_restarts() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [h1, h2, h3]) = controller.three_hosts().await;
    fabric.stop_guest(stop(Some(7))).await.unwrap();
    is(&h1, &mut fabric, 2, GuestState::Stopped).await;
    drop((h1, h2, h3));
    controller.stop().await;

    let controller = Controller::start(&state).await;
    let mut h1 = controller.agent("h1", 1).await;
    let wanted = h1.desired(|it| !it.guests.is_empty()).await;
    assert_eq!((wanted.guests[0].stop, wanted.guests[0].generation), (Some(v1::Stop { cut_after_ms: Some(7) }), 2));
}

fn stop_and_move(request_id: &str, otherwise: v1::RunsOn) -> v1::MigrateGuestRequest {
    let stop_first = Some(v1::StopFirst { deadline_ms: 300, otherwise: otherwise.into() });
    v1::MigrateGuestRequest { stop_first, ..move_web_1(request_id, "h2") }
}

#[tokio::test]
async fn a_guest_is_stopped_moved_and_started_by_one_request() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, mut h3]) = controller.three_hosts().await;
    let wish = v1::MigrateGuestRequest {
        stop_first: Some(v1::StopFirst { deadline_ms: 60_000, otherwise: v1::RunsOn::Cut.into() }),
        ..move_web_1("r-1", "h2")
    };
    let accepted = fabric.migrate_guest(wish.clone()).await.unwrap().into_inner();
    assert_eq!((accepted.phase(), accepted.generation, accepted.stop_first), (v1::Phase::Stopping, 2, wish.stop_first));
    let id = accepted.id;
    let again = fabric.migrate_guest(wish.clone()).await.unwrap().into_inner();
    assert_eq!(again.id, id, "the same wish");
    let other = v1::MigrateGuestRequest { stop_first: None, ..wish };
    assert_eq!(told(fabric.migrate_guest(other).await).1, "REQUEST_ID_REUSED");
    assert_eq!(told(fabric.start_guest(start()).await).1, "ALREADY_MIGRATING");

    let wanted = h1.desired(|it| it.guests.iter().any(|guest| guest.stop.is_some())).await;
    assert_eq!(wanted.guests[0].stop, Some(v1::Stop { cut_after_ms: Some(60_000) }));
    is(&h1, &mut fabric, 2, GuestState::Stopped).await;
    let Down::Expect(expect) = h2.order().await else { panic!("now it moves") };
    let plan = expect.plan.unwrap();
    assert_eq!((plan.cold, plan.generation), (true, 2));
    h2.news(&id, v1::Role::Destination, v1::Step::Expecting).await;
    let Down::Start(_) = h1.order().await else { panic!("then the source") };
    h2.update(v1::MigrationUpdate { generation: 3, ..update(&id, v1::Role::Destination, v1::Step::Committed) }).await;
    for peer in [&mut h3, &mut h1] {
        let Down::Rebind(rebind) = peer.order().await else { panic!("peers are told as ever") };
        let ack = v1::RebindAck { rebind_id: rebind.rebind_id, applied: true, failure: None };
        peer.send(Up::RebindAck(ack)).await;
    }
    for (end, role) in [(&mut h1, v1::Role::Source), (&mut h2, v1::Role::Destination)] {
        let Down::Settle(_) = end.order().await else { panic!("both settle") };
        end.news(&id, role, v1::Step::Settled).await;
    }
    let wanted = h2.desired(|it| it.guests.iter().any(|guest| guest.stop.is_none())).await;
    assert_eq!(wanted.guests[0].generation, 4, "the switch was turned on again");
    let guest = fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner();
    assert_eq!((guest.host.as_str(), guest.state(), guest.migration_id.as_str()), ("h2", GuestState::Starting, ""));

    // One that was away, and settles only now, took what it was told before for something from before the move's end.
    h2.news(&id, v1::Role::Destination, v1::Step::Settled).await;
    assert_eq!(h2.desired(|_| true).await.guests[0].stop, None, "it is told once more");
    controller.stop().await;
}

#[tokio::test]
async fn a_guest_that_does_not_stop_to_be_moved_runs_on() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, _h2, _h3]) = controller.three_hosts().await;
    let ended = async |fabric: &mut FabricClient<Channel>, id: &str| loop {
        let get = v1::GetMigrationRequest { id: id.to_owned() };
        let migration = fabric.get_migration(get).await.unwrap().into_inner();
        if migration.phase() == v1::Phase::Aborted {
            return migration.failure.unwrap().reason;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    let late = fabric.migrate_guest(stop_and_move("r-1", v1::RunsOn::Stay)).await.unwrap().into_inner();
    assert_eq!(ended(&mut fabric, &late.id).await, "GUEST_DID_NOT_STOP");
    let wanted = h1.desired(|it| it.guests.iter().any(|guest| guest.generation == 3)).await;
    assert_eq!(wanted.guests[0].stop, None, "the wish that it shut down is withdrawn");
    is(&h1, &mut fabric, 3, GuestState::Running).await;

    let wish = v1::MigrateGuestRequest { stop_first: Some(v1::StopFirst::default()), ..move_web_1("r-2", "h2") };
    let cancelled = fabric.migrate_guest(wish).await.unwrap().into_inner();
    assert_eq!(cancelled.stop_first.unwrap().deadline_ms, 60_000, "what is meant is said");
    fabric.cancel_migration(v1::CancelMigrationRequest { id: cancelled.id.clone() }).await.unwrap();
    assert_eq!(ended(&mut fabric, &cancelled.id).await, "CANCELLED");
    let wanted = h1.desired(|it| it.guests.iter().any(|guest| guest.generation == 5)).await;
    assert_eq!(wanted.guests[0].stop, None);
    let odd = v1::StopFirst { deadline_ms: 86_400_001, otherwise: 0 };
    let wish = v1::MigrateGuestRequest { stop_first: Some(odd), ..move_web_1("r-3", "h2") };
    assert_eq!(told(fabric.migrate_guest(wish).await).2, "stop_first.deadline_ms");
    controller.stop().await;
}

/// What the record of a controller that was killed while a guest was being stopped to be moved says, and what has become of it since
/// under another that is gone now: it moved, was started at generation 4, and stopped by an operator at generation 5.
async fn an_older_copy(state: &StateDir) -> (Controller, FabricClient<Channel>, String, [Agent; 2]) {
    let controller = Controller::start(state).await;
    let (mut fabric, hosts) = controller.three_hosts().await;
    let wish = v1::MigrateGuestRequest { stop_first: Some(v1::StopFirst::default()), ..move_web_1("r-1", "h2") };
    let id = fabric.migrate_guest(wish).await.unwrap().into_inner().id;
    let spec = fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner().spec;
    drop(hosts);
    controller.stop().await;

    let config = Config { heartbeat: std::time::Duration::from_millis(200), restored: true, ..Config::new(&state.0) };
    let controller = Controller::with(config).await;
    let h1 = controller.agent("h1", 1).await;
    let owned = v1::OwnedGuest { spec, generation: 5, vnis: vec![7], stopped: true };
    let h2 = Agent::connect(controller.address, v1::Hello { guests: vec![owned], ..hello("h2", 2) }).await.unwrap();
    let fabric = controller.fabric().await;
    (controller, fabric, id, [h1, h2])
}

#[tokio::test]
async fn an_older_copy_takes_no_other_stop_for_the_one_it_waits_for() {
    let state = StateDir::new();
    let (controller, mut fabric, id, [mut h1, mut h2]) = an_older_copy(&state).await;
    is(&h2, &mut fabric, 5, GuestState::Stopped).await;
    let get = v1::GetMigrationRequest { id: id.clone() };
    assert_eq!(fabric.get_migration(get).await.unwrap().into_inner().phase(), v1::Phase::Stopping);

    // Both ends know better, so both are asked.
    fabric.cancel_migration(v1::CancelMigrationRequest { id: id.clone() }).await.unwrap();
    for end in [&mut h1, &mut h2] {
        let Down::Abort(_) = end.order().await else { panic!("whether there is something to undo is theirs to know") };
    }
    h2.update(v1::MigrationUpdate { generation: 3, ..update(&id, v1::Role::Destination, v1::Step::Committed) }).await;
    for (end, role) in [(&mut h1, v1::Role::Source), (&mut h2, v1::Role::Destination)] {
        let Down::Settle(_) = end.order().await else { panic!("both settle") };
        end.news(&id, role, v1::Step::Settled).await;
    }
    while !fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner().migration_id.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let guest = fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner();
    assert_eq!(
        (guest.host.as_str(), guest.generation, guest.state()),
        ("h2", 5, GuestState::Stopped),
        "not to be started"
    );
    controller.stop().await;
}
