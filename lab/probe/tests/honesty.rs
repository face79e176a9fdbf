//! The probes must be able to say no: they run through relays that lose, repeat and swap packets on purpose, and every
//! count has to come out exactly.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{SockaddrIn, getpeername, getsockname};
use throughline_probe::control::Ports;
use throughline_probe::guest;
use throughline_probe::load::{self, Load, flood};
use throughline_probe::packet::Packet;
use throughline_probe::peer::{Config, End, Peer, Report};

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
        let mut delayed: Vec<(u32, u64, Vec<u8>)> = Vec::new();
        while let Ok((length, sender)) = front.recv_from(&mut buffer) {
            *asker.lock().unwrap() = Some(sender);
            let bytes = &buffer[..length];
            let echoed = Packet::decode(bytes).map(|packet| (0, packet.sequence));
            let numbered = echoed.or_else(|| flood::Packet::decode(bytes).map(|packet| (packet.flow, packet.number)));
            let (flow, sequence) = numbered.expect("only probe packets come here");
            let copies = match fate(sequence) {
                Fate::Deliver => 1,
                Fate::Repeat => 2,
                Fate::Lose => 0,
                Fate::Delay => {
                    delayed.push((flow, sequence + 3, bytes.to_vec()));
                    0
                }
            };
            (0..copies).for_each(|_| drop(back.send(bytes)));
            for (_, _, bytes) in delayed.extract_if(.., |(of, due, _)| *of == flow && *due <= sequence) {
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
    let ports = Ports::from(base);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20 };
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
    let ports = Ports::from(7910);
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
    let ports = Ports::from(7920);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20 };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));
    let mut first = light_peer(ports);
    first.mark().unwrap();
    thread::sleep(Duration::from_millis(2));
    let _second = light_peer(ports);
    let error = first.mark().unwrap_err();
    assert!(error.to_string().contains("not the one being served"), "{error}");
}

/// Loads a guest end for about a second; `fate` rules over its packets' fates.
fn load(first_port: u16, pps: u32, flows: u32, fate: fn(u64) -> Fate) -> load::Report {
    let ports = Ports::from(first_port);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20 };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));
    let ports = Ports { sink: relay(ports.sink, fate), ..ports };
    let load =
        Load::start(&load::Config { guest: ADDRESS, ports, pps, flows, bulk: false, patience: Duration::from_secs(5) });
    thread::sleep(Duration::from_secs(1));
    load.unwrap().finish().unwrap()
}

#[test]
fn a_load_on_a_faithful_network_arrives_whole_at_its_rate() {
    own_network();
    let report = load(7930, 20_000, 1, faithful);
    assert_eq!((report.lost, report.duplicated, report.reordered), (0, 0, 0), "{report:?}");
    let expected = report.lasted_ns / 50_000;
    assert!(report.sent.abs_diff(expected) < expected / 10, "{} of {expected}", report.sent);
    assert_eq!(report.bulk, load::bulk::Report::default());
}

#[test]
fn faults_of_a_load_are_counted_exactly() {
    own_network();
    let report = load(7940, 20_000, 1, treacherous);
    about(report.sent, 1, report.lost);
    about(report.sent, 2, report.duplicated);
    about(report.sent, 1, report.reordered);
    assert_eq!(report.displacement, 3);
    assert_eq!(report.lost_sent_at_ns.len() as u64, report.lost);
    assert!(report.lost_sent_at_ns.is_sorted(), "of one flow");
}

#[test]
fn faults_of_each_flow_are_counted() {
    own_network();
    let report = load(7950, 4000, 8, |sequence| if sequence == 100 { Fate::Lose } else { treacherous(sequence) });
    assert!(report.sent > 3000, "{report:?}");
    // Some 500 packets of each flow: the numbers 10, 110, … and 100 of each are lost.
    let (each, counted) = (report.sent / 8, report.lost / 8);
    assert!(counted.abs_diff(each / 100 + 1) <= 1 && report.lost > 8 * 4, "{report:?}");
    assert!(report.duplicated.abs_diff(report.sent / 50) <= 16, "{report:?}");
    assert!(report.reordered.abs_diff(report.sent / 100) <= 8 && report.displacement == 3, "{report:?}");
}

/// Bulk through a guest end for about a second and a half, `meanwhile` happening after half a second.
fn bulk(first_port: u16, through: impl FnOnce(u16) -> u16, meanwhile: fn()) -> load::bulk::Report {
    let ports = Ports::from(first_port);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20 };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));
    thread::sleep(Duration::from_millis(200));
    let ports = Ports { bulk: through(ports.bulk), ..ports };
    let patience = Duration::from_secs(5);
    let load = Load::start(&load::Config { guest: ADDRESS, ports, pps: 0, flows: 1, bulk: true, patience }).unwrap();
    thread::sleep(Duration::from_millis(500));
    meanwhile();
    thread::sleep(Duration::from_secs(1));
    let report = load.finish().unwrap();
    assert_eq!((report.sent, report.lost), (0, 0));
    report.bulk
}

#[test]
fn bulk_on_a_faithful_network_is_not_accused() {
    own_network();
    let bulk = bulk(7960, |port| port, || {});
    assert_eq!((bulk.corrupted, bulk.resets), (0, 0), "{bulk:?}");
    // A kernel whose processors are all taken sends a little anew, even over its loopback.
    let again: u32 = bulk.retransmissions.iter().map(|rise| rise.segments).sum();
    let segments = (bulk.to_guest + bulk.from_guest) / (64 << 10);
    assert!(u64::from(again) * 100 < segments, "{again} of {segments}");
    assert!(bulk.to_guest > 1 << 20 && bulk.from_guest > 1 << 20, "{bulk:?}");
}

/// Has every TCP socket of this process that is connected to or from `port` drop what comes in, or no longer.
fn deafen(port: u16, deaf: bool) -> usize {
    let drop_all = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: drop_all.as_ptr().cast_mut() };
    let option = if deaf { libc::SO_ATTACH_FILTER } else { libc::SO_DETACH_FILTER };
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let numbers = descriptors.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let of_port = |fd: &i32| {
        let ends = [getsockname::<SockaddrIn>(*fd), getpeername::<SockaddrIn>(*fd)];
        ends.iter().all(Result::is_ok) && ends.into_iter().flatten().any(|end| end.port() == port)
    };
    let sockets: Vec<i32> = numbers.filter(of_port).collect();
    for socket in &sockets {
        let length = size_of_val(&program) as libc::socklen_t;
        // SAFETY: `program` and the filter it points to live for the call, and the kernel copies both.
        let result =
            unsafe { libc::setsockopt(*socket, libc::SOL_SOCKET, option, (&raw const program).cast(), length) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
    sockets.len()
}

#[test]
fn retransmissions_of_both_ends_are_noticed() {
    own_network();
    let meanwhile = || {
        // Several times: what is sent while the other end's window is closed is no retransmission.
        for _ in 0..3 {
            assert_eq!(deafen(7974, true), 4, "both ends of two connections");
            thread::sleep(Duration::from_millis(300));
            deafen(7974, false);
            thread::sleep(Duration::from_millis(700));
        }
    };
    let bulk = bulk(7970, |port| port, meanwhile);
    for end in [End::Peer, End::Guest] {
        assert!(bulk.retransmissions.iter().any(|rise| rise.end == end && rise.segments > 0), "{end:?}: {bulk:?}");
    }
    assert_eq!((bulk.corrupted, bulk.resets), (0, 0), "{bulk:?}");
}

/// Stands before a bulk port: of the connection towards the guest it drops one byte, the other one it closes.
fn damaging(target: u16) -> u16 {
    let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (number, asking) in listener.incoming().map_while(Result::ok).enumerate() {
            let answering = TcpStream::connect((ADDRESS, target)).unwrap();
            let pass = |mut from: TcpStream, mut to: TcpStream, skipped: usize, most: u64| {
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    let mut passed = 0;
                    while let Ok(length @ 1..) = from.read(&mut buffer) {
                        let skip = if passed == 0 { 0 } else { skipped };
                        passed += length as u64;
                        if to.write_all(&buffer[skip..length]).is_err() || passed > most {
                            break;
                        }
                    }
                    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                });
            };
            let (towards, back) = if number == 0 { (1, u64::MAX) } else { (0, 100_000) };
            pass(asking.try_clone().unwrap(), answering.try_clone().unwrap(), towards, u64::MAX);
            pass(answering, asking, 0, back);
        }
    });
    port
}

#[test]
fn damaged_and_broken_bulk_is_noticed() {
    own_network();
    let bulk = bulk(7980, damaging, || {});
    assert!(bulk.corrupted > 0, "{bulk:?}");
    assert!(bulk.resets > 0, "{bulk:?}");
}
