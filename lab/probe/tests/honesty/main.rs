//! The probes must be able to say no: they run through relays that lose, repeat and swap packets on purpose, and every
//! count has to come out exactly.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

mod disk;
mod load;
mod relay;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use throughline_probe::control::Ports;
use throughline_probe::guest;
use throughline_probe::peer::{Config, Peer, Report};

use relay::{Fate, about, faithful, own_network, relay, treacherous};

const PPS: u32 = 1000;
const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Probes for about a second; `to_guest` and `from_guest` rule over the packets' fates.
fn probe(to_guest: fn(u64) -> Fate, from_guest: fn(u64) -> Fate) -> Report {
    // Each test has its own namespace, but under one process the ports would be easy to mix up in a failure's text.
    static PORT: AtomicU16 = AtomicU16::new(7100);
    let base = PORT.fetch_add(10, Ordering::SeqCst);
    let ports = Ports::from(base);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20, disks: vec![] };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));

    let oneway_port = base + 5;
    let mut peer = Peer::start(&Config {
        guest: ADDRESS,
        ports: Ports { echo: relay(ports.echo, to_guest), ..ports },
        oneway_port,
        oneway_via: Some(relay(oneway_port, from_guest)),
        pps: PPS,
        stream_rate: 100,
        ping_rate: 50,
        patience: Duration::from_secs(5),
    })
    .unwrap();
    // Numbers 0..1000 at least have been sent by then.
    let from = peer.mark().unwrap();
    thread::sleep(Duration::from_millis(1500));
    let to = peer.mark().unwrap();
    thread::sleep(Duration::from_secs(1));
    peer.report(from, to).unwrap()
}

#[test]
fn a_faithful_network_is_not_accused() {
    own_network();
    let report = probe(faithful, faithful);
    for (name, summary) in
        [("to", &report.to_guest), ("echo", &report.echoes), ("from", &report.from_guest), ("ping", &report.ping)]
    {
        let counts = (summary.lost, summary.duplicated, summary.reordered);
        assert_eq!(counts, (0, 0, 0), "{name}: {summary:?}");
    }
    assert!(report.to_guest.sent > 1000 && report.from_guest.sent > 1000 && report.ping.sent > 50, "{report:?}");
    assert_eq!(report.memory.corrupted, 0);
    assert!(report.memory.rewritten > 0);
    assert!(report.stream.sent > 200, "{:?}", report.stream);
    assert_eq!((report.stream.undelivered, report.stream.corrupted, report.stream.resets), (0, 0, 0));
    assert_eq!(report.stream.retransmissions, []);
}

#[test]
fn faults_towards_the_guest_are_counted_exactly() {
    own_network();
    let report = probe(treacherous, faithful);
    let to = &report.to_guest;
    about(to.sent, 1, to.lost);
    about(to.sent, 2, to.duplicated);
    about(to.sent, 1, to.reordered);
    assert_eq!(to.displacement, 3);
    assert_eq!(report.echoes.lost, to.lost, "what the guest missed, it did not echo: nothing more is missing");
    assert_eq!(report.echoes.duplicated, to.duplicated);
    assert_eq!(report.from_guest.lost, 0);
    assert_eq!(report.lost_sent_at_ns.len() as u64, to.lost);
    assert!(report.lost_sent_at_ns.is_sorted_by(|a, b| b - a > 50_000_000), "one in a hundred, at 1000 a second");
}

#[test]
fn faults_from_the_guest_are_counted_exactly() {
    own_network();
    let report = probe(faithful, treacherous);
    let from = &report.from_guest;
    about(from.sent, 1, from.lost);
    about(from.sent, 2, from.duplicated);
    about(from.sent, 1, from.reordered);
    assert_eq!(from.displacement, 3);
    assert_eq!((report.to_guest.lost, report.to_guest.duplicated, report.to_guest.reordered), (0, 0, 0));
}

#[test]
fn the_longest_silence_is_found() {
    own_network();
    let silent = |sequence| if (700..900).contains(&sequence) { Fate::Lose } else { Fate::Deliver };
    let report = probe(silent, faithful);
    assert_eq!(report.to_guest.lost, 200);
    let gap = Duration::from_nanos(report.to_guest.longest_gap_ns);
    assert!(gap >= Duration::from_millis(195) && gap < Duration::from_millis(400), "{gap:?}");
}

#[test]
fn a_broken_stream_is_noticed() {
    own_network();
    let ports = Ports::from(7900);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20, disks: vec![] };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));
    // Closes the first connection after a while, with a message half read, as a reset does.
    let breaker = TcpListener::bind((ADDRESS, 0)).unwrap();
    let stream = breaker.local_addr().unwrap().port();
    thread::spawn(move || {
        let connection = breaker.accept().unwrap();
        thread::sleep(Duration::from_millis(300));
        drop(connection);
    });
    let mut peer = light_peer(Ports { stream, ..ports });
    let from = peer.mark().unwrap();
    thread::sleep(Duration::from_secs(1));
    let to = peer.mark().unwrap();
    let report = peer.report(from, to).unwrap();
    assert!(report.stream.resets >= 1, "{:?}", report.stream);
    assert!(report.stream.undelivered > 0, "{:?}", report.stream);
}

#[test]
fn an_address_nobody_answers_on_is_an_error() {
    own_network();
    let silent = SocketAddrV4::new(ADDRESS, 7999);
    let error = throughline_probe::control::Client::connect(*silent.ip(), silent.port(), Duration::from_millis(200));
    assert!(error.is_err());
}

/// Stands before a control port: closes its first connection at the third request, passes everything on from then on.
fn breaking_control(target: u16) -> u16 {
    let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for answers in [2, usize::MAX] {
            let (mut asking, _) = listener.accept().unwrap();
            let mut answering = TcpStream::connect((ADDRESS, target)).unwrap();
            let mut answered = BufReader::new(answering.try_clone().unwrap());
            let requests = BufReader::new(asking.try_clone().unwrap()).lines().map_while(Result::ok);
            for request in requests.take(answers) {
                writeln!(answering, "{request}").unwrap();
                let mut answer = String::new();
                answered.read_line(&mut answer).unwrap();
                asking.write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    port
}

/// A peer of a guest end that was just started, with little traffic.
fn light_peer(ports: Ports) -> Peer {
    Peer::start(&Config {
        guest: ADDRESS,
        ports,
        oneway_port: 0,
        oneway_via: None,
        pps: 100,
        stream_rate: 100,
        ping_rate: 50,
        patience: Duration::from_secs(5),
    })
    .unwrap()
}

#[test]
fn a_broken_control_connection_is_counted_and_replaced() {
    own_network();
    let ports = Ports::from(7910);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20, disks: vec![] };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));
    thread::sleep(Duration::from_millis(200));
    let mut peer = light_peer(Ports { control: breaking_control(ports.control), ..ports });
    let from = peer.mark().unwrap();
    thread::sleep(Duration::from_millis(500));
    let to = peer.mark().unwrap();
    thread::sleep(Duration::from_millis(500));
    let report = peer.report(from, to).unwrap();
    assert_eq!((report.stream.resets, report.stream.stalls), (1, 0), "{:?}", report.stream);
    assert_eq!((report.to_guest.lost, report.from_guest.lost), (0, 0), "the session went on");
}

#[test]
fn a_guest_end_that_serves_another_session_does_not_answer_for_this_one() {
    own_network();
    let ports = Ports::from(7920);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20, disks: vec![] };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));
    let mut first = light_peer(ports);
    first.mark().unwrap();
    thread::sleep(Duration::from_millis(2));
    let _second = light_peer(ports);
    let error = first.mark().unwrap_err();
    assert!(error.to_string().contains("not the one being served"), "{error}");
}
