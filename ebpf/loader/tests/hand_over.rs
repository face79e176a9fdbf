//! The hand-over in the kernel, with real taps, bridges and tunnels: every frame a peer sends reaches the guest once and
//! in order, wherever it waits, and whichever way the move ends.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::time::Duration;

use support::{
    eventually,
    frames::{BROADCAST, GUEST, MARKER, Sender, numbered},
    topology::{CARRY_ID, DESTINATION, Fabric, Guest, PEER_INDEX, Shape, assert_exact, landing, send_markers},
};
use throughline_loader::{ALL_MARKERS, AttachVia, Mode, PumpCounts};

const WHILE: Duration = Duration::from_millis(60);

fn let_pass(time: Duration) {
    std::thread::sleep(time);
}

/// Hold, pause, then undo: into the source's own tap, behind what was in its ring.
fn abort(shape: &Shape) {
    let fabric = Fabric::shaped(shape);
    let source = &fabric.source;
    let guest = source.run_guest();
    let traffic = fabric.traffic(5_000);
    let_pass(WHILE);
    let mut seen = guest.pause();
    let_pass(WHILE / 4);
    source.port.set_mode(Mode::Hold);
    let_pass(WHILE);

    let pump = source.release_to_tap();
    let guest = source.run_guest();
    eventually("the line is empty", || pump.is_line_empty());
    let_pass(WHILE);
    let counts = pump.stop();
    let last = source.close();
    let_pass(WHILE);
    let sent = traffic.stop();
    seen.extend(guest.finish());

    assert_exact(&seen, sent);
    assert!(last.held > 100, "frames did wait: {last:?}");
    assert_eq!((last.line, last.overflowed, last.refilled), (0, 0, last.held));
    assert_eq!((counts.from_hold, counts.from_tap, counts.lost), (last.held, 0, 0));
}

#[test]
fn an_abort_gives_everything_back() {
    abort(&Shape::default());
}

#[test]
fn an_abort_gives_everything_back_without_tcx() {
    abort(&Shape { attach: AttachVia::Clsact, ..Shape::default() });
}

#[test]
fn a_guest_that_leaves_is_followed() {
    followed(12);
}

#[test]
fn a_guest_without_a_driver_is_followed_with_its_shorter_header() {
    followed(10);
}

fn followed(header: usize) {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    let guest = source.run_guest();
    let traffic = fabric.traffic(5_000);
    let_pass(WHILE);
    // Paused before it is held: some frames get no further than its ring.
    let mut seen = guest.pause();
    source.tap.set_header(header);
    let_pass(WHILE / 4);
    source.port.set_mode(Mode::Hold);
    let_pass(WHILE);

    let pump = source.release_to_carry();
    let guest = destination.run_guest();
    eventually("the line is empty", || pump.is_line_empty());
    let_pass(WHILE);
    let sent = traffic.stop();
    seen.extend(guest.finish());
    let counts = pump.stop();

    assert_exact(&seen, sent);
    let (left, came) = (source.port.counters(), destination.port.counters());
    assert!(counts.from_tap > 10 && left.held > 100 && left.carried > 10, "{counts:?} {left:?}");
    assert_eq!(came.landed, counts.from_tap + left.held + left.carried);
    assert_eq!((left.line, left.overflowed, counts.lost, came.refused), (0, 0, 0, 0));
}

/// The whole cutover: line, carry, a peer that flips under traffic, markers, gate.
fn cutover(rate: u32, length: Duration) {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    let guest = source.run_guest();
    let traffic = fabric.traffic(rate);
    let_pass(length / 4);
    source.port.set_mode(Mode::Hold);
    let_pass(Duration::from_millis(1));
    let mut seen = guest.pause();
    let_pass(length / 4);

    // Commit: gate up, guest runs, line released.
    destination.port.set_mode(Mode::Hold);
    let guest = destination.run_guest();
    let pump = source.release_to_carry();
    let_pass(length / 8);
    traffic.flip();
    eventually("frames come the new way", || destination.port.line() > 0);
    let gate = destination.open_gate_after(&pump, CARRY_ID);
    eventually("the gate is open", || gate.is_line_empty());
    let_pass(length / 4);
    let sent = traffic.stop();
    seen.extend(guest.finish());

    assert_exact(&seen, sent);
    let (left, came) = (source.close(), destination.close());
    assert!(left.held > 0 && came.held > 0 && came.landed > 0, "{left:?} {came:?}");
    assert_eq!((left.overflowed, came.overflowed, came.refused), (0, 0, 0));
    assert_eq!((left.line, came.line), (0, 0));
    assert_eq!(destination.datapath.markers_seen(CARRY_ID, PEER_INDEX).unwrap(), 0, "forgotten with the port");
}

#[test]
fn a_peer_that_flips_is_never_ahead_of_itself() {
    cutover(5_000, Duration::from_millis(300));
}

#[test]
fn twenty_thousand_frames_a_second() {
    cutover(20_000, Duration::from_millis(1_500));
}

#[test]
fn a_line_held_again_during_its_flush_does_not_go_to_the_guest_that_left() {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    source.port.set_mode(Mode::Hold);
    fabric.send(0..3_000);
    eventually("all are held", || source.port.counters().held == 3_000);

    let guest = destination.run_guest();
    let pump = source.release_to_carry();
    source.port.set_mode(Mode::Hold);
    fabric.send(3_000..4_000);
    eventually("the line is empty", || pump.is_line_empty() && source.port.counters().held == 4_000);
    source.port.set_mode(Mode::Carry);
    fabric.send(4_000..4_100);

    assert_exact(&guest.finish(), 4_100);
    assert!(source.tap.read().is_none(), "nothing reached the tap it left");
}

#[test]
fn overflow_is_counted_and_leaves_the_line_exact() {
    let fabric = Fabric::shaped(&Shape { line_limit: 50, ..Shape::default() });
    let source = &fabric.source;
    source.port.set_mode(Mode::Hold);
    fabric.send(0..200);
    eventually("all have been seen", || source.port.counters().held + source.port.counters().overflowed == 200);
    let state = source.port.counters();
    assert_eq!((state.line, state.held, state.overflowed), (50, 50, 150));

    let guest = source.run_guest();
    let pump = source.release_to_tap();
    eventually("the line is empty", || pump.is_line_empty());
    fabric.send(50..60);
    assert_exact(&guest.finish(), 60);
    assert_eq!(source.port.line(), 0);
    assert_eq!(pump.stop(), PumpCounts { from_hold: 50, ..PumpCounts::default() });
}

#[test]
fn what_comes_from_another_source_is_refused() {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    destination.datapath.close_landing(CARRY_ID).unwrap();
    source.port.set_mode(Mode::Carry);
    fabric.send(0..5);
    eventually("they were carried", || source.port.counters().carried == 5);

    destination.datapath.open_landing(CARRY_ID, &destination.port, &landing(DESTINATION, MARKER)).unwrap();
    fabric.send(0..7);
    send_markers(&fabric.peer.run(|| Sender::new("old0")));
    eventually("they were refused", || {
        destination.port.counters().refused == 7 + u64::from(throughline_loader::MARKERS)
    });
    assert_eq!(destination.port.counters().landed, 0, "nor did what came before there was a landing");
    assert_eq!(destination.datapath.markers_seen(CARRY_ID, PEER_INDEX).unwrap(), 0);
    assert!(destination.tap.read().is_none());
}

#[test]
fn a_marker_waits_in_line_and_ends_at_the_landing() {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    let old = fabric.peer.run(|| Sender::new("old0"));
    let seen = || destination.datapath.markers_seen(CARRY_ID, PEER_INDEX).unwrap();
    source.port.set_mode(Mode::Hold);
    send_markers(&old);
    // Neither a marker nor anyone's frame: it ends here too.
    old.send(&numbered(MARKER, 0));
    eventually("they wait", || source.port.line() == 33);
    assert_eq!(seen(), 0);

    let guest = destination.run_guest();
    let _pump = source.release_to_carry();
    eventually("they are in", || seen() == ALL_MARKERS);
    assert_eq!(guest.finish(), [], "the guest sees none");
    assert_eq!(destination.port.counters().landed, 0);
    destination.datapath.close_landing(CARRY_ID).unwrap();
    assert_eq!(seen(), 0);
}

#[test]
fn groups_are_delivered_once() {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    let old = fabric.peer.run(|| Sender::new("old0"));
    source.port.set_mode(Mode::Hold);
    old.send(&numbered(BROADCAST, 0));
    old.send(&numbered(GUEST, 1));
    let guest = destination.run_guest();
    let pump = source.release_to_carry();
    eventually("the line is empty", || pump.is_line_empty());
    // What was held goes along; after that the destination has its own.
    old.send(&numbered(BROADCAST, 9));
    old.send(&numbered(GUEST, 2));
    assert_exact(&guest.finish(), 3);
    assert_eq!(source.port.counters().flooded, 1);
}

#[test]
fn a_slow_guest_loses_nothing_to_its_own_small_ring() {
    let fabric = Fabric::shaped(&Shape { tap_ring: 64, ..Shape::default() });
    let source = &fabric.source;
    source.port.set_mode(Mode::Hold);
    fabric.send(0..2_000);
    eventually("all are held", || source.port.line() == 2_000);
    let pump = source.release_to_tap();
    let guest = Guest::run(source.tap.queues(), Duration::from_micros(50));
    eventually("the line is empty", || pump.is_line_empty());
    assert_exact(&guest.finish(), 2_000);
}
