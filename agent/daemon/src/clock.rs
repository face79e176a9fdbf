//! The agent's two clocks: monotonic for decisions, real for the record.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Reads a monotonic clock that began when this was made.
#[derive(Debug, Clone, Copy)]
pub struct Monotonic(Instant);

impl Monotonic {
    /// Begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since it began.
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }

    /// The instant at which `now` will read `reading`.
    pub fn at(self, reading: Duration) -> Instant {
        self.0 + reading
    }
}

/// CLOCK_REALTIME, nanoseconds since 1970.
pub fn real_ns() -> u64 {
    ns_since_1970(SystemTime::now())
}

/// A moment as nanoseconds since 1970.
pub fn ns_since_1970(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
