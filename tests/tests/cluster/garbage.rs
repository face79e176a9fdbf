//! Bytes that are no gRPC, on every port: nobody falls over.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use throughline_identity::{Identity, Security};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::lab::{Lab, NODES};

/// Where every daemon listens, in the order of [`NODES`].
const PORTS: [&str; 4] = ["192.0.2.1:7700", "192.0.2.11:7701", "192.0.2.12:7701", "192.0.2.21:7701"];
/// How long a daemon may keep a stranger's connection before the next one is tried.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a daemon may take to say that it serves.
const SERVES: Duration = Duration::from_secs(5);

/// A TLS 1.2 client hello: record header, handshake header, version, random, no session, one suite, no compression.
const TLS_HELLO: &[u8] = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03\
    0123456789abcdef0123456789abcdef\x00\x00\x02\xc0\x2f\x01\x00";
const HTTP_1: &[u8] = b"GET / HTTP/1.1\r\nHost: throughline\r\n\r\n";
/// A right beginning of HTTP/2, then a frame that claims to be 16 MiB long.
const HTTP_2_CUT: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01";

#[test]
fn garbage_on_every_port_hurts_nobody() {
    let lab = Lab::up("garbage");
    let daemons = NODES.map(|node| lab.daemons(node));
    let namespace = File::open(lab.namespace("ctl")).unwrap();
    let operator = lab.state().join("ctl/operator");
    thread::spawn(move || {
        // Of this thread alone, which ends with the closure.
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let mut random = vec![0; 64 << 10];
        File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
        let zeros = vec![0; 1 << 20];
        for port in PORTS {
            for garbage in [&random[..], HTTP_1, TLS_HELLO, HTTP_2_CUT, &zeros, &[]] {
                send(port.parse().unwrap(), garbage);
            }
        }
        for (node, port) in NODES.into_iter().zip(PORTS) {
            assert_serves(&operator, node, port);
        }
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    assert_eq!(NODES.map(|node| lab.daemons(node)), daemons, "a daemon ended");
    for host in &NODES[1..] {
        assert!(lab.is_connected(host), "the agent of {host} lost its controller");
    }
}

/// Sends all of it, unless the daemon hangs up first, and waits a little for its answer, whatever that is.
fn send(port: SocketAddr, garbage: &[u8]) {
    let mut stream = TcpStream::connect_timeout(&port, Duration::from_secs(2))
        .unwrap_or_else(|error| panic!("{port} takes no connections any more: {error}"));
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(garbage);
    let _ = stream.read(&mut [0; 256]);
}

/// The daemon answers the standard health question: it serves.
fn assert_serves(credentials: &Path, node: &str, port: &str) {
    let daemon = if node == "ctl" { "controller".to_owned() } else { format!("agent/{node}") };
    let daemon: Identity = daemon.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("https://{port}"))?.timeout(SERVES);
        let channel = Security::load(credentials, false)?.dial(endpoint, &daemon).await?;
        let mut health = HealthClient::new(channel);
        let answer = health.check(HealthCheckRequest { service: String::new() }).await?;
        Ok::<_, Box<dyn std::error::Error>>(answer.into_inner().status())
    });
    assert!(matches!(answer, Ok(ServingStatus::Serving)), "{port} does not serve any more: {answer:?}");
}
