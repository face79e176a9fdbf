//! When to arm and when to pause: pure judgement over QEMU's progress figures.
//!
//! QEMU stops a guest by itself when what is left would go within its downtime limit times the rate it measured over the
//! last 100 ms, or when nothing is left; an idle guest gets there before anybody looks. A stop that finds the port not
//! armed may cost a frame: a stopped QEMU still reads one from its tap (net/tap.c, `tap_send`). So QEMU runs free only far
//! from the end, or armed:
//!
//! 1. *brake* while something is left: QEMU goes to sleep over it, however idle the guest, and measures next to no rate.
//!    From here on it moves in slots of 100 ms, one page at the beginning of each, which shows where the slots are;
//! 2. *arm* shortly before a slot ends, and only then give full rate: a *flight*. The first pass ends, and QEMU, judging
//!    by the braked rate, goes on with what was dirtied meanwhile unless it is a handful of pages;
//! 3. pause when next to nothing is left of a later pass. Should QEMU be quicker, the port is armed already;
//! 4. a flight that does not get there soon is braked, what was held goes to the guest, and the next slot sees the next
//!    flight: frames wait for a moment several times, but never long.
//!
//! A QEMU that stops before it was braked (nobody looked in time) is made to begin again, further from the end.
use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Limits, Progress};

/// An expected pause not worth improving on, microseconds.
const GOOD_PAUSE_US: u64 = 3_000;
/// How long a pause that is allowed but not good is given to become good, in pre-copy at full rate.
const PATIENCE: Duration = Duration::from_millis(400);
/// Brake when this little is left, bytes: more than is sent, zero pages included, between two looks.
const BRAKE_AT: u64 = 32 << 20;
/// QEMU has noticed the brake when it measures less than this, bytes per second.
const BRAKED_RATE: u64 = 1 << 20;
/// Arm this long after a slot began: what is left of its 100 ms is for the tap's ring to run empty and the rate to be set.
const ARM_AFTER: Duration = Duration::from_millis(90);
/// From then on it is too late for this slot.
const ARM_BEFORE: Duration = Duration::from_millis(97);
/// With this much left and one page sent a slot, QEMU does not end by itself, bytes.
const SAFE_TO_DISARM: u64 = 64 << 10;
/// Pause when this little is left, bytes.
const PAUSE_AT: u64 = 1 << 20;
/// How long frames are held for one flight, once it goes.
const FLIGHT: Duration = Duration::from_millis(22);
/// How long frames are held for a flight to begin.
const FLIGHT_BEGINS: Duration = Duration::from_millis(120);
/// A flight that leaves a pause this long, microseconds, got near enough.
const NEAR_ENOUGH_US: u64 = 8_000;
/// After that many flights the guest is paused wherever it is.
const FLIGHTS: u32 = 10;

/// Watches pre-copy and says when the guest should be paused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Convergence {
    limits: Limits,
    last: Progress,
    /// How often QEMU was too quick.
    missed: u32,
    allowed_since: Option<Duration>,
    /// When the slot began that is now under way, while braked.
    slot: Option<Duration>,
    flights: u32,
    flight: Option<Flight>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Flight {
    began: Duration,
    with: Progress,
    moved: Option<Duration>,
}

/// What a flight has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// Look again.
    GoOn,
    /// Pause the guest now.
    Pause,
    /// Too far for this time: brake.
    Brake,
}

impl Convergence {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, last: Progress::default(), missed: 0, allowed_since: None, slot: None, flights: 0, flight: None }
    }

    /// QEMU was too quick: the next attempt brakes further from the end.
    pub(crate) fn begin_again(&mut self) {
        *self = Self { missed: self.missed + 1, last: self.last, ..Self::new(self.limits) };
    }

    /// True when so little is left that QEMU may end by itself.
    pub(crate) fn should_brake(&mut self, progress: &Progress) -> bool {
        self.last = *progress;
        progress.passes > 0 && progress.remaining <= BRAKE_AT << self.missed.min(8)
    }

    /// True when a guest that keeps more dirty than the brake is for should be paused now: the first pass is over, and
    /// the expected pause has been within the caller's limit for as long as it is reasonable to wait for better.
    pub(crate) fn should_pause(&mut self, progress: &Progress, now: Duration) -> bool {
        self.last = *progress;
        if progress.passes < 2 || !self.allowed(progress) {
            self.allowed_since = None;
            return false;
        }
        let since = *self.allowed_since.get_or_insert(now);
        progress.expected_pause_us <= GOOD_PAUSE_US || now.saturating_sub(since) >= PATIENCE
    }

    /// True when the port should be armed now, so that it is before the slot ends.
    pub(crate) fn should_arm(&mut self, progress: &Progress, now: Duration) -> bool {
        let moved = (progress.remaining, progress.transferred) != (self.last.remaining, self.last.transferred);
        self.last = *progress;
        if moved {
            self.slot = Some(now);
        }
        let Some(slot) = self.slot else { return false };
        let in_slot = now.saturating_sub(slot);
        let in_time = in_slot >= ARM_AFTER && in_slot < ARM_BEFORE;
        in_time && progress.rate < BRAKED_RATE && self.allowed(progress)
    }

    /// The port is armed and QEMU goes at full rate now.
    pub(crate) fn take_off(&mut self, now: Duration) {
        self.flights += 1;
        self.flight = Some(Flight { began: now, with: self.last, moved: None });
    }

    /// Judges a flight, by new figures or because its time is up.
    pub(crate) fn course(&mut self, progress: Option<&Progress>, now: Duration) -> Course {
        self.last = progress.copied().unwrap_or(self.last);
        let Some(flight) = &mut self.flight else { return Course::Pause };
        if flight.moved.is_none() && self.last.remaining != flight.with.remaining {
            flight.moved = Some(now);
        }
        let pass_ended = self.last.passes > flight.with.passes;
        if pass_ended && self.last.remaining <= PAUSE_AT {
            return Course::Pause;
        }
        if self.flight_deadline().is_some_and(|deadline| now < deadline) {
            return Course::GoOn;
        }
        let near = pass_ended && self.last.expected_pause_us <= NEAR_ENOUGH_US;
        if near || self.flights >= FLIGHTS { Course::Pause } else { Course::Brake }
    }

    /// When a flight has taken long enough.
    pub(crate) fn flight_deadline(&self) -> Option<Duration> {
        self.flight.map(|flight| flight.moved.map_or(flight.began + FLIGHT_BEGINS, |moved| moved + FLIGHT))
    }

    /// Braked again with this left: true when QEMU cannot stop the guest before it is armed again.
    pub(crate) fn may_disarm(&mut self, progress: &Progress) -> bool {
        self.last = *progress;
        self.slot = None;
        progress.remaining >= SAFE_TO_DISARM
    }

    fn allowed(&self, progress: &Progress) -> bool {
        progress.expected_pause_us <= u64::from(self.limits.longest_pause_ms) * 1000
    }
}

impl fmt::Display for Convergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the guest dirties {} bytes/s of memory, {} bytes/s are sent, a pause now would take {} ms, {} are allowed",
            self.last.dirty_rate,
            self.last.rate,
            self.last.expected_pause_us / 1000,
            self.limits.longest_pause_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(passes: u32, remaining: u64, expected_pause_us: u64) -> Progress {
        Progress { passes, remaining, expected_pause_us, ..Progress::default() }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn convergence() -> Convergence {
        Convergence::new(Limits::default())
    }

    #[test]
    fn brakes_before_qemu_can_end_by_itself() {
        let mut convergence = convergence();
        assert!(!convergence.should_brake(&at(0, 0, 0)), "nothing was measured yet");
        assert!(!convergence.should_brake(&at(1, BRAKE_AT + 1, 0)));
        assert!(convergence.should_brake(&at(1, BRAKE_AT, 0)));
        convergence.begin_again();
        assert!(convergence.should_brake(&at(1, 2 * BRAKE_AT, 0)), "further from the end");
    }

    #[test]
    fn a_busy_guest_is_paused_when_it_gets_no_better() {
        let mut convergence = convergence();
        assert!(!convergence.should_pause(&at(1, 90 * MIB, 0), ms(0)), "never in the first pass");
        assert!(!convergence.should_pause(&at(2, 90 * MIB, 100_000), ms(0)));
        assert!(convergence.should_pause(&at(4, 90 * MIB, 100_000), PATIENCE));
    }

    #[test]
    fn never_beyond_the_callers_limit() {
        let mut convergence = Convergence::new(Limits { longest_pause_ms: 50, ..Limits::default() });
        for second in 0..10 {
            assert!(!convergence.should_pause(&at(9, 90 * MIB, 50_001), Duration::from_secs(second)));
        }
        convergence.should_arm(&at(10, MIB, 50_001), ms(0));
        assert!(!convergence.should_arm(&at(10, MIB, 50_001), ARM_AFTER));
        assert!(convergence.should_arm(&at(10, MIB, 50_000), ARM_AFTER));
    }

    #[test]
    fn arms_at_the_end_of_a_slot_or_in_the_next() {
        let mut convergence = convergence();
        let left = |remaining| at(1, remaining, 6_000);
        assert!(convergence.should_brake(&left(6 * MIB)));
        assert!(!convergence.should_arm(&left(6 * MIB), ms(20)), "where are the slots?");
        assert!(!convergence.should_arm(&left(6 * MIB - 4096), ms(50)), "one begins");
        assert!(!convergence.should_arm(&left(6 * MIB - 4096), ms(50) + ARM_BEFORE), "too late");
        assert!(!convergence.should_arm(&left(6 * MIB - 8192), ms(151)), "the next");
        let unnoticed = Progress { rate: BRAKED_RATE, ..left(6 * MIB - 8192) };
        assert!(!convergence.should_arm(&unnoticed, ms(151) + ARM_AFTER), "its rate is the old one");
        assert!(convergence.should_arm(&left(6 * MIB - 8192), ms(152) + ARM_AFTER));
    }

    /// In the air since 105 ms, with `remaining` bytes.
    fn in_flight(remaining: u64) -> Convergence {
        let mut convergence = convergence();
        convergence.should_arm(&at(1, remaining, 6_000), ms(10));
        convergence.take_off(ms(105));
        convergence
    }

    #[test]
    fn a_flight_ends_with_next_to_nothing() {
        let mut convergence = in_flight(6 * MIB);
        let mut course = |progress: Progress, at| convergence.course(Some(&progress), ms(at));
        assert_eq!(course(at(1, 6 * MIB, 6_000), 110), Course::GoOn, "the slot is not over");
        assert_eq!(course(at(1, PAUSE_AT, 2_000), 114), Course::GoOn, "what is dirty is not known yet");
        assert_eq!(course(at(2, 8 * MIB, 16_000), 118), Course::GoOn, "the second pass goes");
        assert_eq!(course(at(2, PAUSE_AT, 2_000), 121), Course::Pause, "next to nothing");
    }

    #[test]
    fn a_flight_that_is_too_far_is_braked() {
        let mut convergence = in_flight(30 * MIB);
        assert_eq!(convergence.flight_deadline(), Some(ms(105) + FLIGHT_BEGINS), "it may not even begin");
        assert_eq!(convergence.course(Some(&at(1, 28 * MIB, 28_000)), ms(112)), Course::GoOn);
        assert_eq!(convergence.flight_deadline(), Some(ms(112) + FLIGHT));
        assert_eq!(convergence.course(None, ms(112) + FLIGHT), Course::Brake);
        assert!(!convergence.may_disarm(&at(1, 0, 0)), "QEMU may be stopping it at this moment");
        assert!(convergence.may_disarm(&at(1, 12 * MIB, 12_000)));
        assert!(!convergence.should_arm(&at(1, 12 * MIB, 12_000), ms(112) + ARM_AFTER), "where are the slots?");
    }

    #[test]
    fn near_enough_or_often_enough_is_there() {
        let mut near = in_flight(30 * MIB);
        near.course(Some(&at(1, 28 * MIB, 28_000)), ms(112));
        assert_eq!(near.course(Some(&at(2, 5 * MIB, NEAR_ENOUGH_US)), ms(112) + FLIGHT), Course::Pause);
        let mut busy = in_flight(30 * MIB);
        for flight in 1..FLIGHTS {
            assert_eq!(busy.course(None, ms(105) + FLIGHT_BEGINS), Course::Brake, "flight {flight}");
            busy.take_off(ms(105));
        }
        assert_eq!(busy.course(None, ms(105) + FLIGHT_BEGINS), Course::Pause);
    }
}
