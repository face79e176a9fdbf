//! Frames, as the programs in the kernel see them.

use throughline_abi::{MARKER_PAYLOAD_LEN, MARKERS, MarkerPayload, Sight, Verdict, decide, has_room, is_group, mode};

use crate::chosen;

/// The first byte says whether a marker's payload or what is known of a frame.
pub(crate) fn frames(bytes: &[u8]) {
    let Some((choice, body)) = chosen(bytes) else { return };
    if choice == 0 { marker(body) } else { verdict(choice, body) }
}

fn marker(bytes: &[u8]) {
    let Some(wire) = bytes.first_chunk::<MARKER_PAYLOAD_LEN>() else { return };
    if let Some(payload) = MarkerPayload::parse(wire) {
        assert!(u32::from(payload.sequence) < MARKERS, "a bit stands for it");
        assert_eq!(payload.to_bytes(), *wire);
    }
}

/// Whatever is known of a frame, one verdict, and the rules that hold in every mode.
fn verdict(mode: u8, bytes: &[u8]) {
    let Some((&[flags, first_octet, ..], rest)) = bytes.split_first_chunk::<2>() else { return };
    let Some((numbers, _)) = rest.split_first_chunk::<32>() else { return };
    let number = |at: usize| i64::from_ne_bytes(numbers[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
    // What the counters of a line can be: bounded by what a machine can hold.
    let [ahead, frames, held, limit] = [0, 1, 2, 3].map(|at| number(at) >> 8);
    let room = has_room(frames, limit as u32, held, flags.into(), limit.unsigned_abs());
    let sight = Sight {
        mode: u32::from(mode) - 1,
        ahead,
        lane_open: flags & 1 != 0,
        has_room: room,
        marked: flags & 2 != 0,
        group: is_group(first_octet),
    };
    let verdict = decide(sight);
    if sight.marked {
        assert_eq!(verdict, Verdict::Pass, "it has had its turn");
        return;
    }
    assert!(verdict != Verdict::Divert || room, "nothing joins a full line");
    if [mode::CARRY, mode::RELEASE].contains(&sight.mode) && ahead > 0 {
        assert!(![Verdict::Pass, Verdict::Carry].contains(&verdict), "nothing overtakes its lane");
    }
    if sight.mode == mode::MUTE {
        assert_eq!(verdict, Verdict::Mute);
    }
}
