//! Guests with disks: what is asked for gets to the host, and their data goes only by somebody's word.

use crate::support::*;
use throughline_controller::Config;
use throughline_wire::v1::{self, DiskFate, agent_message::Message as Up};
use tonic::Code;

fn disk(name: &str) -> v1::Disk {
    v1::Disk { name: name.into(), size: 1 << 30, ..Default::default() }
}

/// web-2 on h1, with a disk of each kind.
fn with_disks() -> v1::CreateGuestRequest {
    let mut request = web(2, "h1");
    let mut data = v1::Disk { image: "/srv/images/data.qcow2".into(), ..disk("data") };
    data.set_format(v1::DiskFormat::Qcow2);
    data.set_bus(v1::DiskBus::VirtioScsi);
    request.spec.as_mut().unwrap().disks = vec![disk("root"), data];
    request
}

fn delete_with(fate: DiskFate) -> v1::DeleteGuestRequest {
    v1::DeleteGuestRequest { name: "web-2".into(), disks: fate.into() }
}

fn done(revision: u64, problems: &[&str]) -> Up {
    let problems = problems.iter().map(|it| (*it).to_owned()).collect();
    Up::Observed(v1::ObservedState { revision, guests: vec![], problems, ..Default::default() })
}

#[tokio::test]
async fn disks_get_to_the_host_and_outlive_the_controller() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, h2, h3]) = controller.three_hosts().await;
    let made = fabric.create_guest(with_disks()).await.unwrap().into_inner();
    let mut expected = with_disks().spec.unwrap().disks;
    expected[0].set_format(v1::DiskFormat::Raw);
    expected[0].set_bus(v1::DiskBus::VirtioBlk);
    assert_eq!(made.spec.unwrap().disks, expected, "what was left open is filled in");
    let desired = h1.desired(|it| it.guests.len() == 2).await;
    assert_eq!(desired.guests[1].spec.as_ref().unwrap().disks, expected);
    controller.stop().await;
    drop((h1, h2, h3));

    let controller = Controller::start(&state).await;
    let read = controller.fabric().await.get_guest(named_guest("web-2")).await.unwrap().into_inner();
    assert_eq!(read.spec.unwrap().disks, expected);
    controller.stop().await;
}

#[tokio::test]
async fn wrong_disks_are_named() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, _agents) = controller.three_hosts().await;
    type Change = fn(&mut Vec<v1::Disk>);
    let cases: [(Change, &str, &str); 6] = [
        (|disks| disks[0].size = 5, "INVALID_DISK", "spec.disks[0].size"),
        (|disks| disks[1].name = "root".into(), "INVALID_VALUE", "spec.disks[1].name"),
        (|disks| disks[1].name = "/dev/sda".into(), "INVALID_NAME", "spec.disks[1].name"),
        (|disks| disks[1].image = "data.qcow2".into(), "INVALID_VALUE", "spec.disks[1].image"),
        (|disks| disks[1].format = 77, "INVALID_VALUE", "spec.disks[1].format"),
        (|disks| *disks = (0..9).map(|n| disk(&format!("d{n}"))).collect(), "OUT_OF_RANGE", "spec.disks"),
    ];
    for (change, reason, field) in cases {
        let mut request = with_disks();
        change(&mut request.spec.as_mut().unwrap().disks);
        let expected = (Code::InvalidArgument, reason.to_owned(), field.to_owned());
        assert_eq!(told(fabric.create_guest(request).await), expected);
    }
    assert_eq!(told(fabric.get_guest(named_guest("web-2")).await).1, "UNKNOWN_GUEST");
    controller.stop().await;
}

#[tokio::test]
async fn disks_go_by_somebodys_word_and_the_order_stands_until_they_are_gone() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, h2, h3]) = controller.three_hosts().await;
    fabric.create_guest(with_disks()).await.unwrap();
    let refused = told(fabric.delete_guest(delete_with(DiskFate::Unspecified)).await);
    assert_eq!(refused, (Code::FailedPrecondition, "DISK_FATE_NEEDED".into(), "disks".into()));
    let nonsense = v1::DeleteGuestRequest { name: "web-2".into(), disks: 9 };
    let refused = told(fabric.delete_guest(nonsense).await);
    assert_eq!(refused, (Code::InvalidArgument, "INVALID_VALUE".into(), "disks".into()));
    fabric.get_guest(named_guest("web-2")).await.expect("it is still there");

    fabric.delete_guest(delete_with(DiskFate::Delete)).await.unwrap();
    let order = v1::EndGuest { name: "web-2".into(), generation: 2, disks: DiskFate::Delete.into() };
    assert_eq!(h1.desired(|it| !it.end_guests.is_empty()).await.end_guests, std::slice::from_ref(&order));
    controller.stop().await;
    drop((h1, h2, h3));

    // That the host says it has no such guest, or that something is left to do, is not enough.
    let controller = Controller::start(&state).await;
    let (mut fabric, mut h1) = (controller.fabric().await, controller.agent("h1", 1).await);
    let ordered = h1.desired(|_| true).await;
    assert_eq!(ordered.end_guests, [order]);
    h1.send(done(ordered.revision, &["the disks of web-2 are in use"])).await;
    let refused = told(fabric.create_guest(with_disks()).await);
    assert_eq!(refused, (Code::FailedPrecondition, "DISKS_BEING_DELETED".into(), "spec.name".into()));
    h1.send(done(ordered.revision, &[])).await;
    assert!(h1.desired(|_| true).await.end_guests.is_empty());
    fabric.create_guest(with_disks()).await.expect("the name is free again");
    fabric.delete_guest(delete_with(DiskFate::Keep)).await.unwrap();
    let ordered = h1.desired(|it| !it.end_guests.is_empty()).await;
    assert_eq!(ordered.end_guests, [end_guest("web-2", 3)]);
    controller.stop().await;
}

#[tokio::test]
async fn a_guest_the_record_does_not_know_has_disks_too() {
    let state = StateDir::new();
    let config = Config { heartbeat: std::time::Duration::from_millis(200), ..Config::new(&state.0) };
    let controller = Controller::with(config).await;
    let mut fabric = controller.fabric().await;
    let mut spec = with_disks().spec.unwrap();
    (spec.ports[0].id, spec.ports[0].mac) = (9, "02:54:00:00:00:09".into());
    let owned = v1::OwnedGuest { spec: Some(spec), generation: 7, vnis: vec![7], stopped: false };
    let hello = v1::Hello { guests: vec![owned], ..hello("h1", 1) };
    let mut h1 = Agent::connect(controller.address, hello).await.unwrap();
    let unknown = fabric.get_guest(named_guest("web-2")).await.unwrap().into_inner();
    assert!(unknown.unknown && unknown.spec.unwrap().disks.len() == 2);
    assert_eq!(told(fabric.delete_guest(delete_with(DiskFate::Unspecified)).await).1, "DISK_FATE_NEEDED");
    fabric.delete_guest(delete_with(DiskFate::Delete)).await.unwrap();
    let order = v1::EndGuest { name: "web-2".into(), generation: 7, disks: DiskFate::Delete.into() };
    assert_eq!(h1.desired(|it| !it.end_guests.is_empty()).await.end_guests, [order]);
    controller.stop().await;
}
