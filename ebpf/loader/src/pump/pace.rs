//! A release no faster than the underlay takes it.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

/// A token bucket of bytes. Takes `now`, waits for nobody.
#[derive(Debug)]
pub(super) struct Pace {
    rate: NonZeroU64,
    /// When the bytes written so far are due at the rate.
    due: Instant,
}

/// How far the pace may run ahead of the rate: bursts up to this long are left to queues.
const BURST: Duration = Duration::from_micros(500);

/// Bytes that a frame takes of the underlay: with each of its segments go the tunnel's headers (50, IPv4), a checksum, the
/// preamble and the gap between frames (24).
pub(super) fn on_the_wire(bytes: usize) -> usize {
    const SEGMENT: usize = 1448;
    const OVERHEAD: usize = 74;
    bytes + bytes.div_ceil(SEGMENT) * OVERHEAD
}

impl Pace {
    pub(super) fn new(rate: NonZeroU64, now: Instant) -> Self {
        Self { rate, due: now }
    }

    /// `bytes` are about to be written; how long to wait before.
    pub(super) fn delay(&mut self, bytes: usize, now: Instant) -> Duration {
        // A pause is not saved up for a burst.
        let start = self.due.max(now);
        let nanoseconds = u128::from(bytes as u64) * 1_000_000_000 / u128::from(self.rate.get());
        self.due = start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        start.saturating_duration_since(now).saturating_sub(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(bytes_per_second: u64, now: Instant) -> Pace {
        Pace::new(NonZeroU64::new(bytes_per_second).unwrap(), now)
    }

    #[test]
    fn over_time_the_rate_is_kept() {
        let start = Instant::now();
        let mut now = start;
        let mut pace = pace(1_000_000, now);
        for _ in 0..1000 {
            now += pace.delay(1000, now);
        }
        let elapsed = now - start;
        assert!(elapsed > Duration::from_millis(990) && elapsed <= Duration::from_millis(1000), "{elapsed:?}");
    }

    #[test]
    fn small_frames_take_more_of_the_wire_than_they_say() {
        assert_eq!(on_the_wire(64), 138);
        assert_eq!(on_the_wire(1448), 1522);
        assert_eq!(on_the_wire(61_600), 61_600 + 43 * 74);
    }

    #[test]
    fn a_short_burst_is_not_delayed() {
        let now = Instant::now();
        let mut pace = pace(1_000_000, now);
        assert_eq!(pace.delay(250, now), Duration::ZERO);
        assert_eq!(pace.delay(250, now), Duration::ZERO);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let start = Instant::now();
        let mut pace = pace(1_000_000, start);
        let later = start + Duration::from_secs(10);
        assert_eq!(pace.delay(10_000, later), Duration::ZERO);
        assert_eq!(pace.delay(10_000, later), Duration::from_millis(10) - BURST);
    }
}
