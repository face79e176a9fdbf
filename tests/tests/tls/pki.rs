//! The CA's command, as an operator uses it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use crate::controller::{Controller, Directory, Pki, throughline};

#[test]
fn from_nothing_to_a_fabric() {
    let pki = Pki::init();
    let roles = pki.of("controller").join("roles");
    let first = fs::read_to_string(&roles).unwrap();
    assert_eq!(first.lines().last(), Some("admin admin"));
    fs::write(&roles, first + "alice viewer\n").unwrap();
    let controller = Controller::start(&pki.of("controller"));
    controller.ask(&pki.of("operator/admin"), &["host", "list"]).done();

    // Somebody else, for a short time, elsewhere.
    let out = Directory::new();
    let said = pki.run(&["issue", "operator/alice", "--days", "7", "--out", out.0.to_str().unwrap()]).done();
    assert!(said.stdout.contains("operator/alice expires on"), "{said:?}");
    controller.ask(&out.0, &["host", "list"]).done();
    let mode = fs::metadata(out.join("key.pem")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);

    // What was issued, and what became of it.
    pki.run(&["revoke", "operator/alice"]).done();
    let shown = pki.run(&["show", "-o", "json"]).done().json();
    let states: Vec<_> = shown["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["identity"].as_str().unwrap(), it["state"].as_str().unwrap(), it["old_ca"].as_bool().unwrap()))
        .collect();
    let expected =
        [("controller", "good", false), ("operator/admin", "good", false), ("operator/alice", "revoked", false)];
    assert_eq!(states, expected);
    let table = pki.run(&["show"]).done().stdout;
    assert!(table.starts_with("IDENTITY") && table.contains("revoked"), "{table}");
}

#[test]
fn what_it_will_not_do_it_says() {
    let pki = Pki::init();
    pki.run(&["init"]).failed(3, &["ca.pem exists", "CA_EXISTS"]);
    pki.run(&["issue", "controller"]).failed(3, &["has certificate", "rotate controller", "ALREADY_ISSUED"]);
    pki.run(&["rotate", "agent/h1"]).failed(4, &["nothing was issued to agent/h1", "NOT_ISSUED"]);
    pki.run(&["revoke", "00ff"]).failed(4, &["nothing was issued to 00ff"]);
    pki.run(&["rotate", "--ca", "--finish"]).failed(3, &["NO_CA_CHANGE"]);
    for wrong in [["issue", "h1"], ["issue", "agent/../h1"], ["issue", "root"]] {
        pki.run(&wrong).failed(2, &["invalid value"]);
    }
    pki.run(&["rotate"]).failed(2, &["required"]);

    let empty = Directory::new();
    throughline(&["pki", "show", "--dir", empty.0.to_str().unwrap()]).failed(4, &["ca.pem does not exist", "NO_CA"]);

    // A file that is damaged, or not kept secret, is named.
    let index = pki.0.join("index");
    let good = fs::read_to_string(&index).unwrap();
    fs::write(&index, good.clone() + "nonsense\n").unwrap();
    pki.run(&["show"]).failed(1, &["index: line 4", "PKI_CONTENT"]);
    fs::write(&index, good).unwrap();
    let key = pki.0.join("ca-key.pem");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    pki.run(&["issue", "agent/h1"]).failed(1, &["ca-key.pem", "mode 644"]);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    pki.run(&["issue", "agent/h1"]).done();
}

#[test]
fn an_operator_whose_key_others_can_read_is_told() {
    let pki = Pki::init();
    let controller = Controller::start(&pki.of("controller"));
    let admin = pki.of("operator/admin");
    fs::set_permissions(admin.join("key.pem"), Permissions::from_mode(0o604)).unwrap();
    controller.ask(&admin, &["host", "list"]).failed(1, &["may be read by others", "604", "NO_CREDENTIALS"]);
}

#[test]
fn commands_at_once_lose_nothing() {
    let pki = Pki::init();
    let hosts: Vec<_> = (0..8).map(|n| format!("agent/h{n}")).collect();
    std::thread::scope(|scope| {
        for host in &hosts {
            scope.spawn(|| pki.run(&["issue", host]).done());
        }
    });
    let shown = pki.run(&["show", "-o", "json"]).done().json();
    assert_eq!(shown["certificates"].as_array().unwrap().len(), 10);
}
