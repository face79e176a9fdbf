//! The probes must be able to say no: they run through relays that lose, repeat and swap packets on purpose, and every
//! count has to come out exactly.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use throughline_probe::control::Ports;
use throughline_probe::guest;
use throughline_probe::packet::Packet;
use throughline_probe::peer::{Config, Peer, Report};

const PPS: u32 = 1000;
const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Gives this thread, and those it starts, a network of their own with nothing but a loopback.
fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own needs root");
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2 is installed");
    assert!(status.success());
}

/// What a relay does with a packet on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Deliver,
    Lose,
    Repeat,
    /// Three packets later.
    Delay,
}

fn faithful(_: u64) -> Fate {
    Fate::Deliver
}

fn treacherous(sequence: u64) -> Fate {
    match sequence % 100 {
        10 => Fate::Lose,
        30 | 60 => Fate::Repeat,
        80 => Fate::Delay,
        _ => Fate::Deliver,
    }
}

/// Passes packets on to `target`, the other way round without interference. Returns its port.
fn relay(target: u16, fate: fn(u64) -> Fate) -> u16 {
    let front = UdpSocket::bind((ADDRESS, 0)).unwrap();
    let back = UdpSocket::bind((ADDRESS, 0)).unwrap();
    back.connect((ADDRESS, target)).unwrap();
    let port = front.local_addr().unwrap().port();
    let asker = std::sync::Arc::new(std::sync::Mutex::new(None::<SocketAddr>));

    let (answers, answered, asking) = (back.try_clone().unwrap(), front.try_clone().unwrap(), asker.clone());
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok(length) = answers.recv(&mut buffer) {
            let asker = asking.lock().unwrap().expect("an answer follows a question");
            answered.send_to(&buffer[..length], asker).unwrap();
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        let mut delayed: Option<(u64, Vec<u8>)> = None;
        while let Ok((length, sender)) = front.recv_from(&mut buffer) {
            *asker.lock().unwrap() = Some(sender);
            let bytes = &buffer[..length];
            let sequence = Packet::decode(bytes).expect("only probe packets come here").sequence;
            let copies = match fate(sequence) {
                Fate::Deliver => 1,
                Fate::Repeat => 2,
                Fate::Lose => 0,
                Fate::Delay => {
                    delayed = Some((sequence + 3, bytes.to_vec()));
                    0
                }
            };
            (0..copies).for_each(|_| drop(back.send(bytes)));
            if let Some((_, bytes)) = delayed.take_if(|(due, _)| *due <= sequence) {
                back.send(&bytes).unwrap();
            }
        }
    });
    port
}

/// Probes for about a second; `to_guest` and `from_guest` rule over the packets' fates.
fn probe(to_guest: fn(u64) -> Fate, from_guest: fn(u64) -> Fate) -> Report {
    // Each test has its own namespace, but under one process the ports would be easy to mix up in a failure's text.
    static PORT: AtomicU16 = AtomicU16::new(7100);
    let base = PORT.fetch_add(10, Ordering::SeqCst);
    let ports = Ports { control: base, echo: base + 1, stream: base + 2 };
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20 };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));

    let oneway_port = base + 3;
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

/// How many of the first numbers of a window meet a fate, give or take the hundred it was cut in.
fn about(sent: u64, a_hundred: u64, counted: u64) {
    let expected = sent * a_hundred / 100;
    assert!(counted.abs_diff(expected) <= a_hundred, "{counted} of {sent}, not {expected}");
    assert!(counted > 0);
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
    let ports = Ports { control: 7900, echo: 7901, stream: 7902 };
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20 };
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
    let ports = Ports { control: 7910, echo: 7911, stream: 7912 };
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20 };
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
    let ports = Ports { control: 7920, echo: 7921, stream: 7922 };
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20 };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));
    let mut first = light_peer(ports);
    first.mark().unwrap();
    thread::sleep(Duration::from_millis(2));
    let _second = light_peer(ports);
    let error = first.mark().unwrap_err();
    assert!(error.to_string().contains("not the one being served"), "{error}");
}
