//! Clocks, and pacing by absolute deadlines.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// `CLOCK_REALTIME`, nanoseconds since 1970: what the agents' reports are stamped with.
pub fn realtime_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

/// `CLOCK_MONOTONIC`, nanoseconds: for intervals on one machine, and for a guest's own time.
pub fn monotonic_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

fn read(clock: ClockId) -> u64 {
    // Cannot fail: both clocks exist on every Linux.
    clock_gettime(clock).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// Hands out one slot an interval, by absolute deadlines, so that a late slot does not delay those after it.
///
/// A sender that was kept from running catches up in a burst, but only for [`Pacer::MOST_LATE`]: what lies further back
/// is not sent at all (and so is not numbered either).
#[derive(Debug)]
pub struct Pacer {
    next_ns: u64,
    interval_ns: u64,
}

impl Pacer {
    /// How far behind a sender may be and still catch up.
    pub const MOST_LATE: Duration = Duration::from_millis(20);

    /// Slots at `rate` a second (at least 1), the first one at once.
    pub fn new(rate: u32) -> Self {
        Self { next_ns: monotonic_ns(), interval_ns: 1_000_000_000 / u64::from(rate.max(1)) }
    }

    /// Sleeps until the next slot.
    pub fn wait(&mut self) {
        let deadline = TimeSpec::from_duration(Duration::from_nanos(self.next_ns));
        // Interrupted or not: an early packet is harmless, and the next deadline does not depend on this one.
        let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &deadline);
        self.advance(monotonic_ns());
    }

    /// Time until the next slot; zero when it is due.
    pub fn remaining(&self) -> Duration {
        Duration::from_nanos(self.next_ns.saturating_sub(monotonic_ns()))
    }

    /// Takes the slot that is due at `now_ns`.
    pub fn advance(&mut self, now_ns: u64) {
        let earliest = now_ns.saturating_sub(Self::MOST_LATE.as_nanos() as u64);
        self.next_ns = self.next_ns.max(earliest) + self.interval_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_sender_catches_up_for_a_bounded_time() {
        let mut pacer = Pacer { next_ns: 1_000_000_000, interval_ns: 1_000_000 };
        let now = 2_000_000_000;
        let mut burst = 0;
        while pacer.next_ns <= now {
            pacer.advance(now);
            burst += 1;
        }
        assert_eq!(burst, 21, "20 ms of 1 ms slots, and the one that is due");
    }

    #[test]
    fn a_punctual_sender_keeps_its_rate() {
        let mut pacer = Pacer { next_ns: 5_000_000, interval_ns: 500_000 };
        for _ in 0..2000 {
            pacer.advance(pacer.next_ns + 1000);
        }
        assert_eq!(pacer.next_ns, 1_005_000_000);
    }
}
