//! Networks, hosts, guests and endpoints over real gRPC.

use crate::support::*;
use throughline_controller::Config;
use throughline_wire::v1::{self, controller_message::Message as Down};
use tokio::io::AsyncWriteExt as _;
use tonic::{Code, transport::Channel};

type Fabric = v1::fabric_client::FabricClient<Channel>;

async fn everything(fabric: &mut Fabric) -> String {
    let networks = fabric.list_networks(v1::ListNetworksRequest::default()).await.unwrap().into_inner();
    let hosts = fabric.list_hosts(v1::ListHostsRequest::default()).await.unwrap().into_inner();
    let guests = fabric.list_guests(v1::ListGuestsRequest::default()).await.unwrap().into_inner();
    let endpoints = fabric.list_endpoints(v1::ListEndpointsRequest::default()).await.unwrap().into_inner();
    let migrations = fabric.list_migrations(v1::ListMigrationsRequest::default()).await.unwrap().into_inner();
    format!("{networks:?} {hosts:?} {guests:?} {endpoints:?} {migrations:?}")
}

fn endpoint(name: &str, host: &str, ip: &str) -> v1::CreateEndpointRequest {
    let port = v1::Port { id: 0, network: "blue".into(), mac: String::new(), ips: vec![ip.into()] };
    let endpoint = v1::Endpoint { name: name.into(), host: host.into(), port: Some(port), ..Default::default() };
    v1::CreateEndpointRequest { endpoint: Some(endpoint) }
}

#[tokio::test]
async fn what_is_created_is_allotted_listed_and_desired() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, [mut h1, mut h2, _h3]) = controller.three_hosts().await;

    let guest = fabric.get_guest(named_guest("web-1")).await.unwrap().into_inner();
    let port = &guest.spec.as_ref().unwrap().ports[0];
    assert_eq!((guest.generation, guest.host.as_str(), port.id), (1, "h1", 1));
    assert_eq!(port.mac, "02:54:00:00:00:01");
    let made = fabric.create_endpoint(endpoint("gw0", "h3", "10.7.0.1")).await.unwrap().into_inner();
    assert_eq!((made.prefix_len, made.port.unwrap().id), (24, 2));
    let host = fabric.get_host(v1::GetHostRequest { name: "h1".into() }).await.unwrap().into_inner();
    assert_eq!((host.connected, host.memory_used_kib, host.memory_kib), (true, 262_136, 1 << 20));

    let here = h1.desired(|it| it.networks.first().is_some_and(|net| net.bindings.len() == 2)).await;
    assert_eq!(here.guests.len(), 1);
    assert_eq!(here.networks[0].flood_vteps, ["192.0.2.2", "192.0.2.3"]);
    assert_eq!(here.networks[0].bindings[0].vtep, "192.0.2.1");
    let there = h2.desired(|it| it.networks.first().is_some_and(|net| net.bindings.len() == 2)).await;
    assert!(there.guests.is_empty() && there.endpoints.is_empty());

    fabric.delete_guest(delete("web-1")).await.unwrap();
    let after = h1.desired(|it| it.guests.is_empty()).await;
    assert!(after.revision > here.revision);
    controller.stop().await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    for n in 0..7_u32 {
        let network = v1::Network { name: format!("net-{n}"), vni: 100 + n, mtu: 0 };
        fabric.create_network(v1::CreateNetworkRequest { network: Some(network) }).await.unwrap();
    }
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListNetworksRequest { page_size: 3, page_token };
        let page = fabric.list_networks(request).await.unwrap().into_inner();
        names.extend(page.networks.into_iter().map(|it| it.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, (0..7).map(|n| format!("net-{n}")).collect::<Vec<_>>());
    let garbage = v1::ListNetworksRequest { page_size: 3, page_token: "6e6f".into() };
    let refused = told(fabric.list_networks(garbage).await);
    assert_eq!(refused, (Code::InvalidArgument, "INVALID_VALUE".into(), "page_token".into()));
    controller.stop().await;
}

#[tokio::test]
async fn wrong_input_is_named_and_leaves_nothing() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let (mut fabric, _agents) = controller.three_hosts().await;
    let before = everything(&mut fabric).await;

    let guest = |change: &dyn Fn(&mut v1::GuestSpec)| {
        let mut request = web(2, "h2");
        change(request.spec.as_mut().unwrap());
        request
    };
    let cases = [
        (guest(&|s| s.ports[0].mac = "02:00:00".into()), Code::InvalidArgument, "INVALID_MAC", "spec.ports[0].mac"),
        (
            guest(&|s| s.ports[0].mac = "01:00:5e:00:00:01".into()),
            Code::InvalidArgument,
            "INVALID_MAC",
            "spec.ports[0].mac",
        ),
        (guest(&|s| s.queues = 9), Code::InvalidArgument, "INVALID_QUEUES", "spec.queues"),
        (guest(&|s| s.queues = 2), Code::InvalidArgument, "INVALID_VALUE", "spec.queues"),
        (guest(&|s| s.memory_kib = 0), Code::InvalidArgument, "OUT_OF_RANGE", "spec.memory_kib"),
        (guest(&|s| s.memory_kib = 1_000_000_000 << 10), Code::InvalidArgument, "OUT_OF_RANGE", "spec.memory_kib"),
        (guest(&|s| s.memory_kib = 2 << 20), Code::ResourceExhausted, "NOT_ENOUGH_MEMORY", "spec.memory_kib"),
        (
            guest(&|s| s.ports[0].ips = vec!["10.7.0.10".into()]),
            Code::AlreadyExists,
            "IP_IN_USE",
            "spec.ports[0].ips[0]",
        ),
        (
            guest(&|s| s.ports[0].mac = "02:54:00:00:00:01".into()),
            Code::AlreadyExists,
            "MAC_IN_USE",
            "spec.ports[0].mac",
        ),
        (guest(&|s| s.name = "a/b".into()), Code::InvalidArgument, "INVALID_NAME", "spec.name"),
        (guest(&|s| s.name = "a".repeat(10 << 10)), Code::InvalidArgument, "INVALID_NAME", "spec.name"),
        (guest(&|s| s.name = "web-1".into()), Code::AlreadyExists, "NAME_IN_USE", "spec.name"),
        (guest(&|s| s.ports[0].network = "red".into()), Code::NotFound, "UNKNOWN_NETWORK", "spec.ports[0].network"),
        (guest(&|s| s.ports[0].id = 9), Code::InvalidArgument, "INVALID_VALUE", "spec.ports[0].id"),
        (web(2, "nowhere"), Code::NotFound, "UNKNOWN_HOST", "host"),
        (web(2, "h3"), Code::FailedPrecondition, "HOST_PEER_ONLY", "host"),
        (web(2, "../h1"), Code::InvalidArgument, "INVALID_NAME", "host"),
        (v1::CreateGuestRequest::default(), Code::InvalidArgument, "MISSING_FIELD", "spec"),
    ];
    for (request, code, reason, field) in cases {
        assert_eq!(told(fabric.create_guest(request).await), (code, reason.to_owned(), field.to_owned()));
    }
    let network =
        |name: &str, vni| v1::CreateNetworkRequest { network: Some(v1::Network { name: name.into(), vni, mtu: 0 }) };
    for (request, code, reason, field) in [
        (network("red", 1 << 24), Code::InvalidArgument, "INVALID_VNI", "network.vni"),
        (network("red", 7), Code::AlreadyExists, "VNI_IN_USE", "network.vni"),
        (network("blue", 8), Code::AlreadyExists, "NAME_IN_USE", "network.name"),
    ] {
        assert_eq!(told(fabric.create_network(request).await), (code, reason.to_owned(), field.to_owned()));
    }
    let refused = told(fabric.create_endpoint(endpoint("gw0", "nowhere", "10.7.0.1")).await);
    assert_eq!(refused, (Code::NotFound, "UNKNOWN_HOST".into(), "endpoint.host".into()));
    let refused = told(fabric.delete_host(v1::DeleteHostRequest { name: "h2".into() }).await);
    assert_eq!(refused, (Code::FailedPrecondition, "HOST_CONNECTED".into(), "name".into()));
    let refused = told(fabric.delete_network(v1::DeleteNetworkRequest { name: "blue".into() }).await);
    assert_eq!(refused, (Code::FailedPrecondition, "NETWORK_IN_USE".into(), "name".into()));

    assert_eq!(everything(&mut fabric).await, before, "a refused request leaves nothing behind");
    controller.stop().await;
}

#[tokio::test]
async fn garbage_on_the_port_hurts_nobody() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    for garbage in [b"\0\x01\x02\xff".repeat(5000), b"GET / HTTP/1.1\r\n\r\n".to_vec(), preface.to_vec()] {
        let mut socket = tokio::net::TcpStream::connect(controller.address).await.unwrap();
        let _ = socket.write_all(&garbage).await;
        let _ = socket.shutdown().await;
    }
    let giant = v1::CreateHostRequest { name: "a".repeat(2 << 20) };
    assert_eq!(fabric.create_host(giant).await.unwrap_err().code(), Code::OutOfRange);
    fabric.create_network(blue()).await.expect("still serves");
    controller.stop().await;
}

#[tokio::test]
async fn agents_that_misbehave_are_sent_away() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let _h1 = controller.agent("h1", 1).await;
    let connect = |hello| Agent::connect(controller.address, hello);
    let refused = told(connect(hello("h9", 1)).await.map(|_| ()));
    assert_eq!(refused, (Code::AlreadyExists, "VTEP_IN_USE".into(), "hello.vtep".into()));
    let refused = told(connect(hello("H 9", 9)).await.map(|_| ()));
    assert_eq!(refused, (Code::InvalidArgument, "INVALID_NAME".into(), "hello.host".into()));

    let mut h2 = controller.agent("h2", 2).await;
    h2.send(v1::agent_message::Message::RebindAck(v1::RebindAck::default())).await;
    let ended = loop {
        match h2.try_next().await {
            Ok(Some(Down::Desired(_))) => {}
            other => break other,
        }
    };
    assert_eq!(told(ended).2, "rebind_ack.rebind_id");
    controller.stop().await;
}

#[tokio::test]
async fn a_silent_agent_counts_as_gone() {
    let state = StateDir::new();
    let controller = Controller::start(&state).await;
    let mut fabric = controller.fabric().await;
    let h1 = controller.agent("h1", 1).await;
    h1.stop_heart();
    let host = || v1::GetHostRequest { name: "h1".into() };
    let started = std::time::Instant::now();
    while fabric.get_host(host()).await.unwrap().into_inner().connected {
        assert!(started.elapsed() < PATIENCE, "still counts as connected");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(started.elapsed() >= std::time::Duration::from_millis(500), "three heartbeats of 200 ms may be missed");
    let refused = told(fabric.create_guest(web(1, "h1")).await);
    assert_eq!(refused, (Code::FailedPrecondition, "HOST_DOWN".into(), "host".into()));
    fabric.delete_host(v1::DeleteHostRequest { name: "h1".into() }).await.expect("nothing needs it");
    controller.stop().await;
}

#[tokio::test]
async fn closed_enrolment_takes_only_announced_hosts() {
    let state = StateDir::new();
    let controller = Controller::with(Config { open_enrolment: false, ..Config::new(&state.0) }).await;
    let mut fabric = controller.fabric().await;
    let refused = told(Agent::connect(controller.address, hello("h1", 1)).await.map(|_| ()));
    assert_eq!(refused, (Code::PermissionDenied, "HOST_NOT_ENROLLED".into(), "hello.host".into()));
    fabric.create_host(v1::CreateHostRequest { name: "h1".into() }).await.unwrap();
    let _h1 = controller.agent("h1", 1).await;
    controller.stop().await;
}
