//! What `steer` decides, apart from how it does it: pure, so that every case is tested on the host.

use crate::mode;

/// What `steer` knows of a frame and its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// A [`mode`].
    pub mode: u32,
    /// Frames in line, [`crate::PortState::line`].
    pub line: i64,
    /// Most frames that may be in line.
    pub line_limit: u32,
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
/// The line seals itself: in [`mode::CARRY`] and [`mode::RELEASE`] a frame goes straight on only while nothing is in line
/// before it. A mode word that no version knows passes, as if no program were there.
#[inline(always)]
pub const fn decide(sight: Sight) -> Verdict {
    if sight.marked {
        return Verdict::Pass;
    }
    match sight.mode {
        mode::MUTE => Verdict::Mute,
        mode::HOLD => queue(sight),
        mode::CARRY if sight.group => Verdict::Flooded,
        mode::CARRY if sight.line > 0 => queue(sight),
        mode::CARRY => Verdict::Carry,
        mode::RELEASE if sight.line > 0 => queue(sight),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
const fn queue(sight: Sight) -> Verdict {
    if sight.line >= sight.line_limit as i64 { Verdict::Overflow } else { Verdict::Divert }
}

/// Whether an Ethernet frame is for a group: the low bit of its first octet (IEEE 802-2014 8.2.2).
#[inline(always)]
pub const fn is_group(first_octet: u8) -> bool {
    first_octet & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = 10;

    fn unmarked(mode: u32, line: i64, group: bool) -> Verdict {
        decide(Sight { mode, line, line_limit: LIMIT, marked: false, group })
    }

    #[test]
    fn every_mode_with_and_without_a_line() {
        let table = [
            // mode, no line, a line, line at its limit
            (mode::PASS, Verdict::Pass, Verdict::Pass, Verdict::Pass),
            (mode::MUTE, Verdict::Mute, Verdict::Mute, Verdict::Mute),
            (mode::HOLD, Verdict::Divert, Verdict::Divert, Verdict::Overflow),
            (mode::CARRY, Verdict::Carry, Verdict::Divert, Verdict::Overflow),
            (mode::RELEASE, Verdict::Pass, Verdict::Divert, Verdict::Overflow),
            (99, Verdict::Pass, Verdict::Pass, Verdict::Pass),
        ];
        for (mode, none, some, full) in table {
            assert_eq!(unmarked(mode, 0, false), none, "mode {mode}, no line");
            assert_eq!(unmarked(mode, 1, false), some, "mode {mode}, a line");
            assert_eq!(unmarked(mode, i64::from(LIMIT), false), full, "mode {mode}, a full line");
        }
    }

    #[test]
    fn a_marked_frame_passes_whatever_the_mode() {
        for mode in 0..6 {
            let sight = Sight { mode, line: 5, line_limit: LIMIT, marked: true, group: true };
            assert_eq!(decide(sight), Verdict::Pass, "mode {mode}");
        }
    }

    #[test]
    fn groups_are_told_apart_only_while_carrying() {
        assert_eq!(unmarked(mode::CARRY, 0, true), Verdict::Flooded);
        assert_eq!(unmarked(mode::CARRY, 5, true), Verdict::Flooded);
        for mode in [mode::PASS, mode::MUTE, mode::HOLD, mode::RELEASE] {
            for line in [0, 5] {
                assert_eq!(unmarked(mode, line, true), unmarked(mode, line, false), "mode {mode}, line {line}");
            }
        }
    }

    #[test]
    fn a_limit_of_zero_holds_nothing() {
        let sight = Sight { mode: mode::HOLD, line: 0, line_limit: 0, marked: false, group: false };
        assert_eq!(decide(sight), Verdict::Overflow);
    }

    #[test]
    fn group_addresses() {
        assert!(is_group(0xff) && is_group(0x01) && is_group(0x33));
        assert!(!is_group(0x02) && !is_group(0x00));
    }
}
