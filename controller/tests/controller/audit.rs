//! The audit log, as an auditor reads it.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};
use throughline_controller::Config;
use throughline_wire::v1::{self, Role, Step, controller_message::Message as Down};

use crate::support::*;

const IDENTITIES: [&str; 4] = ["operator/vera", "operator/otto", "operator/ada", "agent/h1"];

async fn controller(state: &StateDir) -> Controller {
    state.make();
    let roles = state.0.join("roles");
    fs::write(&roles, "vera viewer\notto operator\nada admin\n").unwrap();
    let heartbeat = std::time::Duration::from_millis(200);
    Controller::with_doors(Config { roles: Some(roles), heartbeat, ..Config::new(&state.0) }, &IDENTITIES).await
}

/// Every line, without the time, which is checked here, and the port callers came from.
fn lines(state: &StateDir) -> Vec<Value> {
    let text = fs::read_to_string(state.0.join("audit.log")).unwrap();
    let whole = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let stripped = whole.map(|mut line: Value| {
        let object = line.as_object_mut().unwrap();
        let at = object.remove("at").unwrap();
        assert!(at.as_str().unwrap().ends_with('Z'), "{at}");
        if let Some(from) = object.remove("from") {
            assert!(from.as_str().unwrap().starts_with("127.0.0.1:"), "{from}");
        }
        line
    });
    stripped.collect()
}

#[tokio::test]
async fn deeds_and_refusals_are_written_before_the_answer() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let mut ada = controller.fabric_as("operator/ada").await;
    ada.create_network(blue()).await.unwrap();
    let mut expected =
        vec![json!({ "who": "operator/ada", "did": "CreateNetwork", "network": "blue", "outcome": "DONE" })];
    assert_eq!(lines(&state), expected, "it is there when the answer is");
    ada.create_network(blue()).await.unwrap_err();
    expected.push(json!({ "who": "operator/ada", "did": "CreateNetwork", "network": "blue", "outcome": "REFUSED",
        "reason": "NAME_IN_USE" }));
    let forged = "x\"}\n{\"at\":\"\",\"who\":\"operator/ada\",\"did\":\"DeleteHost\"}";
    ada.delete_network(v1::DeleteNetworkRequest { name: forged.into() }).await.unwrap_err();
    expected
        .push(json!({ "who": "operator/ada", "did": "DeleteNetwork", "outcome": "REFUSED", "reason": "INVALID_NAME" }));
    ada.cancel_migration(v1::CancelMigrationRequest { id: forged.into() }).await.unwrap_err();
    expected.push(json!({ "who": "operator/ada", "did": "CancelMigration", "outcome": "REFUSED",
        "reason": "UNKNOWN_MIGRATION" }));
    ada.delete_guest(v1::DeleteGuestRequest { name: "db-1".into(), disks: v1::DiskFate::Delete.into() })
        .await
        .unwrap_err();
    expected.push(json!({ "who": "operator/ada", "did": "DeleteGuest", "guest": "db-1", "disks": "DELETE",
        "outcome": "REFUSED", "reason": "UNKNOWN_GUEST" }));
    let replica = v1::PromoteReplicaRequest { guest: "db-1".into(), host: "h2".into(), ..Default::default() };
    ada.promote_replica(replica).await.unwrap_err();
    expected.push(json!({ "who": "operator/ada", "did": "PromoteReplica", "guest": "db-1", "host": "h2",
        "outcome": "REFUSED", "reason": "UNKNOWN_GUEST" }));
    ada.test_replica(v1::TestReplicaRequest { guest: "db-1".into(), host: "h2".into(), ..Default::default() })
        .await
        .unwrap_err();
    expected.push(json!({ "who": "operator/ada", "did": "TestReplica", "guest": "db-1", "host": "h2",
        "outcome": "REFUSED", "reason": "UNKNOWN_GUEST" }));
    ada.end_replica_test(v1::EndReplicaTestRequest { guest: "db-1".into(), host: "h2".into() }).await.unwrap_err();
    expected.push(json!({ "who": "operator/ada", "did": "EndReplicaTest", "guest": "db-1", "host": "h2",
        "outcome": "REFUSED", "reason": "UNKNOWN_REPLICA" }));
    ada.list_networks(v1::ListNetworksRequest::default()).await.unwrap();
    assert_eq!(lines(&state), expected, "who looks is not written down");
    let mode = fs::metadata(state.0.join("audit.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let mut vera = controller.fabric_as("operator/vera").await;
    for _ in 0..5 {
        vera.create_host(v1::CreateHostRequest { name: "h9".into() }).await.unwrap_err();
    }
    ada.create_host(v1::CreateHostRequest { name: "h9".into() }).await.unwrap();
    expected
        .push(json!({ "who": "operator/vera", "did": "CreateHost", "outcome": "REFUSED", "reason": "ROLE_TOO_LOW" }));
    expected.push(json!({ "who": "operator/ada", "did": "CreateHost", "host": "h9", "outcome": "DONE" }));
    assert_eq!(lines(&state), expected, "a refusal that repeats is not written again and again");
    controller.stop().await;
    expected.push(json!({ "who": "operator/vera", "did": "CreateHost", "outcome": "REFUSED", "reason": "ROLE_TOO_LOW",
        "repeated": 4 }));
    assert_eq!(lines(&state), expected, "it is counted");
}

#[tokio::test]
async fn a_migration_is_whose_it_was() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let (_, [_h1, mut h2, _h3]) = controller.three_hosts().await;
    let before = lines(&state).len();
    let mut otto = controller.fabric_as("operator/otto").await;
    let asked = otto.migrate_guest(move_web_1("r-1", "h2")).await.unwrap().into_inner();
    assert_eq!(asked.requested_by, "otto");
    let Down::Expect(_) = h2.order().await else { panic!("the destination is told first") };
    let mut ada = controller.fabric_as("operator/ada").await;
    ada.cancel_migration(v1::CancelMigrationRequest { id: asked.id.clone() }).await.unwrap();
    h2.news(&asked.id, Role::Destination, Step::Aborted).await;
    let get = || v1::GetMigrationRequest { id: asked.id.clone() };
    while otto.get_migration(get()).await.unwrap().into_inner().ended_at_ms == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let listed = otto.list_migrations(v1::ListMigrationsRequest::default()).await.unwrap().into_inner().migrations;
    assert_eq!(listed[0].requested_by, "otto", "not who cancelled it");
    controller.stop().await;
    let id = &asked.id;
    let expected = [
        json!({ "who": "operator/otto", "did": "MigrateGuest", "guest": "web-1", "migration": id, "destination": "h2",
            "outcome": "DONE" }),
        json!({ "who": "operator/ada", "did": "CancelMigration", "migration": id, "outcome": "DONE" }),
        json!({ "who": "operator/otto", "did": "Migration", "guest": "web-1", "migration": id, "source": "h1",
            "destination": "h2", "outcome": "ABORTED", "reason": "CANCELLED" }),
    ];
    assert_eq!(lines(&state)[before..], expected);

    let again = self::controller(&state).await;
    let kept = again.fabric_as("operator/vera").await.get_migration(get()).await.unwrap().into_inner();
    assert_eq!(kept.requested_by, "otto", "the record keeps it");
    again.stop().await;
}

#[tokio::test]
async fn nothing_is_changed_that_cannot_be_written_down() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let mut ada = controller.fabric_as("operator/ada").await;
    let log = state.0.join("audit.log");
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    ada.create_network(blue()).await.expect("that it cannot be written shows only now");
    let host = || v1::CreateHostRequest { name: "h9".into() };
    let refused = told(ada.create_host(host()).await);
    assert_eq!((refused.0, refused.1.as_str()), (tonic::Code::Unavailable, "AUDIT_UNWRITABLE"));
    ada.list_hosts(v1::ListHostsRequest::default()).await.expect("looking is possible");
    fs::remove_dir(&log).unwrap();
    let began = std::time::Instant::now();
    while let Err(refused) = ada.create_host(host()).await {
        assert!(began.elapsed() < PATIENCE, "{refused}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let done: Vec<_> = lines(&state).iter().map(|line| line["did"].clone()).collect();
    assert_eq!(done, ["CreateNetwork", "CreateHost"], "what could not be written is written first");
    controller.stop().await;
}

#[tokio::test]
async fn an_agent_that_attaches_is_written_down() {
    let state = StateDir::new();
    let controller = controller(&state).await;
    let _h1 = Agent::connect(controller.door("agent/h1"), hello("h1", 1)).await.unwrap();
    Agent::connect(controller.door("agent/h1"), hello("h2", 2)).await.map(|_| ()).unwrap_err();
    controller.stop().await;
    let expected = [
        json!({ "who": "agent/h1", "did": "Attach", "host": "h1", "outcome": "DONE" }),
        json!({ "who": "agent/h1", "did": "Attach", "host": "h2", "outcome": "REFUSED", "reason": "NOT_YOUR_HOST" }),
    ];
    assert_eq!(lines(&state), expected);
}
