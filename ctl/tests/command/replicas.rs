//! Replicas: what is asked, what is shown, and which of them are late.

use serde_json::{Value, json};
use throughline_wire::status;
use tonic::Code;

use crate::{
    fake::{Answer, Controller},
    run::run,
};

fn replica(host: &str, lag_ms: Option<u64>) -> Value {
    let point = |number| json!({ "number": number, "at_ms": 1_709_251_199_000_u64 + number, "quiesced": number == 2 });
    let points = if lag_ms.is_some() { json!([point(1), point(2)]) } else { json!([]) };
    json!({ "guest": "db-1", "host": host, "every_ms": 60_000, "keep": 3, "bandwidth": 0, "points": points,
        "lag_ms": lag_ms, "copied": 0, "total": 0, "failure": null, "late_ms": 90_000, "target_lag_ms": 0, "test": null })
}

/// One with a test of its newest point.
fn tested(state: &str) -> Value {
    let mut replica = replica("h2", Some(500));
    let failure = if state == "FAILED" { json!({ "reason": "DISK_SPACE", "message": "no room" }) } else { json!(null) };
    let console = if state == "RUNNING" { "/state/serial.log" } else { "" };
    replica["test"] = json!({ "point": 2, "since_ms": 1_709_251_199_000_u64, "ends_ms": 1_709_251_499_000_u64,
        "state": state, "failure": failure, "console": console });
    replica
}

fn guest(state: &str, from: &str) -> Value {
    let port = json!({ "id": 7, "network": "blue", "mac": "02:00:00:00:00:01", "ips": ["10.0.0.10"] });
    let spec = json!({ "name": "db-1", "vcpus": 1, "queues": 1, "memory_kib": 262_136, "boot": { "kernel": "/k" }, "ports": [port] });
    json!({ "spec": spec, "host": "h2", "generation": 2, "state": state, "promoted_from": from, "detail": "no room" })
}

#[test]
fn a_replica_is_asked_for_as_said() {
    let fabric = Controller::start();
    for (flags, every_ms, target_lag_ms, keep, bandwidth) in [
        ("", 0, 0, 3, 0_u64),
        ("--every 5m --keep 12 --bandwidth 100MiB", 300_000, 0, 12, 100 << 20),
        ("--lag 30s", 0, 30_000, 3, 0),
    ] {
        fabric.says("create_replica", replica("h2", None));
        let ended = run(fabric.address, &format!("replica create db-1 --host h2 {flags} -o json")).with(0);
        assert_eq!(ended.json(), replica("h2", None));
        let asked = json!({ "guest": "db-1", "host": "h2", "every_ms": every_ms, "keep": keep, "bandwidth": bandwidth,
            "target_lag_ms": target_lag_ms });
        assert_eq!(fabric.asked("create_replica").pop(), Some(asked));
    }
    for wrong in [
        "",
        "--host h2 --every 0",
        "--host h2 --every 1m --lag 30s",
        "--host h2 --bandwidth 5Gb",
        "--host h2 --keep few",
    ] {
        run(fabric.address, &format!("replica create db-1 {wrong}")).with(2);
    }
}

#[test]
fn one_is_found_by_guest_and_host() {
    let fabric = Controller::start();
    let which = json!({ "guest": "db-1", "host": "h2" });
    fabric.says("get_replica", replica("h2", Some(12_300))).says("delete_replica", json!({}));
    let shown = run(fabric.address, "replica get db-1 --host h2").with(0).stdout;
    for line in [
        "every        60.0 s",
        "bandwidth    no limit",
        "lag          12.3 s",
        "late beyond  90.0 s",
        "point        1 2024-02-29 23:59:59Z as after a power cut",
        "point        2 2024-02-29 23:59:59Z quiesced",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    let deleted = run(fabric.address, "replica delete db-1 --host h2").with(0);
    assert_eq!(deleted.stdout, "replica of guest db-1 at host h2 deleted\n");
    assert_eq!([fabric.asked("get_replica"), fabric.asked("delete_replica")], [[which.clone()], [which]]);
    let unknown = status(Code::NotFound, "UNKNOWN_REPLICA", Some("host"), "there is none");
    fabric.answer("get_replica", Answer::Error(unknown));
    run(fabric.address, "replica get db-1 --host h2").with(4);
}

#[test]
fn who_is_late_is_seen_in_the_list() {
    let fabric = Controller::start();
    let mut failing = replica("h4", Some(600_000));
    failing["test"] = tested("ENDED")["test"].take();
    failing["failure"] = json!({ "reason": "NO_ROOM", "message": "no room" });
    failing["every_ms"] = json!(0);
    failing["target_lag_ms"] = json!(30_000);
    let mut first = replica("h3", None);
    (first["copied"], first["total"]) = (json!(1 << 30), json!(4_u64 << 30));
    let page = |replicas: &[&Value], next: &str| json!({ "replicas": replicas, "next_page_token": next });
    fabric.says("list_replicas", page(&[&tested("RUNNING")], "x")).says("list_replicas", page(&[&first, &failing], ""));
    let expected = "\
GUEST  HOST  RHYTHM             POINTS  NEWEST                LAG               UNDER WAY       TEST       FAILURE
db-1   h2    every 60.0 s       2 of 3  2024-02-29 23:59:59Z  500.0 ms          -               2 running  -
db-1   h3    every 60.0 s       0 of 3  -                     LATE, no point    1 GiB of 4 GiB  -          -
db-1   h4    target lag 30.0 s  2 of 3  2024-02-29 23:59:59Z  10 min 00 s LATE  -               -          NO_ROOM
";
    assert_eq!(run(fabric.address, "replica list --guest db-1").with(0).stdout, expected);
    let asked = fabric.asked("list_replicas");
    assert_eq!((&asked[0]["guest"], &asked[1]["page_token"]), (&json!("db-1"), &json!("x")));
}

#[test]
fn a_promotion_is_waited_for() {
    let fabric = Controller::start();
    for (flags, point, even_if_connected) in [("", 0, false), ("--point 41 --even-if-connected", 41, true)] {
        fabric.says("promote_replica", guest("STARTING", "h1")).says("get_guest", guest("RUNNING", "h1"));
        let ended = run(fabric.address, &format!("replica promote db-1 --host h2 {flags}")).with(0);
        assert!(ended.stdout.lines().any(|line| line == "promoted from  h1"), "{ended:?}");
        let asked = json!({ "guest": "db-1", "host": "h2", "point": point, "even_if_connected": even_if_connected });
        assert_eq!(fabric.asked("promote_replica").pop(), Some(asked));
    }
    fabric.says("promote_replica", guest("STOPPING", "h1")).says("get_guest", guest("STOPPED", "h1"));
    run(fabric.address, "replica promote db-1 --host h2").with(0);
    fabric.says("promote_replica", guest("STARTING", "h1")).says("get_guest", guest("FAILED", "h1"));
    let ended = run(fabric.address, "replica promote db-1 --host h2").with(1);
    assert!(ended.stderr.contains("no room (GUEST_FAILED)"), "{ended:?}");
    assert!(ended.stderr.contains("throughline replica promote db-1 --host h2 --point N"), "{ended:?}");
    let connected = status(Code::FailedPrecondition, "SOURCE_CONNECTED", Some("even_if_connected"), "h1 is connected");
    fabric.answer("promote_replica", Answer::Error(connected));
    let error = run(fabric.address, "replica promote db-1 --host h2 -o json").with(3).error();
    assert_eq!(error["reason"], json!("SOURCE_CONNECTED"));
    run(fabric.address, "replica promote db-1 --host h2 --point 0").with(2);
}

#[test]
fn the_way_back_leads_to_where_it_came_from() {
    let fabric = Controller::start();
    fabric.says("get_guest", guest("RUNNING", "h1")).says("create_replica", replica("h1", None));
    run(fabric.address, "replica reverse db-1 --every 5m").with(0);
    let asked =
        json!({ "guest": "db-1", "host": "h1", "every_ms": 300_000, "keep": 3, "bandwidth": 0, "target_lag_ms": 0 });
    assert_eq!(fabric.asked("create_replica"), [asked]);
    fabric.says("get_guest", guest("RUNNING", ""));
    let error = run(fabric.address, "replica reverse db-1 -o json").with(3).error();
    assert_eq!(error["reason"], json!("NEVER_PROMOTED"));
    assert_eq!(fabric.asked("create_replica").len(), 1);
}

#[test]
fn a_test_is_waited_for_and_ended() {
    let fabric = Controller::start();
    for (flags, point, for_ms) in [("", 0, 300_000), ("--point 2 --for 20m", 2, 1_200_000)] {
        fabric.says("test_replica", tested("STARTING")).says("get_replica", tested("RUNNING"));
        let shown = run(fabric.address, &format!("replica test db-1 --host h2 {flags}")).with(0).stdout;
        for line in [
            "test          running of point 2, since 2024-02-29 23:59:59Z, ends at 2024-03-01 00:04:59Z",
            "test console  /state/serial.log",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
        }
        let asked = json!({ "guest": "db-1", "host": "h2", "point": point, "for_ms": for_ms });
        assert_eq!(fabric.asked("test_replica").pop(), Some(asked));
    }
    fabric.says("end_replica_test", tested("ENDING")).says("get_replica", tested("ENDED"));
    let ended = run(fabric.address, "replica test db-1 --host h2 --end -o json").with(0).json();
    assert_eq!(ended["test"]["state"], json!("ENDED"));
    assert_eq!(fabric.asked("end_replica_test"), [json!({ "guest": "db-1", "host": "h2" })]);

    fabric.says("test_replica", tested("STARTING")).says("get_replica", tested("FAILED"));
    let failed = run(fabric.address, "replica test db-1 --host h2").with(1);
    assert!(failed.stderr.contains("no room (DISK_SPACE) (TEST_FAILED)"), "{failed:?}");
    fabric.says("test_replica", tested("STARTING"));
    run(fabric.address, "replica test db-1 --host h2 --no-wait").with(0);
    fabric.says("test_replica", tested("STARTING")).says("get_replica", replica("h2", Some(500)));
    run(fabric.address, "replica test db-1 --host h2").with(1);
    let busy = status(Code::FailedPrecondition, "TEST_UNDER_WAY", Some("host"), "it is being tested");
    fabric.answer("test_replica", Answer::Error(busy));
    run(fabric.address, "replica test db-1 --host h2").with(3);
    for wrong in
        ["", "--host h2 --for 0", "--host h2 --point 0", "--host h2 --end --point 2", "--host h2 --end --for 5m"]
    {
        run(fabric.address, &format!("replica test db-1 {wrong}")).with(2);
    }
}
