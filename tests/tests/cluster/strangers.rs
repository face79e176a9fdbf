//! Someone on the underlay who finds the port that memory comes to, and the policy of what it comes in.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, wait_for};
use crate::probe::Probe;

/// The destination's tunnel end point, and the port of its `Peer` service.
const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
const PEER: u16 = 7701;
/// Strangers that say nothing: more than the destination listens to at one time.
const SILENT: usize = 100;

impl Lab {
    /// Where a process's network has somebody listening on that address, but for the agents' own port.
    fn door(pid: i32, address: Ipv4Addr) -> Option<SocketAddrV4> {
        let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
        let listening = table.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state) = (fields.get(1)?, fields.get(3)?);
            let (host, port) = local.split_once(':')?;
            let host = Ipv4Addr::from(u32::from_str_radix(host, 16).ok()?.to_ne_bytes());
            let port = u16::from_str_radix(port, 16).ok()?;
            (*state == "0A" && host == address && port != PEER).then(|| SocketAddrV4::new(host, port))
        });
        listening.into_iter().next()
    }
}

/// Goes on when it goes, also when the test fails.
struct Held(Pid);

impl Held {
    fn still(pid: i32) -> Self {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ended = kill(self.0, Signal::SIGCONT);
    }
}

/// They come from the source's own address, before the source does.
#[test]
fn strangers_at_the_port_memory_comes_to_get_nothing_and_nobody_notices() {
    let lab = Lab::up("strangers");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let [source, destination] = ["h1", "h2"].map(|node| lab.agent(node));
    assert_eq!(Lab::door(destination, VTEP), None, "nobody listens while nothing moves");

    let begun = lab.throughline(&["migrate", crate::lab::GUEST, "--to", "h2", "--detach"]).done();
    wait_for("the destination starts its QEMU", Duration::from_secs(20), || {
        // Finer than that, or the source is there first.
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {
            if fs::read_dir(lab.state().join("h2/state/guests")).is_ok_and(|guests| guests.count() > 0) {
                return Some(());
            }
        }
        None
    });
    let held = Held::still(source);
    let door = wait_for("the destination waits for memory", Duration::from_secs(10), || Lab::door(destination, VTEP));
    let (mut first, silent, mut guesser) = lab.inside("h1", || {
        let call = || TcpStream::connect(door).unwrap();
        let first = call();
        let mut babbler = call();
        let _broken = babbler.write_all(&[0x16; 1 << 16]);
        let mut guesser = call();
        guesser.write_all(&[0; 32]).unwrap();
        let silent: Vec<_> = (0..SILENT).map(|_| call()).collect();
        (first, silent, guesser)
    });
    let elsewhere = lab.inside("peer", || TcpStream::connect(door).unwrap());
    thread::sleep(Duration::from_millis(300));
    drop(held);

    let id = begun["id"].as_str().unwrap().to_owned();
    let end = wait_for("the move ends", Duration::from_secs(60), || {
        let now = lab.migration(&id);
        matches!(now["phase"].as_str(), Some("DONE" | "ABORTED")).then_some(now)
    });
    assert_eq!(end["phase"], "DONE", "{end:#}");
    for stranger in [&mut first, &mut guesser] {
        stranger.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
        let mut got = Vec::new();
        let _reset = stranger.read_to_end(&mut got);
        assert!(got.is_empty(), "a stranger was told {got:?}");
    }
    assert_eq!(Lab::door(destination, VTEP), None, "the door is closed behind the source");
    let second = lab.inside("h1", || TcpStream::connect(door));
    assert!(second.is_err(), "also to who might know the token");
    let log = fs::read_to_string(lab.log("h2")).unwrap();
    assert!(log.contains("a stranger at a stream's port was sent away"), "{log}");
    drop((silent, elsewhere));
    probe.assert_unnoticed(&lab, "strangers came to the port of its memory");
    lab.migrate("h1");
    probe.assert_unnoticed(&lab, "and it went back");
}
