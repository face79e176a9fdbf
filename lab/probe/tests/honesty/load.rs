//! Loads: floods of many flows, and bulk.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{SockaddrIn, getpeername, getsockname};
use throughline_probe::control::Ports;
use throughline_probe::guest;
use throughline_probe::load::{self, Load};
use throughline_probe::peer::End;

use crate::ADDRESS;
use crate::relay::{Fate, about, faithful, own_network, relay, treacherous};

/// Loads a guest end for about a second; `fate` rules over its packets' fates.
fn load(first_port: u16, pps: u32, flows: u32, fate: fn(u64) -> Fate) -> load::Report {
    let ports = Ports::from(first_port);
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20, disks: vec![] };
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
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20, disks: vec![] };
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
