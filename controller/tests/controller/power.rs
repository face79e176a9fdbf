//! Guests are stopped and started by word of an operator; the host learns it with its desired state.

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
    agent.send(Up::Observed(v1::ObservedState { revision: 1, guests: vec![guest], problems: vec![] })).await;
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
