//! Who may do what: every method, called by every kind of caller, over real gRPC.

use std::{fs, path::PathBuf, time::Duration};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use throughline_controller::{Config, RolesError, ServeError, serve, serve_connections};
use throughline_wire::{DESCRIPTORS, Explanation, v1};
use tokio::{net::TcpListener, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::support::*;

const LOOKS: [&str; 13] = [
    "GetNetwork",
    "ListNetworks",
    "GetHost",
    "ListHosts",
    "GetGuest",
    "ListGuests",
    "GetEndpoint",
    "ListEndpoints",
    "GetReplica",
    "ListReplicas",
    "GetMigration",
    "ListMigrations",
    "WatchMigration",
];
const MOVES: [&str; 7] =
    ["MigrateGuest", "CancelMigration", "StopGuest", "StartGuest", "CreateReplica", "TestReplica", "EndReplicaTest"];
const CHANGES: [&str; 11] = [
    "CreateNetwork",
    "DeleteNetwork",
    "CreateHost",
    "DeleteHost",
    "CreateGuest",
    "DeleteGuest",
    "CreateEndpoint",
    "DeleteEndpoint",
    "DeleteReplica",
    "PromoteReplica",
    "ResolveMigration",
];
const ROLES: &str = "vera viewer\notto operator\nada admin\n";
const CALLERS: [&str; 7] =
    ["operator/vera", "operator/otto", "operator/ada", "operator/nemo", "agent/h1", "controller", ""];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Viewers,
    Operators,
    Admins,
    Agents,
    Everybody,
}

fn methods() -> Vec<(String, For)> {
    let fabric = |names: &[&str], who: For| {
        names.iter().map(move |name| (format!("/throughline.v1.Fabric/{name}"), who)).collect::<Vec<_>>()
    };
    let mut all = fabric(&LOOKS, For::Viewers);
    all.extend(fabric(&MOVES, For::Operators));
    all.extend(fabric(&CHANGES, For::Admins));
    all.push(("/throughline.v1.AgentLink/Attach".into(), For::Agents));
    all.push(("/grpc.health.v1.Health/Check".into(), For::Everybody));
    all.push(("/grpc.health.v1.Health/Watch".into(), For::Everybody));
    all.push(("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".into(), For::Viewers));
    all
}

/// Why `caller` may not call a method of this kind; `None`: it may.
fn refusal(caller: &str, method: For) -> Option<&'static str> {
    match (caller, method) {
        ("", _) | (_, For::Everybody) | ("agent/h1", For::Agents) => None,
        (_, For::Agents) => Some("NOT_AN_AGENT"),
        ("agent/h1" | "controller", _) => Some("NOT_AN_OPERATOR"),
        ("operator/nemo", _) => Some("NO_ROLE"),
        ("operator/vera", For::Viewers) | ("operator/otto", For::Viewers | For::Operators) | ("operator/ada", _) => {
            None
        }
        _ => Some("ROLE_TOO_LOW"),
    }
}

/// Calls a method with an empty message. A stream counts as answered once it is open.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let (path, codec) = (path.parse().unwrap(), ProstCodec::<(), ()>::default());
    let answer = client.server_streaming(Request::new(()), path, codec);
    let mut answer = timeout(PATIENCE, answer).await.expect("an answer in time")?.into_inner();
    match timeout(Duration::from_millis(50), answer.message()).await {
        Ok(first) => first.map(|_| ()),
        Err(_) => Ok(()),
    }
}

fn roles_file(state: &StateDir, text: &str) -> PathBuf {
    state.make();
    let path = state.0.join("roles");
    fs::write(&path, text).unwrap();
    path
}

fn config(state: &StateDir) -> Config {
    Config { roles: Some(roles_file(state, ROLES)), ..Config::new(&state.0) }
}

#[tokio::test]
async fn every_method_is_for_whom_it_should_be() {
    let state = StateDir::new();
    let controller = Controller::with_doors(config(&state), &CALLERS[..6]).await;
    for caller in CALLERS {
        let channel = controller.channel_as(caller).await;
        for (path, method) in methods() {
            let answer = call(&channel, &path).await;
            let told = answer.as_ref().err().map(|status| (status.code(), Explanation::from(status)));
            let barred =
                told.as_ref().filter(|(code, _)| matches!(code, Code::PermissionDenied | Code::Unauthenticated));
            let reason = barred.map(|(_, why)| why.reason.as_str());
            assert_eq!(reason, refusal(caller, method), "{caller:?} calls {path}: {told:?}");
            if let Some((code, why)) = barred {
                assert_eq!(*code, Code::PermissionDenied, "{path}");
                let name = path.rsplit('/').next().unwrap();
                assert!(why.message.contains(caller) && why.message.contains(name), "{}", why.message);
            }
        }
    }
    controller.stop().await;
}

#[test]
fn every_method_of_the_protocol_was_called() {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let called = methods();
    for service in set.file.iter().flat_map(|file| &file.service).filter(|service| service.name() != "Peer") {
        for method in &service.method {
            let path = format!("/throughline.v1.{}/{}", service.name(), method.name());
            assert!(called.iter().any(|(it, _)| *it == path), "{path}: say here for whom it is");
        }
    }
}

#[tokio::test]
async fn who_is_refused_hears_what_is_needed() {
    let state = StateDir::new();
    let controller = Controller::with_doors(config(&state), &["operator/vera"]).await;
    let refused = controller.fabric_as("operator/vera").await.migrate_guest(move_web_1("r", "h2")).await.unwrap_err();
    let why = Explanation::from(&refused);
    assert_eq!(why.reason, "ROLE_TOO_LOW");
    for word in ["operator/vera", "viewer", "MigrateGuest", "needs the role operator", "roles file"] {
        assert!(why.message.contains(word), "{word}: {}", why.message);
    }
    controller.stop().await;
}

#[tokio::test]
async fn who_cannot_be_known_may_do_nothing() {
    let state = StateDir::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let serving = tokio::spawn(serve_connections(TcpListenerStream::new(listener), config(&state), shutdown));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    for (path, _) in methods() {
        let refused = call(&channel, &path).await.expect_err(&path);
        assert_eq!(
            (refused.code(), Explanation::from(&refused).reason.as_str()),
            (Code::Unauthenticated, "CALLER_UNKNOWN")
        );
    }
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_not_in_the_table_is_served_to_nobody() {
    let state = StateDir::new();
    let controller = Controller::with_doors(config(&state), &["operator/ada"]).await;
    for caller in ["", "operator/ada"] {
        let channel = controller.channel_as(caller).await;
        for path in
            ["/throughline.v1.Peer/Cutover", "/throughline.v1.Fabric/Nothing", "/throughline.v1.Fabric/GetGuest/x"]
        {
            let refused = call(&channel, path).await.unwrap_err();
            let reason = Explanation::from(&refused).reason;
            assert_eq!((refused.code(), reason.as_str()), (Code::PermissionDenied, "METHOD_UNKNOWN"), "{path}");
        }
    }
    controller.stop().await;
}

async fn may_look(fabric: &mut v1::fabric_client::FabricClient<Channel>) -> bool {
    match fabric.list_hosts(v1::ListHostsRequest::default()).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(Explanation::from(&status).reason, "NO_ROLE");
            false
        }
    }
}

#[tokio::test]
async fn roles_follow_their_file() {
    let state = StateDir::new();
    let controller = Controller::with_doors(config(&state), &["operator/nemo"]).await;
    let mut nemo = controller.fabric_as("operator/nemo").await;
    let mut comes_to = async |allowed: bool| {
        let began = std::time::Instant::now();
        while may_look(&mut nemo).await != allowed {
            assert!(began.elapsed() < PATIENCE, "never came to {allowed}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    comes_to(false).await;
    roles_file(&state, "nemo viewer # for now\n");
    comes_to(true).await;
    // A slip of an editor takes nobody's role away, nor does it give one.
    roles_file(&state, "nemo\nvera admin\n");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    comes_to(true).await;
    roles_file(&state, "# nobody\n");
    comes_to(false).await;
    controller.stop().await;
}

#[tokio::test]
async fn roles_that_are_not_understood_keep_the_controller_from_starting() {
    let state = StateDir::new();
    for text in ["alice admin\nbob boss\n", "alice\n"] {
        let config = Config { roles: Some(roles_file(&state, text)), ..Config::new(&state.0) };
        let refused = serve(insecure_door().await, config, std::future::pending()).await.unwrap_err();
        assert!(matches!(refused, ServeError::Roles(RolesError::Line { .. })), "{refused:?}");
        let line = format!("line {}", text.lines().count());
        assert!(refused.to_string().contains(&line) && refused.to_string().contains("roles"), "{refused}");
    }
    let config = Config { roles: Some(state.0.join("nowhere")), ..Config::new(&state.0) };
    let refused = serve(insecure_door().await, config, std::future::pending()).await.unwrap_err();
    assert!(matches!(refused, ServeError::Roles(RolesError::File { .. })), "{refused:?}");
}
