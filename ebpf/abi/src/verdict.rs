//! What `steer` decides, apart from how it does it: pure, so that every case is tested on the host.

use crate::mode;

/// What `steer` knows of a frame and its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// A [`mode`].
    pub mode: u32,
    /// Frames in line in the frame's own lane, one of [`crate::PortState::lanes`].
    pub ahead: i64,
    /// The gate is open for that lane.
    pub lane_open: bool,
    /// One more frame of its size is within the line's limits.
    pub has_room: bool,
    /// The frame bears the port's own mark: it has had its turn.
    pub marked: bool,
    /// The frame is for a group (multicast or broadcast).
    pub group: bool,
}

/// What becomes of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the tap.
    Pass,
    /// Dropped: the port is mute.
    Mute,
    /// To the hold, behind the line.
    Divert,
    /// Dropped: the line is at its limit.
    Overflow,
    /// Straight to the carry tunnel.
    Carry,
    /// Dropped: the destination gets its own copy of what is for a group.
    Flooded,
}

/// Decides one frame.
///
/// Every lane seals itself: in [`mode::CARRY`] and [`mode::RELEASE`], and at a gate open for its lane, a frame goes
/// straight on only while nothing is in its lane before it. A mode word that no version knows passes, as if no program
/// were there.
#[inline(always)]
pub const fn decide(sight: Sight) -> Verdict {
    if sight.marked {
        return Verdict::Pass;
    }
    match sight.mode {
        mode::MUTE => Verdict::Mute,
        mode::HOLD if sight.lane_open && sight.ahead <= 0 => Verdict::Pass,
        mode::HOLD => queue(sight),
        mode::CARRY if sight.group => Verdict::Flooded,
        mode::CARRY if sight.ahead > 0 => queue(sight),
        mode::CARRY => Verdict::Carry,
        mode::RELEASE if sight.ahead > 0 => queue(sight),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
const fn queue(sight: Sight) -> Verdict {
    if sight.has_room { Verdict::Divert } else { Verdict::Overflow }
}

/// Whether a line of `frames` and `bytes` takes one more frame of `length` bytes.
#[inline(always)]
pub const fn has_room(frames: i64, frames_limit: u32, bytes: i64, length: u32, bytes_limit: u64) -> bool {
    let after = bytes + length as i64;
    frames < frames_limit as i64 && (after <= 0 || after as u64 <= bytes_limit)
}

/// Whether an Ethernet frame is for a group: the low bit of its first octet (IEEE 802-2014 8.2.2).
#[inline(always)]
pub const fn is_group(first_octet: u8) -> bool {
    first_octet & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(mode: u32, ahead: i64) -> Sight {
        Sight { mode, ahead, lane_open: false, has_room: true, marked: false, group: false }
    }

    #[test]
    fn every_mode_with_and_without_a_line() {
        let table = [
            // mode, nothing ahead, something ahead, something ahead and no room
            (mode::PASS, Verdict::Pass, Verdict::Pass, Verdict::Pass),
            (mode::MUTE, Verdict::Mute, Verdict::Mute, Verdict::Mute),
            (mode::HOLD, Verdict::Divert, Verdict::Divert, Verdict::Overflow),
            (mode::CARRY, Verdict::Carry, Verdict::Divert, Verdict::Overflow),
            (mode::RELEASE, Verdict::Pass, Verdict::Divert, Verdict::Overflow),
            (99, Verdict::Pass, Verdict::Pass, Verdict::Pass),
        ];
        for (mode, none, some, full) in table {
            assert_eq!(decide(sight(mode, 0)), none, "mode {mode}, nothing ahead");
            assert_eq!(decide(sight(mode, 1)), some, "mode {mode}, something ahead");
            assert_eq!(decide(Sight { has_room: false, ..sight(mode, 1) }), full, "mode {mode}, no room");
        }
    }

    #[test]
    fn an_open_lane_is_released_and_the_others_wait() {
        let open = |ahead| Sight { lane_open: true, ..sight(mode::HOLD, ahead) };
        assert_eq!(decide(open(0)), Verdict::Pass);
        assert_eq!(decide(open(1)), Verdict::Divert, "it seals itself");
        assert_eq!(decide(sight(mode::HOLD, 0)), Verdict::Divert);
        assert_eq!(decide(Sight { lane_open: true, ..sight(mode::MUTE, 0) }), Verdict::Mute, "only the gate has lanes");
        assert_eq!(decide(Sight { lane_open: true, ..sight(mode::CARRY, 0) }), Verdict::Carry);
    }

    #[test]
    fn a_marked_frame_passes_whatever_the_mode() {
        for mode in 0..6 {
            let marked = Sight { marked: true, group: true, has_room: false, ..sight(mode, 5) };
            assert_eq!(decide(marked), Verdict::Pass, "mode {mode}");
        }
    }

    #[test]
    fn groups_are_told_apart_only_while_carrying() {
        let group = |mode, ahead| decide(Sight { group: true, ..sight(mode, ahead) });
        assert_eq!(group(mode::CARRY, 0), Verdict::Flooded);
        assert_eq!(group(mode::CARRY, 5), Verdict::Flooded);
        for mode in [mode::PASS, mode::MUTE, mode::HOLD, mode::RELEASE] {
            for ahead in [0, 5] {
                assert_eq!(group(mode, ahead), decide(sight(mode, ahead)), "mode {mode}, {ahead} ahead");
            }
        }
    }

    #[test]
    fn a_line_is_bounded_in_frames_and_in_bytes() {
        assert!(has_room(9, 10, 0, 100, 1_000));
        assert!(!has_room(10, 10, 0, 100, 1_000));
        assert!(has_room(0, 10, 900, 100, 1_000));
        assert!(!has_room(0, 10, 901, 100, 1_000));
        assert!(!has_room(0, 0, 0, 0, 1_000), "a limit of zero holds nothing");
        assert!(has_room(0, 10, -5, 1, 0), "taken back before it was added: another processor's view");
    }

    #[test]
    fn group_addresses() {
        assert!(is_group(0xff) && is_group(0x01) && is_group(0x33));
        assert!(!is_group(0x02) && !is_group(0x00));
    }
}
