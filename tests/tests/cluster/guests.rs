//! Any guest: with several cards, several processors, faster with its memory than the wire, idle, or wedged.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use throughline_probe::clock::Pacer;

use crate::lab::{GUEST, GUEST_ADDRESS, Lab, wait_for};
use crate::pings::Pings;
use crate::probe::Probe;
use crate::wire::Stopped;

/// Longer than the guest takes to say what it has counted, and its host to write that down.
const COUNTED: Duration = Duration::from_millis(1500);
/// Longest a move may take, from the command to its end, of a guest that does not hinder it.
const MOVE: Duration = Duration::from_secs(30);

#[test]
fn three_cards_on_two_networks_move_as_one() {
    const ADDRESSES: [&str; 7] =
        [GUEST_ADDRESS, "10.7.0.11", "fd07::10", "10.7.1.10", "fd07:1::10", "10.8.0.10", "fd08::10"];
    let lab = Lab::up("cards");
    lab.throughline(&["network", "create", "green", "--vni", "7002"]).done();
    let endpoint = |name, network, addresses: &[&str]| {
        let ips: Vec<_> = addresses.iter().flat_map(|ip| ["--ip", ip]).collect();
        let create = ["endpoint", "create", name, "--network", network, "--host", "peer"];
        lab.throughline(&[&create[..], &ips].concat()).done();
    };
    endpoint("gw1", "blue", &["10.7.1.1", "fd07::1", "fd07:1::1"]);
    endpoint("gw2", "green", &["10.8.0.1", "fd08::1"]);
    lab.boot_guest_with(
        "tl.ip=10.7.0.11/24 tl.ip=fd07::10/64 tl.ip.1=10.7.1.10/24 tl.ip.1=fd07:1::10/64 \
         tl.ip.2=10.8.0.10/24 tl.ip.2=fd08::10/64 tl.probe=off",
        &[
            &["--ip", "10.7.0.11", "--ip", "fd07::10"][..],
            &["--port", "network=blue,mac=02:00:00:07:01:10,ip=10.7.1.10,ip=fd07:1::10"],
            &["--port", "network=green,mac=02:00:00:08:00:10,ip=10.8.0.10,ip=fd08::10"],
        ]
        .concat(),
    );
    let mut pings = Pings::start(&lab, &ADDRESSES, 200);
    for to in ["h2", "h1"] {
        lab.migrate(to);
        let answered = pings.assert_answered(&format!("a guest with three cards moved to {to}"));
        println!("three cards to {to}: {answered} pings, none lost");
    }
    lab.assert_no_qemu("h2");
    assert_eq!(lab.guest_devices("h2"), Vec::<String>::new());
}

/// Each processor has a queue of the card to itself, and the agents find the queues again.
#[test]
fn several_processors_and_queues_move() {
    let mut lab = Lab::up("vcpus");
    lab.boot_guest_with("", &["--vcpus", "3", "--queues", "3"]);
    let mut probe = Probe::start(&lab);
    // The kernel counts those in service: the guest's driver has asked for all of them.
    assert_eq!(lab.tap_queues("h1"), [3]);
    thread::sleep(Duration::from_secs(2));
    probe.assert_unnoticed(&lab, "nothing happened");
    for (from, to) in [("h1", "h2"), ("h2", "h1")] {
        lab.migrate(to);
        assert_eq!(lab.tap_queues(to), [3]);
        probe.assert_unnoticed(&lab, &format!("a guest with three processors moved to {to}"));
        assert_eq!(lab.guest_devices(from), Vec::<String>::new(), "left behind on {from}");
    }

    let agent = lab.kill_agent("h1");
    wait_for("the agent is gone", Duration::from_secs(15), || (!lab.is_connected("h1")).then_some(()));
    lab.start_again(&agent);
    probe.assert_unnoticed(&lab, "the agent of its host was another");
    lab.migrate("h2");
    assert_eq!(lab.tap_queues("h2"), [3]);
    probe.assert_unnoticed(&lab, "a guest with three processors moved that its agent had not started");
    assert_eq!(lab.guest_devices("h1"), Vec::<String>::new(), "left behind on h1");
}

/// 64 MiB, half of them rewritten every second: faster than what the wire may take in the first move, not in the second.
#[test]
fn memory_faster_than_the_wire_is_refused_with_the_numbers_and_moves_when_it_fits() {
    let lab = Lab::up("dirty");
    lab.boot_guest_with("tl.memory=64 tl.dirty=32768", &[]);
    let mut probe = Probe::start(&lab);
    let migrate = ["migrate", GUEST, "--to", "h2"];
    // Its first pass alone takes longer than that.
    let narrow = ["--bandwidth", "24MiB", "--deadline", "3s", "--detach"];
    let begun = lab.throughline(&[&migrate[..], &narrow].concat()).done();
    let id = begun["id"].as_str().unwrap();
    assert_eq!(lab.wait_until_aborted(id), "DEADLINE_EXCEEDED");
    let numbers = lab.migration(id)["progress"].take();
    println!("given up at {numbers}");
    let number = |name: &str| numbers[name].as_u64().unwrap_or_default();
    assert!(number("rate") > 0 && number("remaining") > 0, "an operator learns how far it was: {numbers}");
    let why = lab.migration(id)["failure"]["message"].take();
    assert!(why.as_str().is_some_and(|why| why.contains("bytes/s are sent")), "and so does who reads only why: {why}");
    lab.assert_no_qemu("h2");
    probe.assert_unnoticed(&lab, "a move that could not converge was given up");

    let moved = lab.throughline(&[&migrate[..], &["--bandwidth", "128MiB"]].concat()).done();
    assert_eq!(moved["migration"]["phase"], "DONE", "{moved}");
    probe.assert_unnoticed(&lab, "a guest moved that keeps its memory busy");
}

/// What the guest said last on its console.
fn counted(lab: &Lab, host: &str) -> u64 {
    let console = lab.console(host);
    let whole = |line: &str| line.strip_prefix("init: counted ")?.trim_end().strip_suffix(" datagrams")?.parse().ok();
    console.lines().filter_map(whole).next_back().unwrap_or_else(|| panic!("nothing was counted: {console}"))
}

/// Nothing in the guest answers, and nothing runs but the kernel and a clock: what came is counted there, for answers have a
/// way of their own to get lost on.
#[test]
fn an_idle_guest_loses_no_frame_of_many() {
    let lab = Lab::up("idle");
    lab.boot_guest_with("tl.count=yes", &[]);
    drop(Pings::start(&lab, &[GUEST_ADDRESS], 20));
    let socket = lab.inside("peer", || UdpSocket::bind("0.0.0.0:0").unwrap());
    let mut total: u64 = 0;
    for to in ["h2", "h1", "h2"] {
        let stop = AtomicBool::new(false);
        total += thread::scope(|scope| {
            // A move that fails ends the sender too.
            let stopped = Stopped(&stop);
            let sending = scope.spawn(|| {
                let mut pacer = Pacer::new(2000);
                let mut sent = 0;
                while !stop.load(Ordering::SeqCst) {
                    pacer.wait();
                    socket.send_to(b"anybody?", (GUEST_ADDRESS, 9)).unwrap();
                    sent += 1;
                }
                sent
            });
            lab.migrate(to);
            thread::sleep(Duration::from_millis(500));
            drop(stopped);
            sending.join().unwrap()
        });
        thread::sleep(COUNTED);
        let counted = counted(&lab, to);
        println!("idle to {to}: {total} datagrams, {counted} counted");
        assert_eq!(counted, total, "lost or doubled on the way to {to}");
    }
}

/// Its driver has let go of the card, so QEMU reads nothing from the tap and frames pile up in it.
#[test]
fn a_wedged_guest_does_not_keep_a_move_open() {
    let lab = Lab::up("wedged");
    lab.boot_guest_with("tl.wedge=yes", &[]);
    wait_for("the guest wedges itself", Duration::from_secs(60), || {
        lab.console("h1").contains("init: wedged").then_some(())
    });
    let flood = lab.inside("peer", || UdpSocket::bind("0.0.0.0:0").unwrap());
    let pour = || {
        for _ in 0..3000 {
            flood.send_to(b"anybody?", (GUEST_ADDRESS, 9)).unwrap();
        }
    };
    for (from, to) in [("h1", "h2"), ("h2", "h1")] {
        pour();
        let begun = Instant::now();
        lab.migrate(to);
        println!("wedged to {to}: {:?}", begun.elapsed());
        assert!(begun.elapsed() < MOVE, "the move took {:?}", begun.elapsed());
        lab.assert_no_qemu(from);
        assert_eq!(lab.guest_devices(from), Vec::<String>::new(), "left behind on {from}");
        thread::sleep(Duration::from_millis(500));
    }
}
