//! Wrong input over the operator's command: told clearly, and nothing half-made stays.

use serde_json::Value;

use crate::lab::{ENDPOINT_ADDRESS, ENDPOINT_MAC, Lab};

/// A command, the exit code it must end with, the reason and the field it must name.
type Case<'a> = (Vec<&'a str>, i32, &'a str, &'a str);

#[test]
fn wrong_input_is_refused_and_leaves_nothing() {
    let lab = Lab::up("input");
    let before = everything(&lab);
    let long = "n".repeat(10 << 10);
    for (arguments, code, reason, field) in cases(&long) {
        let answer = lab.throughline(&arguments);
        answer.refused(code, reason);
        assert_eq!(answer.error["field"], field, "the field at fault: {answer:?}");
        assert_eq!(everything(&lab), before, "something stayed after: {answer:?}");
    }
}

fn cases(long: &str) -> Vec<Case<'_>> {
    vec![
        (vec!["network", "create", "n", "--vni", "16777216"], 5, "INVALID_VNI", "network.vni"),
        (vec!["network", "create", "n", "--vni", "0"], 5, "INVALID_VNI", "network.vni"),
        (vec!["network", "create", "n", "--vni", "7001"], 3, "VNI_IN_USE", "network.vni"),
        (vec!["network", "create", "a/b", "--vni", "7002"], 5, "INVALID_NAME", "network.name"),
        (vec!["network", "create", long, "--vni", "7002"], 5, "INVALID_NAME", "network.name"),
        (guest("../g", "h1", "64", "02:00:00:00:00:99", "10.7.0.99"), 5, "INVALID_NAME", "spec.name"),
        (guest(long, "h1", "64", "02:00:00:00:00:99", "10.7.0.99"), 5, "INVALID_NAME", "spec.name"),
        (guest("g", "h1", "64", "02:00:00:00:00", "10.7.0.99"), 5, "INVALID_MAC", "spec.ports[0].mac"),
        (guest("g", "h1", "64", "01:00:5e:00:00:01", "10.7.0.99"), 5, "INVALID_MAC", "spec.ports[0].mac"),
        (guest("g", "h1", "64", ENDPOINT_MAC, "10.7.0.99"), 3, "MAC_IN_USE", "spec.ports[0].mac"),
        (guest("g", "h1", "64", "02:00:00:00:00:99", "10.7.0"), 5, "INVALID_ADDRESS", "spec.ports[0].ips[0]"),
        (guest("g", "h1", "64", "02:00:00:00:00:99", ENDPOINT_ADDRESS), 3, "IP_IN_USE", "spec.ports[0].ips[0]"),
        (guest("g", "h1", "0", "02:00:00:00:00:99", "10.7.0.99"), 5, "OUT_OF_RANGE", "spec.memory_kib"),
        (guest("g", "h1", "1000000000MiB", "02:00:00:00:00:99", "10.7.0.99"), 5, "OUT_OF_RANGE", "spec.memory_kib"),
        (guest("g", "h9", "64", "02:00:00:00:00:99", "10.7.0.99"), 4, "UNKNOWN_HOST", "host"),
        (guest("g", "peer", "64", "02:00:00:00:00:99", "10.7.0.99"), 3, "HOST_PEER_ONLY", "host"),
        (vec!["migrate", "g", "--to", "h2"], 4, "UNKNOWN_GUEST", "guest"),
        (vec!["migrate", "g", "--to", "a/b"], 5, "INVALID_NAME", "destination_host"),
        (on_stall(&["post-copy"]), 5, "POST_COPY_UNSUPPORTED", "limits.on_stall"),
        (on_stall(&["longer-pause"]), 5, "MISSING_FIELD", AT_MOST),
        (on_stall(&["longer-pause", "--longest-pause-at-most", "300"]), 5, "OUT_OF_RANGE", AT_MOST),
        (on_stall(&["longer-pause", "--longest-pause-at-most", "60001"]), 5, "OUT_OF_RANGE", AT_MOST),
        (on_stall(&["throttle", "--longest-pause-at-most", "900"]), 5, "INVALID_VALUE", AT_MOST),
        (vec!["migration", "cancel", "none"], 4, "UNKNOWN_MIGRATION", "id"),
    ]
}

fn guest<'a>(name: &'a str, host: &'a str, memory: &'a str, mac: &'a str, ip: &'a str) -> Vec<&'a str> {
    let create = ["guest", "create", name, "--host", host, "--memory", memory, "--kernel", "/boot/vmlinuz"];
    [&create[..], &["--network", "blue", "--mac", mac, "--ip", ip]].concat()
}

const AT_MOST: &str = "limits.longest_pause_at_most_ms";

fn on_stall<'a>(policy: &[&'a str]) -> Vec<&'a str> {
    [&["migrate", "g", "--to", "h2", "--on-stall"], policy].concat()
}

/// All that is recorded; of hosts the names, for their heartbeats go on.
fn everything(lab: &Lab) -> Vec<Value> {
    let list = |what| lab.throughline(&[what, "list"]).done();
    let mut hosts = list("host")["hosts"].take();
    for host in hosts.as_array_mut().unwrap() {
        *host = host["name"].take();
    }
    vec![hosts, list("network"), list("endpoint"), list("guest"), list("migration")]
}
