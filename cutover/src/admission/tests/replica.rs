//! Replicas: kept, deleted, promoted, and what they are in the way of.

use std::collections::BTreeSet;

use super::*;
use crate::{MOST_AT_A_HOST, MOST_OF_A_GUEST};

fn name(guest: &str, host: &str) -> ReplicaName {
    ReplicaName { guest: guest.parse().unwrap(), host: host.parse().unwrap() }
}

/// web-1 with a disk on h1, a replica of it with points 3 to 5 at h2, and h3; h1 is gone.
fn failed() -> Fabric {
    let mut fabric = fabric();
    fabric.hosts.push(host_facts("h3", 3));
    fabric.guests[0].1.disks = 1;
    fabric.hosts[0].connected = false;
    fabric.replicas = vec![ReplicaFacts { name: name("web-1", "h2"), points: vec![3, 4, 5], tested: false }];
    fabric
}

fn promote(fabric: &Fabric) -> Result<Failover, Denial> {
    promote_replica(fabric, &wish())
}

fn wish() -> PromotionRequest {
    PromotionRequest { replica: name("web-1", "h2"), point: None, even_if_connected: false }
}

#[test]
fn a_replica_is_of_a_disk_and_elsewhere() {
    let mut fabric = failed();
    let create = |fabric: &Fabric, guest: &str, host: &str| create_replica(fabric, &name(guest, host));
    denied(create(&fabric, "web-1", "h2"), "REPLICA_EXISTS", "host");
    fabric.replicas.clear();
    assert_eq!(create(&fabric, "web-1", "h3"), Ok(()));
    fabric.hosts[3].connected = false;
    assert_eq!(create(&fabric, "web-1", "h3"), Ok(()), "it is kept as soon as its host is there");
    denied(create(&fabric, "web-9", "h3"), "UNKNOWN_GUEST", "guest");
    denied(create(&fabric, "web-1", "nowhere"), "UNKNOWN_HOST", "host");
    denied(create(&fabric, "web-1", "h1"), "SAME_HOST", "host");
    denied(create(&fabric, "web-1", "gw"), "HOST_PEER_ONLY", "host");
    fabric.guests[0].1.disks = 0;
    denied(create(&fabric, "web-1", "h3"), "GUEST_HAS_NO_DISK", "guest");
    fabric.guests[0].1.migration = Some("m-1".into());
    denied(create(&fabric, "web-1", "h3"), "ALREADY_MIGRATING", "guest");
}

#[test]
fn replicas_are_so_many() {
    let mut fabric = failed();
    let facts = |guest: String, host: String| ReplicaFacts { name: name(&guest, &host), points: vec![], tested: false };
    fabric.replicas = (0..MOST_OF_A_GUEST).map(|n| facts("web-1".into(), format!("x{n}"))).collect();
    denied(create_replica(&fabric, &name("web-1", "h3")), "TOO_MANY_REPLICAS", "host");
    fabric.replicas = (0..MOST_AT_A_HOST).map(|n| facts(format!("g{n}"), "h3".into())).collect();
    denied(create_replica(&fabric, &name("web-1", "h3")), "TOO_MANY_REPLICAS", "host");
    assert_eq!(create_replica(&fabric, &name("web-1", "h2")), Ok(()));
}

#[test]
fn a_failover_needs_a_point_and_a_host_that_can_run_the_guest() {
    let mut fabric = failed();
    let failover = |point| Ok(Failover { point, after: BTreeSet::new() });
    assert_eq!(promote(&fabric), failover(5));
    let to = |point| promote_replica(&failed(), &PromotionRequest { point: Some(point), ..wish() });
    assert_eq!([to(3), to(4)], [failover(3), failover(4)]);
    denied(to(2), "UNKNOWN_POINT", "point");
    let of = |replica| promote_replica(&failed(), &PromotionRequest { replica, ..wish() });
    denied(of(name("web-9", "h2")), "UNKNOWN_GUEST", "guest");
    denied(of(name("web-1", "h3")), "UNKNOWN_REPLICA", "host");
    fabric.replicas[0].points.clear();
    denied(promote(&fabric), "NO_POINT", "point");
    denied(promote_replica(&fabric, &PromotionRequest { point: Some(3), ..wish() }), "NO_POINT", "point");
    fabric.deleting = vec![(host("h2"), "web-1".parse().unwrap())];
    denied(promote(&fabric), "DISKS_BEING_DELETED", "guest");
    fabric.hosts[1].memory_used_kib = fabric.hosts[1].memory_kib;
    denied(promote(&fabric), "NOT_ENOUGH_MEMORY", "host");
    fabric.hosts[1].connected = false;
    denied(promote(&fabric), "HOST_DOWN", "host");
    fabric.guests[0].1.migration = Some("m-1".into());
    denied(promote(&fabric), "ALREADY_MIGRATING", "guest");
    let told = promote(&fabric).unwrap_err().to_string();
    assert!(told.contains("cancel it") && told.contains("resolve it"), "{told}");
}

#[test]
fn whoever_has_the_guest_and_can_be_asked_is_in_the_way_or_waited_for() {
    let mut fabric = failed();
    let anyway = PromotionRequest { even_if_connected: true, ..wish() };
    let after = |fabric: &Fabric| promote_replica(fabric, &anyway).expect("it may").after;
    assert_eq!(after(&fabric), BTreeSet::new());
    fabric.hosts[0].connected = true;
    denied(promote(&fabric), "SOURCE_CONNECTED", "even_if_connected");
    assert_eq!(after(&fabric), BTreeSet::from([host("h1")]));
    fabric.ending = vec![host("h3")];
    assert_eq!(after(&fabric), BTreeSet::from([host("h1"), host("h3")]));
    fabric.hosts[0].connected = false;
    denied(promote(&fabric), "SOURCE_CONNECTED", "even_if_connected");
    fabric.ending = vec![host("h2")];
    denied(promote(&fabric), "COPY_NOT_ENDED", "host");
    denied(promote_replica(&fabric, &anyway), "COPY_NOT_ENDED", "host");
}

#[test]
fn what_did_not_come_up_is_promoted_again() {
    let mut fabric = failed();
    fabric.guests[0].1.host = host("h2");
    fabric.hosts[1].memory_used_kib = fabric.hosts[1].memory_kib;
    assert_eq!(promote(&fabric).map(|it| it.point), Ok(5), "its room is its own");
    denied(delete_replica(&fabric, &name("web-1", "h2")), "REPLICA_PROMOTED", "host");
    let delete = |fabric: &Fabric| delete_guest(fabric, &"web-1".parse().unwrap(), Some(DiskFate::Delete));
    assert_eq!(delete(&fabric), Ok(DiskFate::Delete), "the replica goes as its disks");
    fabric.replicas.push(ReplicaFacts { name: name("web-1", "h3"), points: vec![], tested: false });
    denied(delete(&fabric), "REPLICA_EXISTS", "name");
}

#[test]
fn a_replica_is_in_the_way_of_its_guest() {
    let mut fabric = failed();
    fabric.hosts[0].connected = true;
    denied(delete_guest(&fabric, &"web-1".parse().unwrap(), Some(DiskFate::Keep)), "REPLICA_EXISTS", "name");
    denied(migrate(&fabric, &request(Some("h2")), None), "REPLICA_AT_DESTINATION", "destination_host");
    let Ok(Verdict::Admitted { destination, .. }) = migrate(&fabric, &request(None), None) else {
        panic!("another is chosen")
    };
    assert_eq!(destination, host("h3"));
    assert_eq!(delete_replica(&fabric, &name("web-1", "h2")), Ok(()));
    denied(delete_replica(&fabric, &name("web-1", "h3")), "UNKNOWN_REPLICA", "host");
    fabric.replicas.clear();
    assert_eq!(delete_guest(&fabric, &"web-1".parse().unwrap(), Some(DiskFate::Keep)), Ok(DiskFate::Keep));
}

#[test]
fn a_test_needs_what_a_failover_would_and_leaves_the_guest_alone() {
    let mut fabric = failed();
    fabric.hosts[0].connected = true;
    let wish = || TestRequest { replica: name("web-1", "h2"), point: None, for_ms: 300_000 };
    let test = |fabric: &Fabric| test_replica(fabric, &wish());
    assert_eq!(test(&fabric), Ok(5), "the guest's host is connected, as ever");
    fabric.guests[0].1.migration = Some("m-1".into());
    assert_eq!(test(&fabric), Ok(5), "nor is its moving in the way");
    assert_eq!(test_replica(&fabric, &TestRequest { point: Some(3), ..wish() }), Ok(3));
    denied(test_replica(&fabric, &TestRequest { point: Some(2), ..wish() }), "UNKNOWN_POINT", "point");
    let of = |guest, host| test_replica(&failed(), &TestRequest { replica: name(guest, host), ..wish() });
    denied(of("web-9", "h2"), "UNKNOWN_GUEST", "guest");
    denied(of("web-1", "h3"), "UNKNOWN_REPLICA", "host");
    denied(end_replica_test(&fabric, &name("web-1", "h2")), "NO_TEST", "host");
    denied(end_replica_test(&fabric, &name("web-1", "h3")), "UNKNOWN_REPLICA", "host");

    fabric.replicas[0].points.clear();
    denied(test(&fabric), "NO_POINT", "point");
    fabric.hosts[1].memory_used_kib = fabric.hosts[1].memory_kib;
    denied(test(&fabric), "NOT_ENOUGH_MEMORY", "host");
    fabric.hosts[1].connected = false;
    denied(test(&fabric), "HOST_DOWN", "host");
    fabric.replicas[0].tested = true;
    denied(test(&fabric), "TEST_UNDER_WAY", "host");
    assert_eq!(end_replica_test(&fabric, &name("web-1", "h2")), Ok(()));
    fabric.guests[0].1.host = host("h2");
    denied(test(&fabric), "REPLICA_PROMOTED", "host");
}

#[test]
fn a_test_is_in_no_failovers_way() {
    let mut fabric = failed();
    fabric.replicas[0].tested = true;
    fabric.hosts[1].memory_used_kib = fabric.hosts[1].memory_kib;
    assert_eq!(promote(&fabric).map(|it| it.point), Ok(5), "it has the room that the test had");
    assert_eq!(delete_replica(&fabric, &name("web-1", "h2")), Ok(()));
}
