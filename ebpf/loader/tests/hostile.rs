//! Frames of those who have no part in a move, and of peers that say they are others: none reaches the guest, none opens a
//! gate, all are counted.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use support::{
    eventually,
    frames::{GUEST, MARKER, PEER, Sender, numbered},
    topology::{CARRY_ID, DESTINATION, Fabric, PEER_INDEX, SOURCE, assert_exact, markers, tags},
    underlay::Intruder,
};
use throughline_abi::{MARKERS, MarkerPayload, marker_frame};
use throughline_loader::{ALL_MARKERS, LandingConfig, Mode, Strays};

/// Another host of the fabric, with markers of its own.
const OTHER_PEER: u32 = PEER_INDEX + 1;
/// No tunnel end point of the fabric.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
/// How much garbage comes beside a move, unless `THROUGHLINE_GARBAGE` says otherwise.
const GARBAGE: u64 = 100_000;

/// A fabric whose destination awaits two peers, and whose source carries.
fn awaiting_two() -> Fabric {
    let fabric = Fabric::new();
    let destination = &fabric.destination;
    destination.datapath.close_landing(CARRY_ID).unwrap();
    let peers = [PEER_INDEX, OTHER_PEER].map(|peer| (peer, tags(peer))).to_vec();
    let landing = LandingConfig { source_vtep: SOURCE, marker_mac: MARKER, peers };
    destination.datapath.open_landing(CARRY_ID, &destination.port, &landing).unwrap();
    fabric.source.port.set_mode(Mode::Carry);
    fabric
}

fn marker(payload: MarkerPayload) -> [u8; 60] {
    marker_frame(MARKER, PEER, [10, 9, 0, 1], [10, 9, 0, 2], payload)
}

#[test]
fn a_peer_cannot_mark_for_another() {
    let fabric = awaiting_two();
    let destination = &fabric.destination;
    let seen = |peer| destination.datapath.markers_seen(CARRY_ID, peer).unwrap();
    let forged = |count| eventually("they are counted", || destination.port.counters().forged == count);
    let old = fabric.peer.run(|| Sender::new("old0"));
    let (own, others) = (tags(PEER_INDEX), OTHER_PEER as u16);

    // The other's name over its own tags, over none, over those of another sequence number; then its own, swapped.
    for (sequence, tag) in (0..).zip(own) {
        old.send(&marker(MarkerPayload::new(others, sequence, tag)));
        old.send(&marker(MarkerPayload::new(others, sequence, 0)));
        old.send(&marker(MarkerPayload::new(others, sequence, tags(OTHER_PEER)[usize::from(sequence) ^ 1])));
        old.send(&marker(MarkerPayload::new(PEER_INDEX as u16, sequence, own[usize::from(sequence) ^ 1])));
    }
    forged(4 * u64::from(MARKERS));
    assert_eq!((seen(PEER_INDEX), seen(OTHER_PEER)), (0, 0));

    // A marker heard and sent again says what it said, once.
    let heard = markers(MARKER, PEER_INDEX).next().unwrap();
    (0..100).for_each(|_| old.send(&heard));
    eventually("it is in", || seen(PEER_INDEX) == 1);
    markers(MARKER, OTHER_PEER).for_each(|frame| old.send(&frame));
    eventually("all of the other's are in", || seen(OTHER_PEER) == ALL_MARKERS);
    assert_eq!(seen(PEER_INDEX), 1);
    forged(4 * u64::from(MARKERS));
    assert_eq!(destination.port.counters().landed, 0, "none of it is the guest's");
}

#[test]
fn markers_of_nobody_take_no_place() {
    let fabric = awaiting_two();
    let destination = &fabric.destination;
    let old = fabric.peer.run(|| Sender::new("old0"));
    // As many names as there are: more than the map of awaited markers has places.
    for peer in 0..u16::MAX {
        if ![PEER_INDEX, OTHER_PEER].contains(&peer.into()) {
            old.send(&marker(MarkerPayload::new(peer, 0, tags(peer.into())[0])));
        }
    }
    let strangers = u64::from(u16::MAX) - 2;
    eventually("they are counted", || destination.port.counters().forged == strangers);
    for peer in [PEER_INDEX, OTHER_PEER] {
        markers(MARKER, peer).for_each(|frame| old.send(&frame));
        let seen = || destination.datapath.markers_seen(CARRY_ID, peer).unwrap();
        eventually("a peer's own are in all the same", || seen() == ALL_MARKERS);
    }
    // What is addressed as a marker and is none: without a payload, cut off, no magic.
    let whole = markers(MARKER, PEER_INDEX).next().unwrap();
    let intruder = Intruder::new(&fabric.source.netns, &destination.netns, DESTINATION);
    for length in [42, 57] {
        intruder.tunnelled(SOURCE, CARRY_ID, &whole[..length]);
    }
    intruder.tunnelled(SOURCE, CARRY_ID, &numbered(MARKER, 0));
    eventually("they are counted", || destination.port.counters().forged == strangers + 3);
    assert_eq!(destination.port.counters().landed, 0);
    assert!(destination.tap.read().is_none());
}

#[test]
fn what_belongs_to_no_move_is_dropped_and_counted() {
    let fabric = Fabric::new();
    let destination = &fabric.destination;
    let intruder = Intruder::new(&fabric.source.netns, &destination.netns, DESTINATION);
    let strays = || destination.datapath.strays().unwrap();
    assert_eq!(strays(), Strays::default());
    for number in (0..1 << 24).step_by(1 << 12).filter(|number| *number != CARRY_ID) {
        intruder.tunnelled(SOURCE, number, &numbered(GUEST, 0));
    }
    eventually("they are counted", || strays().unknown_id == 1 << 12);
    for frame in [numbered(GUEST, 0), numbered(MARKER, 0), markers(MARKER, PEER_INDEX).next().unwrap().to_vec()] {
        intruder.tunnelled(STRANGER, CARRY_ID, &frame);
    }
    eventually("so is what comes from a stranger", || destination.port.counters().refused == 3);
    assert_eq!(strays(), Strays { without_key: 0, unknown_id: 1 << 12 });
    let state = destination.port.counters();
    assert_eq!((state.landed, state.forged), (0, 0));
    assert_eq!(destination.datapath.markers_seen(CARRY_ID, PEER_INDEX).unwrap(), 0);
    assert!(destination.tap.read().is_none());
}

/// What may come to the carry's port from somebody who knows the fabric well: one of many kinds, none of it a frame of the
/// source's under its carry id.
fn garbage(intruder: &Intruder, number: u64) {
    let noise = |length: usize| -> Vec<u8> {
        (0..length as u64).map(|at| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 8 * 8)) as u8).collect()
    };
    let unknown = (number as u32).wrapping_mul(0x9e_3779) & 0xff_ffff;
    let unknown = if unknown == CARRY_ID { 0 } else { unknown };
    match number % 8 {
        0 => intruder.datagram(STRANGER, 1_024, &noise((number % 1_400) as usize)),
        1 => intruder.datagram(SOURCE, 1_024, &noise(7)),
        2 => intruder.tunnelled(STRANGER, CARRY_ID, &numbered(GUEST, number)),
        3 => intruder.tunnelled(STRANGER, CARRY_ID, &markers(MARKER, PEER_INDEX).nth(number as usize % 32).unwrap()),
        4 => intruder.tunnelled(SOURCE, unknown, &numbered(GUEST, number)),
        5 => intruder.tunnelled(SOURCE, CARRY_ID, &marker(MarkerPayload::new(PEER_INDEX as u16, 5, number))),
        6 => intruder.tunnelled(SOURCE, CARRY_ID, &numbered(MARKER, number)),
        _ => intruder.tunnelled(Ipv4Addr::from_bits(number as u32), CARRY_ID, &noise(60)),
    }
}

#[test]
fn a_move_under_a_flood_of_garbage_is_exact() {
    let count =
        std::env::var("THROUGHLINE_GARBAGE").map_or(GARBAGE, |count| count.parse().expect("a number of frames"));
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    let intruder = Intruder::new(&source.netns, &destination.netns, DESTINATION);
    let guest = source.run_guest();
    let traffic = fabric.traffic(2_000);
    let quarter = AtomicBool::new(false);
    let (seen, sent) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            for number in 0..count {
                garbage(&intruder, number);
                if number == count.min(GARBAGE) / 4 {
                    quarter.store(true, SeqCst);
                }
            }
        });
        eventually("the flood is well under way", || quarter.load(SeqCst));
        source.port.set_mode(Mode::Hold);
        std::thread::sleep(Duration::from_millis(1));
        let mut seen = guest.pause();
        destination.port.set_mode(Mode::Hold);
        let guest = destination.run_guest();
        let pump = source.release_to_carry();
        traffic.flip();
        let gate = destination.open_gate_after(&pump, CARRY_ID);
        eventually("the gate is open", || gate.is_line_empty());
        flood.join().unwrap();
        let sent = traffic.stop();
        seen.extend(guest.finish());
        (seen, sent)
    });
    // The guest that reads the destination's tap knows its own frames and panics at any other.
    assert_exact(&seen, sent);
    let state = destination.port.counters();
    let strays = destination.datapath.strays().unwrap();
    assert!(
        state.refused >= count / 8 && state.forged >= count / 8 && strays.unknown_id >= count / 8,
        "{state:?} {strays:?}"
    );
    assert_eq!(state.overflowed + source.port.counters().overflowed, 0);
}
