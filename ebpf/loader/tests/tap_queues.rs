//! A guest whose card has several queues: its tap has as many, each with a ring of its own, and the kernel chooses one for
//! each flow. Whatever holds of the tap's ring must hold of them all.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::time::Duration;

use support::{
    eventually,
    frames::{Sender, of_flow},
    tap::Tap,
    topology::{CARRY_ID, Fabric, Guest, Host, PEER_INDEX, Shape, assert_exact, assert_exact_flows},
};
use throughline_loader::{ALL_MARKERS, Mode};

const QUEUES: usize = 3;
/// So many that no queue has none of them.
const FLOWS: u16 = 48;
const WHILE: Duration = Duration::from_millis(60);

fn fabric(tap_ring: u32) -> Fabric {
    Fabric::shaped(&Shape { tap_queues: QUEUES, tap_ring, ..Shape::default() })
}

/// The queues of a host's tap, each as a tap of its own.
fn queues(host: &Host) -> Vec<Tap> {
    host.tap.queues().into_iter().map(Tap::from_fd).collect()
}

/// A flow whose frames the kernel puts into that queue of the source's tap.
fn flow_of_queue(fabric: &Fabric, queue: usize) -> u16 {
    let sender = fabric.peer.run(|| Sender::new("old0"));
    let queues = queues(&fabric.source);
    let found = (0..FLOWS).find(|flow| {
        sender.send(&of_flow(*flow, 0));
        eventually("it is in a ring", || queues.iter().any(Tap::has_frames));
        let there = queues[queue].has_frames();
        queues.iter().for_each(|queue| drop(queue.read()));
        there
    });
    found.unwrap_or_else(|| panic!("none of {FLOWS} flows in queue {queue}"))
}

#[test]
fn a_guest_with_several_queues_moves_and_no_flow_notices() {
    let fabric = fabric(10_000);
    let (source, destination) = (&fabric.source, &fabric.destination);
    let guest = source.run_guest();
    let traffic = fabric.flows(5_000, FLOWS);
    std::thread::sleep(WHILE);
    // Paused before it is held: frames wait in every ring.
    let mut seen = guest.pause();
    let left = queues(source);
    std::thread::sleep(WHILE / 4);
    eventually("frames wait in every ring", || left.iter().all(Tap::has_frames));
    source.port.set_mode(Mode::Hold);
    std::thread::sleep(WHILE);

    destination.port.set_mode(Mode::Hold);
    let guest = destination.run_guest();
    let pump = source.release_to_carry();
    std::thread::sleep(WHILE);
    traffic.flip();
    eventually("frames come the new way", || destination.port.line() > 0);
    eventually("the source's line is empty", || pump.is_line_empty());
    eventually("all markers are in", || {
        destination.datapath.markers_seen(CARRY_ID, PEER_INDEX).unwrap() == ALL_MARKERS
    });
    let gate = destination.release_to_tap();
    eventually("the gate is open", || gate.is_line_empty());
    std::thread::sleep(WHILE);
    let sent = traffic.stop();
    seen.extend(guest.finish());

    assert_exact_flows(&seen, sent, FLOWS);
    assert!(!left.iter().any(Tap::has_frames), "nothing is left in a ring of the guest that left");
    let counts = pump.stop();
    let (left, came) = (source.close(), destination.close());
    assert!(counts.from_tap > 10 && left.held > 100 && came.held > 0, "{counts:?} {left:?} {came:?}");
    assert_eq!((left.line, left.overflowed, came.line, came.overflowed, counts.lost), (0, 0, 0, 0, 0));
}

/// All of it is one flow's, so one ring takes it all while the others are empty.
#[test]
fn a_slow_guest_loses_nothing_to_whichever_of_its_small_rings() {
    let fabric = fabric(64);
    let source = &fabric.source;
    let (flow, sender) = (flow_of_queue(&fabric, QUEUES - 1), fabric.peer.run(|| Sender::new("old0")));
    source.port.set_mode(Mode::Hold);
    (0..2_000).for_each(|number| sender.send(&of_flow(flow, number)));
    eventually("all are held", || source.port.line() == 2_000);
    let pump = source.release_to_tap();
    let guest = Guest::run(source.tap.queues(), Duration::from_micros(50));
    eventually("the line is empty", || pump.is_line_empty());
    assert_exact(&guest.finish(), 2_000);
}

/// A guest that has not loaded its driver, or has turned queues off: QEMU takes those out of service.
#[test]
fn a_queue_the_guest_does_not_use_is_in_nobodys_way() {
    let fabric = fabric(10_000);
    let (source, destination) = (&fabric.source, &fabric.destination);
    for host in [source, destination] {
        queues(host).iter().skip(1).for_each(Tap::detach);
    }
    let send = |numbers| {
        let sender = fabric.peer.run(|| Sender::new("old0"));
        for number in numbers {
            sender.send(&of_flow((number % u64::from(FLOWS)) as u16, number));
        }
    };
    source.port.set_mode(Mode::Hold);
    send(0..500);
    eventually("all are held", || source.port.line() == 500);
    let (pump, guest) = (source.release_to_tap(), source.run_guest());
    eventually("the line is empty", || pump.is_line_empty());
    pump.stop();
    let mut seen = guest.finish();

    source.port.set_mode(Mode::Pass);
    let before = source.port.counters().passed;
    send(500..600);
    eventually("they are in the tap's ring", || source.port.counters().passed == before + 100);
    source.port.set_mode(Mode::Hold);
    send(600..1_000);
    eventually("all are held", || source.port.line() == 400);
    let (pump, guest) = (source.release_to_carry(), destination.run_guest());
    eventually("the line is empty", || pump.is_line_empty());
    seen.extend(guest.finish());
    assert_exact(&seen, 1_000);
}
