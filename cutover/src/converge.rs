//! When to arm: pure judgement over QEMU's progress figures.
//!
//! While its *anchor* holds, QEMU has something left to send, so it never stops the guest by itself. Let go, it stops the
//! guest at the end of the 100 ms *slot* in which it measures its rate (migration/migration.c,
//! `migration_update_counters`), and frames are held from shortly before that:
//!
//! 1. at full rate until little is left of a pass over memory, at least of the second;
//! 2. *brake*, once the give-up is on disk: QEMU sends a page at the beginning of each slot and sleeps out the rest. That
//!    shows where the slots are, and keeps it from going over memory a thousand times a second meanwhile (each time a
//!    chance for QEMU's TCG to miss a write that comes just then). A guest of which much is left every time is not braked:
//!    QEMU's rate changes with every slot, which shows them too;
//! 3. arm, and let go.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Limits, Progress,
    stall::{Stall, StallWatch},
};

/// An expected pause not worth improving on, microseconds.
const GOOD_PAUSE_US: u64 = 5_000;
/// How long a pause that is allowed but not good is given to become good.
const PATIENCE: Duration = Duration::from_millis(400);
/// QEMU was braked for a whole slot when it measures less than this, bytes per second.
const BRAKED_RATE: u64 = 1 << 20;
/// Arm this long after a slot was last seen not to have begun: what is left of its 100 ms is for the tap's ring to run
/// empty and for QEMU to be told.
const ARM_AFTER: Duration = Duration::from_millis(92);
/// From then on it is too late for this slot.
const ARM_BEFORE: Duration = Duration::from_millis(97);
/// A host too busy to catch the end of a slot for this long arms at once: frames then wait for up to a slot.
const SLOT_PATIENCE: Duration = Duration::from_millis(450);
/// A braked QEMU does not see what is dirtied meanwhile. After this long it goes on at full rate, to look again.
const BLIND: Duration = Duration::from_millis(350);

/// Watches pre-copy and says when the guest's frames should be held.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Convergence {
    limits: Limits,
    last: Progress,
    /// Since when QEMU sends next to nothing.
    braked_since: Option<Duration>,
    /// When the figures before the last ones came.
    looked_at: Option<Duration>,
    /// When the slot began that is now under way, or a little before.
    slot: Option<Duration>,
    /// The longest pause there was to expect since the pass began, microseconds: at its end as much will be left again.
    pass_peak_us: u64,
    allowed_since: Option<Duration>,
    near_since: Option<Duration>,
    stalls: StallWatch,
    stalled: Option<Stall>,
}

impl Convergence {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            last: Progress::default(),
            braked_since: None,
            looked_at: None,
            slot: None,
            pass_peak_us: 0,
            allowed_since: None,
            near_since: None,
            stalls: StallWatch::default(),
            stalled: None,
        }
    }

    /// Takes in QEMU's figures.
    pub(crate) fn look(&mut self, progress: &Progress, now: Duration) {
        let sent = progress.rate < BRAKED_RATE && progress.transferred != self.last.transferred;
        if sent || progress.rate != self.last.rate {
            // Once a slot, and its first figures were seen now: it began after the look before.
            self.slot = self.looked_at;
        }
        if progress.passes != self.last.passes {
            self.pass_peak_us = 0;
        }
        self.pass_peak_us = self.pass_peak_us.max(progress.expected_pause_us);
        if progress.throttle_percent > self.last.throttle_percent {
            self.stalls.begin_anew();
        }
        self.stalled = self.stalls.look(progress, self.limits.longest_pause_ms, now);
        self.last = *progress;
        self.looked_at = Some(now);
        self.judge(now);
    }

    /// The pause to expect, microseconds: what is left at this moment says little, the pass may be about to end.
    pub(crate) fn expected_pause_us(&self) -> u64 {
        self.pass_peak_us
    }

    /// Why the move does not converge, if the last figures show that.
    pub(crate) fn stalled(&self) -> Option<Stall> {
        self.stalled
    }

    /// Something is done about a stall.
    pub(crate) fn begin_anew(&mut self) {
        self.stalls.begin_anew();
    }

    /// The pause that is allowed from now on.
    pub(crate) fn allow(&mut self, longest_pause_ms: u32) {
        self.limits.longest_pause_ms = longest_pause_ms;
    }

    /// True, once, when little is left.
    pub(crate) fn should_brake(&mut self, now: Duration) -> bool {
        let brake = self.braked_since.is_none() && self.is_near() && self.is_good();
        if brake {
            self.braked_since = Some(now);
        }
        brake
    }

    /// True, once, when QEMU was braked and did not come to be let go.
    pub(crate) fn should_unbrake(&mut self, now: Duration) -> bool {
        let unbrake = self.braked_since.is_some_and(|since| !self.is_near() || now >= since + BLIND);
        if unbrake {
            self.braked_since = None;
        }
        unbrake
    }

    /// True when the guest is about to be given up.
    pub(crate) fn is_near(&self) -> bool {
        self.near_since.is_some()
    }

    /// True when frames should be held now, which might have been since `ready`.
    pub(crate) fn should_arm(&self, ready: Duration, now: Duration) -> bool {
        let Some(since) = self.near_since.map(|near| near.max(ready)) else { return false };
        let slot_ends = self.slot.is_some_and(|slot| now >= slot + ARM_AFTER && now < slot + ARM_BEFORE);
        slot_ends || now >= since + SLOT_PATIENCE
    }

    /// When to ask [`Convergence::should_arm`] again if nothing is heard from QEMU until then.
    pub(crate) fn arm_at(&self, now: Duration) -> Option<Duration> {
        self.near_since?;
        self.slot.map(|slot| slot + ARM_AFTER).filter(|at| *at > now)
    }

    /// Near: the pause to expect is good, or has been within the caller's limit for as long as it is reasonable to wait for
    /// better.
    fn judge(&mut self, now: Duration) {
        if self.last.passes < 2 || self.pass_peak_us > u64::from(self.limits.longest_pause_ms) * 1000 {
            (self.allowed_since, self.near_since) = (None, None);
            return;
        }
        let since = *self.allowed_since.get_or_insert(now);
        if self.is_good() || self.braked_since.is_some() || now.saturating_sub(since) >= PATIENCE {
            self.near_since.get_or_insert(now);
        } else {
            self.near_since = None;
        }
    }

    fn is_good(&self) -> bool {
        self.last.passes >= 3 && self.pass_peak_us <= GOOD_PAUSE_US
    }
}

impl fmt::Display for Convergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = Progress { expected_pause_us: self.expected_pause_us(), ..self.last };
        write!(f, "{progress}, {} ms are allowed", self.limits.longest_pause_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: [u64; 0] = [];

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A slot each 100 ms, from 0 on, looked at each 2 ms, with passes and pause by the time: when it is to be braked, and
    /// when armed.
    fn watch(limits: Limits, until: u64, figures: impl Fn(u64) -> (u32, u64)) -> (Vec<u64>, Vec<u64>) {
        let mut convergence = Convergence::new(limits);
        let (mut braked, mut armed) = (Vec::new(), Vec::new());
        for at in (1..until).step_by(2) {
            let (passes, expected_pause_us) = figures(at);
            let slept_out = braked.first().is_some_and(|braked| at / 100 > braked / 100 + 1);
            let rate = if slept_out { 40_960 } else { (10 + at / 100) << 20 };
            let progress = Progress { rate, transferred: at / 100, passes, expected_pause_us, ..Progress::default() };
            convergence.look(&progress, ms(at));
            if convergence.should_brake(ms(at)) {
                braked.push(at);
            }
            if convergence.should_arm(Duration::ZERO, ms(at)) {
                armed.push(at);
            }
        }
        (braked, armed)
    }

    #[test]
    fn arms_at_the_end_of_the_slot_in_which_little_is_left() {
        let (braked, armed) = watch(Limits::default(), 500, |at| match at {
            0..150 => (1, 150_000 - at * 1000),
            150..160 => (2, 8_000),
            160..165 => (3, 6_000),
            _ => (4, 3_000),
        });
        assert_eq!(braked, [165], "once");
        assert_eq!(armed, [191, 193, 195, 291, 293, 295, 391, 393, 395, 491, 493, 495]);
    }

    #[test]
    fn never_in_the_first_pass() {
        assert_eq!(watch(Limits::default(), 1_000, |_| (1, 0)).1, NEVER);
    }

    #[test]
    fn a_pass_longer_than_a_slot_will_leave_as_much_again() {
        let limits = Limits { longest_pause_ms: 150, ..Limits::default() };
        let (_, armed) = watch(limits, 2_000, |at| (2 + (at / 250) as u32, (250 - at % 250) * 1000));
        assert_eq!(armed, NEVER, "its last slots alone look good");
    }

    #[test]
    fn what_is_allowed_is_given_time_to_become_good() {
        let limits = Limits { longest_pause_ms: 50, ..Limits::default() };
        let (_, armed) = watch(limits, 500, |at| (2 + at as u32, 40_000));
        assert_eq!(armed, [491, 493, 495], "by then allowed for as long as it is reasonable to wait");
        assert_eq!(watch(limits, 3_000, |at| (2 + at as u32, 50_001)).1, NEVER, "never beyond the caller's limit");
    }

    #[test]
    fn a_host_that_catches_no_slots_end_arms_at_once() {
        let mut convergence = Convergence::new(Limits::default());
        let mut looks = (0..20).map(|look| ms(look * 50));
        let armed = looks.find(|&now| {
            convergence.look(&Progress { passes: 3, rate: 1, ..Progress::default() }, now);
            convergence.should_arm(Duration::ZERO, now)
        });
        assert_eq!(armed, Some(SLOT_PATIENCE));
    }

    #[test]
    fn a_guest_that_gets_busy_under_the_brake_is_looked_at_again() {
        let mut convergence = Convergence::new(Limits::default());
        let left = |expected_pause_us| Progress { passes: 3, expected_pause_us, ..Progress::default() };
        convergence.look(&left(1_000), ms(10));
        assert!(convergence.should_brake(ms(10)) && !convergence.should_brake(ms(11)));
        convergence.look(&left(1_000), ms(200));
        assert!(!convergence.should_unbrake(ms(200)));
        convergence.look(&left(400_000), ms(210));
        assert!(convergence.should_unbrake(ms(210)) && !convergence.should_unbrake(ms(211)), "once");
        assert!(!convergence.is_near() && !convergence.should_brake(ms(212)));

        let mut patient = Convergence::new(Limits::default());
        patient.look(&left(1_000), ms(10));
        assert!(patient.should_brake(ms(10)) && !patient.should_unbrake(ms(10) + BLIND - ms(1)));
        assert!(patient.should_unbrake(ms(10) + BLIND), "not blind for long");
    }

    #[test]
    fn a_slow_disk_does_not_wear_out_the_patience_with_slots() {
        let mut convergence = Convergence::new(Limits::default());
        let progress = Progress { passes: 3, rate: 1, ..Progress::default() };
        convergence.look(&progress, ms(0));
        convergence.look(&progress, ms(900));
        assert!(!convergence.should_arm(ms(890), ms(900)), "ready only now");
        assert!(convergence.should_arm(ms(890), ms(890) + SLOT_PATIENCE));
    }

    #[test]
    fn asks_to_be_woken_when_a_slot_is_about_to_end() {
        let mut convergence = Convergence::new(Limits::default());
        let progress = |rate, passes| Progress { rate, passes, ..Progress::default() };
        convergence.look(&progress(1, 1), ms(98));
        convergence.look(&progress(2, 1), ms(101));
        assert_eq!(convergence.arm_at(ms(101)), None, "not near");
        convergence.look(&progress(2, 3), ms(103));
        assert_eq!(convergence.arm_at(ms(103)), Some(ms(98) + ARM_AFTER));
        let should_arm = |at| convergence.should_arm(Duration::ZERO, at);
        assert!(!should_arm(ms(98) + ARM_AFTER - ms(1)) && should_arm(ms(98) + ARM_AFTER));
        assert_eq!(convergence.arm_at(ms(98) + ARM_BEFORE), None, "too late");
        assert!(!should_arm(ms(98) + ARM_BEFORE));
    }
}
