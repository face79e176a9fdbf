//! When to pause: pure judgement over QEMU's progress figures.
//!
//! QEMU stops a guest by itself when what is left would go within its downtime limit times the rate it measured over the
//! last 100 ms; an idle guest gets there before anybody looks. A stop that finds the port not armed may cost a frame: a
//! stopped QEMU still reads one from its tap (net/tap.c, `tap_send`). So the end is approached in three steps:
//!
//! 1. *brake* while something is left: QEMU goes to sleep over it, however idle the guest, and measures next to no rate;
//! 2. *approach* at full rate: the first pass ends, and QEMU, judging by that rate, goes on with what was dirtied
//!    meanwhile unless it is a handful of pages;
//! 3. arm before the first pass can end, pause when next to nothing is left of the second. Should QEMU be quicker, the
//!    port is armed already.
//!
use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Limits, Progress};

/// An expected pause not worth improving on, microseconds.
const GOOD_PAUSE_US: u64 = 3_000;
/// How long a pause that is allowed but not good is given to become good, in pre-copy at full rate.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long an approach may take before what is left is held back again: QEMU's slot is 100 ms.
const APPROACH: Duration = Duration::from_millis(50);
/// Arm when this little is left, bytes: more than goes between two looks, less than is worth holding frames for.
const ARM_AT: u64 = 6 << 20;
/// Pause when this little is left, bytes.
const PAUSE_AT: u64 = 1 << 20;
/// How long frames are held for the last pass to end before the guest is paused all the same.
const LAST_PASS: Duration = Duration::from_millis(30);
/// An approach that has not begun by then (QEMU looks every 100 ms) will not.
const APPROACH_BEGINS: Duration = Duration::from_millis(400);
/// Brake when this little is left, bytes: more than is sent, zero pages included, between two looks.
const BRAKE_AT: u64 = 32 << 20;
/// QEMU has noticed the brake when it measures less than this, bytes per second.
const BRAKED_RATE: u64 = 1 << 20;

/// Watches pre-copy and says when the guest should be paused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Convergence {
    limits: Limits,
    last: Progress,
    allowed_since: Option<Duration>,
    released: Option<(Duration, Progress)>,
    approached_since: Option<Duration>,
    armed: Option<Duration>,
}

/// What an approach has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Approach {
    /// Look again.
    GoOn,
    /// Arm now.
    Arm,
    /// The slot runs out: brake again.
    Brake,
}

impl Convergence {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            last: Progress::default(),
            allowed_since: None,
            released: None,
            approached_since: None,
            armed: None,
        }
    }

    /// True when so little is left that QEMU may end by itself.
    pub(crate) fn should_brake(&mut self, progress: &Progress) -> bool {
        self.last = *progress;
        progress.passes > 0 && progress.remaining <= BRAKE_AT
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

    /// True when QEMU has measured the braked rate.
    pub(crate) fn is_braked(&mut self, progress: &Progress) -> bool {
        self.last = *progress;
        progress.rate < BRAKED_RATE
    }

    /// The brake is released now.
    pub(crate) fn approach(&mut self, now: Duration) {
        self.released = Some((now, self.last));
        self.approached_since = None;
    }

    /// Judges the approach.
    pub(crate) fn judge(&mut self, progress: &Progress, now: Duration) -> Approach {
        self.last = *progress;
        let Some((released_at, released)) = self.released else { return Approach::Brake };
        let pass_ended = progress.passes > released.passes;
        if !pass_ended && progress.remaining >= released.remaining {
            let late = now.saturating_sub(released_at) >= APPROACH_BEGINS;
            return if late { Approach::Brake } else { Approach::GoOn };
        }
        let since = *self.approached_since.get_or_insert(now);
        if (pass_ended || progress.remaining <= ARM_AT) && self.allowed(progress) {
            return Approach::Arm;
        }
        if now.saturating_sub(since) >= APPROACH { Approach::Brake } else { Approach::GoOn }
    }

    /// The port is armed now.
    pub(crate) fn armed(&mut self, now: Duration) {
        self.armed = Some(now);
    }

    /// True when the last pass has ended, or will not be waited for.
    pub(crate) fn last_pass_over(&mut self, progress: &Progress, now: Duration) -> bool {
        self.last = *progress;
        let pass_ended = self.released.is_none_or(|(_, released)| progress.passes > released.passes);
        let late = self.armed.is_none_or(|at| now.saturating_sub(at) >= LAST_PASS);
        late || (pass_ended && progress.remaining <= PAUSE_AT)
    }

    /// When the last pass is no longer waited for.
    pub(crate) fn last_pass_deadline(&self) -> Option<Duration> {
        self.armed.map(|at| at + LAST_PASS)
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

    fn released() -> Convergence {
        let mut convergence = Convergence::new(Limits::default());
        assert!(convergence.is_braked(&at(1, 20 * MIB, 40_000)));
        convergence.approach(ms(0));
        convergence
    }

    #[test]
    fn brakes_before_qemu_can_end_by_itself() {
        let mut convergence = Convergence::new(Limits::default());
        assert!(!convergence.should_brake(&at(0, 0, 0)), "nothing was measured yet");
        assert!(!convergence.should_brake(&at(1, BRAKE_AT + 1, 0)));
        assert!(convergence.should_brake(&at(1, BRAKE_AT, 0)));
    }

    #[test]
    fn a_busy_guest_is_paused_when_it_gets_no_better() {
        let mut convergence = Convergence::new(Limits::default());
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
        convergence.approach(ms(0));
        assert_eq!(convergence.judge(&at(10, MIB, 50_001), ms(10)), Approach::GoOn);
        assert_eq!(convergence.judge(&at(10, MIB, 50_001), ms(10) + APPROACH), Approach::Brake);
    }

    #[test]
    fn arms_before_the_first_pass_can_end() {
        let mut convergence = released();
        assert_eq!(convergence.judge(&at(1, 20 * MIB, 40_000), ms(90)), Approach::GoOn, "QEMU has not looked yet");
        assert_eq!(convergence.judge(&at(1, 12 * MIB, 24_000), ms(100)), Approach::GoOn);
        assert_eq!(convergence.judge(&at(1, ARM_AT, 10_000), ms(104)), Approach::Arm);
        convergence.armed(ms(105));
        assert!(!convergence.last_pass_over(&at(1, PAUSE_AT, 2_000), ms(107)), "what is dirty is not known yet");
        assert!(!convergence.last_pass_over(&at(2, 8 * MIB, 16_000), ms(109)), "the second pass goes");
        assert!(convergence.last_pass_over(&at(2, PAUSE_AT, 2_000), ms(121)), "next to nothing");
        assert_eq!(released().judge(&at(2, 20 * MIB, 40_000), ms(100)), Approach::Arm, "the first pass has ended");
    }

    #[test]
    fn frames_are_not_held_for_a_pass_that_does_not_end() {
        let mut convergence = released();
        convergence.armed(ms(105));
        assert_eq!(convergence.last_pass_deadline(), Some(ms(105) + LAST_PASS));
        assert!(!convergence.last_pass_over(&at(1, 2 * MIB, 2_000), ms(106)));
        assert!(convergence.last_pass_over(&at(1, 2 * MIB, 2_000), ms(105) + LAST_PASS));
    }

    #[test]
    fn an_approach_that_takes_too_long_is_broken_off() {
        let mut convergence = released();
        assert_eq!(convergence.judge(&at(1, 19 * MIB, 40_000), ms(100)), Approach::GoOn);
        assert_eq!(convergence.judge(&at(1, 15 * MIB, 30_000), ms(100) + APPROACH), Approach::Brake);
    }

    #[test]
    fn an_approach_that_never_begins_is_given_up() {
        assert_eq!(released().judge(&at(1, 20 * MIB, 40_000), APPROACH_BEGINS), Approach::Brake);
    }
}
