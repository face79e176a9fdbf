//! Super-frames (GSO) go through the line and the carry tunnel whole, counted once each.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use support::{
    eventually,
    frames::{GUEST, PEER},
    netns::ip,
    tap::{Tap, VNET_HEADER},
    topology::Fabric,
};
use throughline_loader::Mode;

const SUPER_FRAMES: usize = 200;
const HEADERS: usize = 14 + 20 + 20;
const PAYLOAD: usize = 60_000;
const MSS: u16 = 1_400;

/// A TCP segment of [`PAYLOAD`] bytes, as a guest with segmentation offload hands it to its card.
fn super_frame(number: usize) -> ([u8; VNET_HEADER], Vec<u8>) {
    const NEEDS_CHECKSUM: u8 = 1;
    const GSO_TCPV4: u8 = 1;
    let mut header = [0; VNET_HEADER];
    header[0] = NEEDS_CHECKSUM;
    header[1] = GSO_TCPV4;
    header[2..4].copy_from_slice(&(HEADERS as u16).to_le_bytes());
    header[4..6].copy_from_slice(&MSS.to_le_bytes());
    header[6..8].copy_from_slice(&34_u16.to_le_bytes());
    header[8..10].copy_from_slice(&16_u16.to_le_bytes());

    let mut frame = [&GUEST[..], &PEER, &[0x08, 0x00]].concat();
    frame.extend([0x45, 0]);
    frame.extend(((HEADERS - 14 + PAYLOAD) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    let checksum = support::frames::internet_checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame.extend([0x13, 0x88, 0x13, 0x89]);
    frame.extend(((number * PAYLOAD) as u32).to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(HEADERS + PAYLOAD, 0);
    (header, frame)
}

fn sequence_of(frame: &[u8]) -> usize {
    u32::from_be_bytes(frame[38..42].try_into().unwrap()) as usize / PAYLOAD
}

#[test]
fn super_frames_stay_whole_and_in_order() {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    let neighbour = source.netns.run(|| {
        let neighbour = Tap::new("guest1", 1_000);
        ip("link set guest1 master br0");
        neighbour
    });
    source.port.set_mode(Mode::Hold);
    for number in 0..SUPER_FRAMES {
        let (header, frame) = super_frame(number);
        neighbour.write(&header, &frame);
    }
    eventually("all are held", || source.port.line() == SUPER_FRAMES as i64);
    let state = source.port.counters();
    assert_eq!(state.held_bytes, (SUPER_FRAMES * (HEADERS + PAYLOAD)) as u64, "none was segmented");

    let pump = source.release_to_carry();
    eventually("the line is empty", || pump.is_line_empty());
    assert_eq!(source.port.line(), 0);
    let mut seen = Vec::new();
    eventually("all have landed", || {
        while let Some(frame) = destination.tap.read() {
            assert_eq!(frame.len(), HEADERS + PAYLOAD, "whole");
            seen.push(sequence_of(&frame));
        }
        seen.len() == SUPER_FRAMES
    });
    assert_eq!(seen, (0..SUPER_FRAMES).collect::<Vec<_>>());
    assert_eq!(pump.stop().lost, 0);
}
