//! A guest whose card has several queues: its tap has as many, each with a ring of its own, and the kernel chooses one for
//! each flow. Whatever holds of the tap's ring must hold of them all.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{os::fd::AsFd as _, time::Duration};

use support::{
    crafted::{TRANSPORT, fragments, solicitation, tcp_super_frame},
    eventually,
    frames::{Sender, answer, internet_checksum, number_of, of_flow},
    tap::{Tap, VNET_HEADER},
    topology::{CARRY_ID, Fabric, Guest, Host, Shape, assert_exact, assert_exact_flows},
};
use throughline_loader::Mode;

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
    let gate = destination.open_gate_after(&pump, CARRY_ID);
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

/// Segment `number` of a connection.
fn of_connection(connection: u16, number: u64) -> Vec<u8> {
    let (_, mut frame) = tcp_super_frame(number, 100, 1_000);
    frame[TRANSPORT..TRANSPORT + 2].copy_from_slice(&(30_000 + connection).to_be_bytes());
    frame
}

/// The same frame from another address.
fn from_address(number: u16, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[28..30].copy_from_slice(&number.to_be_bytes());
    frame[24..26].fill(0);
    let checksum = internet_checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// What waits in the rings, ring by ring.
fn waiting(queues: &[Tap]) -> Vec<Vec<u64>> {
    let frames = |queue: &Tap| std::iter::from_fn(|| queue.read()).map(|frame| number_of(&frame).unwrap()).collect();
    queues.iter().map(frames).collect()
}

/// Left to itself the kernel puts a flow's next frames where the guest last answered from, and there they overtake those
/// that still wait in another ring.
#[test]
fn a_flow_keeps_its_queue_whichever_its_guest_answers_from() {
    let fabric = fabric(10_000);
    let source = &fabric.source;
    let sender = fabric.peer.run(|| Sender::new("old0"));
    let queues = queues(source);
    let send = |numbers: std::ops::Range<u64>| {
        let passed = source.port.counters().passed + numbers.end - numbers.start;
        numbers.for_each(|number| sender.send(&of_flow(0, number)));
        eventually("they are in a ring", || source.port.counters().passed == passed);
    };
    let answer_from = |queue: &Tap| queue.write(&[0; VNET_HEADER], &answer(0));
    for (at, queue) in queues.iter().enumerate() {
        answer_from(queue);
        send(0..10);
        let mut wanted = vec![Vec::new(); QUEUES];
        wanted[at] = (0..10).collect();
        assert_eq!(waiting(&queues), wanted, "where the guest answered from");
    }

    source.datapath.keep_flows(source.tap.dup().as_fd()).unwrap();
    source.port.set_mode(Mode::Hold);
    (0..100).for_each(|number| sender.send(&of_flow(0, number)));
    eventually("they are held", || source.port.line() == 100);
    let pump = source.release_to_tap();
    eventually("the line is empty", || pump.is_line_empty());
    for (queue, from) in queues.iter().zip((100..).step_by(10)) {
        answer_from(queue);
        send(from..from + 10);
    }
    let mut rings = waiting(&queues);
    rings.retain(|ring| !ring.is_empty());
    assert_eq!(rings, [(0..100 + 10 * QUEUES as u64).collect::<Vec<_>>()], "all in one ring, in order");
}

/// Which ring takes a frame.
fn ring_of(queues: &[Tap], sender: &Sender, frame: &[u8]) -> usize {
    sender.send(frame);
    eventually("it is in a ring", || queues.iter().any(Tap::has_frames));
    let at = queues.iter().position(Tap::has_frames).unwrap();
    queues[at].read().unwrap();
    at
}

#[test]
fn flows_share_the_queues_and_keep_to_them() {
    let fabric = fabric(10_000);
    let source = &fabric.source;
    source.datapath.keep_flows(source.tap.dup().as_fd()).unwrap();
    let (queues, sender) = (queues(source), fabric.peer.run(|| Sender::new("old0")));
    let sender6 = fabric.peer.run(|| Sender::of_type("old0", libc::ETH_P_IPV6 as u16));
    let mut taken = [[0; QUEUES]; 3];
    for flow in 0..FLOWS {
        let of_tcp = of_connection(flow, 0);
        let ring = ring_of(&queues, &sender, &of_tcp);
        assert_eq!(ring_of(&queues, &sender, &of_connection(flow, 1)), ring, "TCP by its connection");
        taken[0][ring] += 1;
        let ring = ring_of(&queues, &sender, &from_address(flow, &of_flow(0, 0)));
        for other in [of_flow(1, 7), fragments(flow)[0].clone(), fragments(flow)[2].clone()] {
            assert_eq!(ring_of(&queues, &sender, &from_address(flow, &other)), ring, "all else by its addresses");
        }
        taken[1][ring] += 1;
        taken[2][ring_of(&queues, &sender6, &solicitation(false, flow as u8))] += 1;
    }
    println!("queue by queue: {taken:?}");
    let least = u32::from(FLOWS) / QUEUES as u32 / 3;
    assert!(taken.iter().flatten().all(|flows| *flows >= least), "of {FLOWS} flows in each queue: {taken:?}");
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
