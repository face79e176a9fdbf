//! Networks, hosts, guests and endpoints: what is asked and what is shown.

use serde_json::{Value, json};

use crate::{fake::Controller, run::run};

fn guest(state: &str, detail: &str) -> Value {
    let port = json!({ "id": 7, "network": "blue", "mac": "02:00:00:00:00:01", "ips": ["10.0.0.10"] });
    let spec = json!({ "name": "web-1", "vcpus": 2, "queues": 2, "memory_kib": 262_136, "boot": { "kernel": "/k" }, "ports": [port] });
    json!({ "spec": spec, "host": "h1", "generation": 1, "state": state, "detail": detail })
}

const CREATE: &str =
    "guest create web-1 --network blue --ip 10.0.0.10 --host h1 --memory 262136KiB --vcpus 2 --queues 2 --kernel /k";

#[test]
fn json_is_the_protocols_message() {
    let fabric = Controller::start();
    let network = json!({ "name": "blue", "vni": 7001, "mtu": 1450 });
    fabric.says("create_network", network.clone());
    let ended = run(fabric.address, "network create blue --vni 7001 -o json").with(0);
    assert_eq!(ended.json(), network);
    assert_eq!(ended.stderr, "");
    assert_eq!(fabric.asked("create_network"), [json!({ "network": { "name": "blue", "vni": 7001, "mtu": 0 } })]);
}

#[test]
fn every_get_and_delete_asks_for_its_name() {
    let fabric = Controller::start();
    for noun in ["network", "host", "guest", "endpoint"] {
        fabric.says(&format!("get_{noun}"), json!({})).says(&format!("delete_{noun}"), json!({}));
        let mut deletes = json!({ "name": "x-1" });
        if noun == "guest" {
            deletes["disks"] = json!("UNSPECIFIED");
        }
        run(fabric.address, &format!("{noun} get x-1 -o json")).with(0).json();
        assert_eq!(fabric.asked(&format!("get_{noun}")), [json!({ "name": "x-1" })]);
        let deleted = run(fabric.address, &format!("{noun} delete x-1")).with(0);
        assert_eq!(deleted.stdout, format!("{noun} x-1 deleted\n"));
        assert_eq!(fabric.asked(&format!("delete_{noun}")), [deletes]);
    }
}

#[test]
fn lists_are_read_to_their_end() {
    let fabric = Controller::start();
    let page = |names: &[&str], next: &str| {
        let networks: Vec<_> = names.iter().map(|name| json!({ "name": name, "vni": 1, "mtu": 1450 })).collect();
        json!({ "networks": networks, "next_page_token": next })
    };
    fabric.says("list_networks", page(&["a", "b"], "b")).says("list_networks", page(&["c"], ""));
    let ended = run(fabric.address, "network list -o json").with(0);
    assert_eq!(ended.json(), page(&["a", "b", "c"], ""));
    let tokens: Vec<_> = fabric.asked("list_networks").iter().map(|request| request["page_token"].clone()).collect();
    assert_eq!(tokens, [json!(""), json!("b")]);
}

#[test]
fn lists_are_tables() {
    let fabric = Controller::start();
    let h1 = json!({
        "name": "h1", "vtep": "192.0.2.1", "connected": true, "memory_kib": 1 << 20, "memory_used_kib": 1 << 18,
        "accelerator": "tcg", "agent_version": "0.1.0",
    });
    let h2 = json!({ "name": "gateway", "peer_only": true });
    let other = json!({ "reason": "OTHER_FABRIC", "message": "of fabric x" });
    let h3 = json!({ "name": "h3", "peer_only": true, "refusal": other });
    fabric.says("list_hosts", json!({ "hosts": [h1, h2, h3] })).says("get_host", h3);
    let expected = "\
NAME     CONNECTED               VTEP       MEMORY USED       ACCELERATOR  AGENT
h1       yes                     192.0.2.1  256 MiB of 1 GiB  tcg          0.1.0
gateway  no                      -          runs no guests    -            -
h3       refused (OTHER_FABRIC)  -          runs no guests    -            -
";
    assert_eq!(run(fabric.address, "host list").with(0).stdout, expected);
    assert!(run(fabric.address, "host get h3").with(0).stdout.contains("of fabric x\n"));
}

#[test]
fn a_guest_the_record_does_not_know_is_shown_as_such() {
    let fabric = Controller::start();
    let mut unknown = guest("RUNNING", "the record does not know it");
    unknown["unknown"] = json!(true);
    fabric.says("list_guests", json!({ "guests": [unknown] }));
    assert!(run(fabric.address, "guest list").with(0).stdout.contains("running, unknown"));
}

#[test]
fn a_destination_that_is_gone_is_spoken_for() {
    let fabric = Controller::start();
    for (flag, word) in [("--guest-stays", "GUEST_STAYS"), ("--guest-left", "GUEST_LEFT")] {
        fabric.says("resolve_migration", json!({ "id": "m1" }));
        run(fabric.address, &format!("migration resolve m1 {flag}")).with(0);
        assert_eq!(fabric.asked("resolve_migration").pop(), Some(json!({ "id": "m1", "word": word })));
    }
    for wrong in ["", " --guest-stays --guest-left"] {
        run(fabric.address, &format!("migration resolve m1{wrong}")).with(2);
    }
}

#[test]
fn every_other_list_has_its_heading() {
    let fabric = Controller::start();
    for (noun, heading) in [("network", "VNI"), ("guest", "STATE"), ("endpoint", "MAC"), ("migration", "PHASE")] {
        fabric.says(&format!("list_{noun}s"), json!({}));
        let listed = run(fabric.address, &format!("{noun} list")).with(0).stdout;
        assert!(listed.contains(heading) && listed.lines().count() == 1, "{listed}");
    }
}

#[test]
fn a_guest_is_created_and_waited_for() {
    let fabric = Controller::start();
    fabric.says("create_guest", guest("UNSPECIFIED", ""));
    fabric.says("get_guest", guest("STARTING", "")).says("get_guest", guest("RUNNING", ""));
    let ended = run(fabric.address, &format!("{CREATE} --port network=red,ip=::1 --guest-agent -o json")).with(0);
    assert_eq!(ended.json()["state"], json!("RUNNING"), "one document: the guest as it runs");
    let spec = &fabric.asked("create_guest")[0]["spec"];
    assert_eq!((&spec["memory_kib"], &spec["vcpus"], &spec["queues"]), (&json!(262_136), &json!(2), &json!(2)));
    let networks: Vec<_> = spec["ports"].as_array().unwrap().iter().map(|port| port["network"].clone()).collect();
    assert_eq!(networks, ["blue", "red"], "the first card first");
    assert_eq!(spec["guest_agent"], true);
    assert_eq!(fabric.asked("get_guest").len(), 2);
}

#[test]
fn a_guest_is_not_waited_for_when_told_so() {
    let fabric = Controller::start();
    fabric.says("create_guest", guest("UNSPECIFIED", ""));
    let shown = run(fabric.address, &format!("{CREATE} --no-wait")).with(0).stdout;
    for line in ["state       not reported", "memory      256 MiB", "port        blue 02:00:00:00:00:01 10.0.0.10"] {
        assert!(shown.lines().any(|shown| shown == line), "{shown}");
    }
    assert!(fabric.asked("get_guest").is_empty());
}

#[test]
fn a_guest_that_fails_is_an_error() {
    let fabric = Controller::start();
    fabric.says("create_guest", guest("STARTING", "")).says("get_guest", guest("FAILED", "no such kernel /k"));
    let ended = run(fabric.address, CREATE).with(1);
    assert!(ended.stdout.contains("failed"), "{ended:?}");
    assert!(ended.stderr.starts_with("error: start guest web-1: no such kernel /k (GUEST_FAILED)\n"), "{ended:?}");
    assert!(ended.stderr.contains("throughline guest delete web-1"), "{ended:?}");
}

#[test]
fn a_guest_that_does_not_come_up_ends_the_wait() {
    let fabric = Controller::start();
    fabric.says("create_guest", guest("STARTING", ""));
    for _ in 0..20 {
        fabric.says("get_guest", guest("STARTING", ""));
    }
    let ended = run(fabric.address, &format!("{CREATE} --wait-timeout 300ms -o json")).with(6);
    assert_eq!(ended.error()["reason"], json!("WAIT_TIMEOUT"));
    assert_eq!(ended.stdout, "");
}

#[test]
fn a_guests_disks_are_asked_for_and_shown() {
    let fabric = Controller::start();
    let disks = json!([
        { "name": "root", "size": 10_u64 << 30, "format": "QCOW2", "bus": "UNSPECIFIED", "image": "/srv/base.qcow2", "over": true,
          "place": null },
        { "name": "data", "size": 64 << 20, "format": "UNSPECIFIED", "bus": "VIRTIO_SCSI", "image": "", "over": false,
          "place": { "shared": "nfs1" } },
    ]);
    let mut made = guest("RUNNING", "");
    made["spec"]["disks"] = disks.clone();
    fabric.says("create_guest", made);
    let line = "--disk name=root,size=10G,format=qcow2,over=/srv/base.qcow2 --disk name=data,size=64,bus=virtio-scsi,shared=nfs1";
    let shown = run(fabric.address, &format!("{CREATE} {line}")).with(0).stdout;
    assert_eq!(fabric.asked("create_guest")[0]["spec"]["disks"], disks);
    for line in ["root 10 GiB qcow2 virtio-blk over /srv/base.qcow2", "data 64 MiB raw virtio-scsi shared nfs1"] {
        assert!(shown.lines().any(|shown| shown == format!("disk        {line}")), "{shown}");
    }
    let refused = run(fabric.address, &format!("{CREATE} --disk name=root")).with(2);
    assert!(refused.stderr.contains("size= is missing"), "{refused:?}");
}

#[test]
fn a_guest_is_stopped_and_started() {
    let fabric = Controller::start();
    for (flags, stop) in [
        ("", json!({ "cut_after_ms": null })),
        ("--cut-after 0", json!({ "cut_after_ms": 0 })),
        ("--cut-after 1m", json!({ "cut_after_ms": 60_000 })),
    ] {
        fabric.says("stop_guest", guest("STOPPING", "")).says("get_guest", guest("STOPPED", ""));
        let ended = run(fabric.address, &format!("guest stop web-1 {flags} -o json")).with(0);
        assert_eq!(ended.json()["state"], json!("STOPPED"));
        assert_eq!(fabric.asked("stop_guest").pop(), Some(json!({ "name": "web-1", "stop": stop })));
    }
    fabric.says("stop_guest", guest("STOPPING", ""));
    for _ in 0..20 {
        fabric.says("get_guest", guest("STOPPING", ""));
    }
    let ended = run(fabric.address, "guest stop web-1 --wait-timeout 300ms").with(6);
    let told = ["it did not shut down within 300.0 ms", "--cut-after 0"];
    assert!(told.iter().all(|words| ended.stderr.contains(words)), "{ended:?}");

    fabric.says("start_guest", guest("STARTING", "")).says("get_guest", guest("RUNNING", ""));
    run(fabric.address, "guest start web-1").with(0);
    fabric.says("start_guest", guest("FAILED", "no such kernel /k"));
    let ended = run(fabric.address, "guest start web-1").with(1);
    assert!(ended.stderr.starts_with("error: start guest web-1: no such kernel /k (GUEST_FAILED)\n"), "{ended:?}");
    assert!(ended.stderr.contains("throughline guest stop web-1"), "{ended:?}");
}

#[test]
fn what_becomes_of_disks_is_said() {
    let fabric = Controller::start();
    for (flag, fate) in [("--delete-disks", "DELETE"), ("--keep-disks", "KEEP")] {
        fabric.says("delete_guest", json!({}));
        run(fabric.address, &format!("guest delete web-1 {flag}")).with(0);
        assert_eq!(fabric.asked("delete_guest").pop(), Some(json!({ "name": "web-1", "disks": fate })));
    }
    run(fabric.address, "guest delete web-1 --delete-disks --keep-disks").with(2);
}

#[test]
fn an_endpoint_is_created() {
    let fabric = Controller::start();
    fabric.says("create_endpoint", json!({ "name": "gw0", "host": "h3", "prefix_len": 24 }));
    let line = "endpoint create gw0 --host h3 --network blue --mac 02:00:00:00:00:99 --ip 10.0.0.1 --ip fd00::1";
    run(fabric.address, line).with(0);
    let endpoint = fabric.asked("create_endpoint")[0]["endpoint"].clone();
    assert_eq!(endpoint["port"]["ips"], json!(["10.0.0.1", "fd00::1"]));
    assert_eq!((&endpoint["host"], &endpoint["prefix_len"]), (&json!("h3"), &json!(0)));
}
