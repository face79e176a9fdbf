//! When to pause: pure judgement over QEMU's progress figures.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Limits, Progress};

/// An expected pause not worth improving on, microseconds.
const GOOD_PAUSE_US: u64 = 2_000;
/// How long a pause that is allowed but not good is given to become good.
const PATIENCE: Duration = Duration::from_millis(400);

/// Watches pre-copy and says when the guest should be paused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Convergence {
    limits: Limits,
    last: Progress,
    allowed_since: Option<Duration>,
}

impl Convergence {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, last: Progress::default(), allowed_since: None }
    }

    /// True when the guest should be paused now: the first pass is over, and the expected pause is good, or has been
    /// within the caller's limit for as long as it is reasonable to wait for better.
    pub(crate) fn should_pause(&mut self, progress: &Progress, now: Duration) -> bool {
        self.last = *progress;
        let first_pass_over = progress.passes >= 2;
        let limit_us = u64::from(self.limits.longest_pause_ms) * 1000;
        if !first_pass_over || progress.expected_pause_us > limit_us {
            self.allowed_since = None;
            return false;
        }
        let since = *self.allowed_since.get_or_insert(now);
        progress.expected_pause_us <= GOOD_PAUSE_US || now.saturating_sub(since) >= PATIENCE
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

    fn at(passes: u32, expected_pause_us: u64) -> Progress {
        Progress { passes, expected_pause_us, ..Progress::default() }
    }

    #[test]
    fn never_in_the_first_pass() {
        assert!(!Convergence::new(Limits::default()).should_pause(&at(1, 0), Duration::ZERO));
    }

    #[test]
    fn at_once_when_good() {
        assert!(Convergence::new(Limits::default()).should_pause(&at(2, GOOD_PAUSE_US), Duration::ZERO));
    }

    #[test]
    fn waits_for_better_but_not_for_ever() {
        let mut convergence = Convergence::new(Limits::default());
        assert!(!convergence.should_pause(&at(2, 100_000), Duration::ZERO));
        assert!(!convergence.should_pause(&at(3, 100_000), PATIENCE / 2));
        assert!(convergence.should_pause(&at(4, 100_000), PATIENCE));
    }

    #[test]
    fn never_beyond_the_callers_limit() {
        let mut convergence = Convergence::new(Limits { longest_pause_ms: 50, ..Limits::default() });
        for second in 0..10 {
            assert!(!convergence.should_pause(&at(9, 50_001), Duration::from_secs(second)));
        }
    }
}
