//! Does memory converge? A verdict over passes, and what the caller wants done about a bad one. Pure.
//!
//! A pass over memory leaves what the guest dirtied meanwhile, and with it the *pause to expect*: how long that takes to
//! send. While each pass leaves less than the one before, a move converges, however slowly. It is *stalled* at the end of a
//! pass when [`PASSES`] passes in a row, and [`PATIENCE`] at the least, have ended with a pause to expect that is
//!
//! - longer than the caller allows, and
//! - not shorter by an eighth than the shortest before them.
//!
//! The first pass does not count, it leaves what it found. So a guest that dirties memory as fast as it can be sent, or the
//! same memory again and again, is recognised at the end of its fourth pass, or 3 s after
//! that of the second if passes are short. One whose
//! passes leave 95 % or less of what the last ones left is never called stalled: three of them make an eighth. And as the
//! shortest pause can get an eighth shorter only so many times before it is allowed, every move comes to one end or the
//! other, if its passes are shorter than its deadline is away; the deadline is for those that are not.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{OnStall, Progress};

/// Passes in a row that may leave no less before a move counts as stalled.
const PASSES: u32 = 3;
/// And the least time they must have taken: short passes say little about a guest that is busy now and then.
const PATIENCE: Duration = Duration::from_secs(3);
/// Shares of a processor's time that QEMU takes from the guest, percent, one after the other. Beyond the last it would stand
/// for more than 190 ms at a time, which is no better than a long pause.
const THROTTLE: [u8; 6] = [20, 40, 60, 80, 90, 95];

/// Why a move counts as stalled, in figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stall {
    /// Bytes dirtied per second.
    dirty_rate: u64,
    /// Bytes sent per second.
    rate: u64,
    /// Pause to expect, microseconds.
    expected_pause_us: u64,
    /// Pause that is allowed, milliseconds.
    allowed_ms: u32,
    /// Passes that have ended.
    passes: u32,
    /// Of them the last that got nowhere.
    in_vain: u32,
    /// How long those took.
    took: Duration,
    /// What QEMU takes from the guest, percent.
    throttle_percent: u32,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the guest dirties {} bytes/s of memory, {} bytes/s are sent; after {} passes the pause to expect is {} ms, \
             {} ms are allowed, and the last {} passes ({:.1} s) made it no shorter",
            self.dirty_rate,
            self.rate,
            self.passes,
            self.expected_pause_us / 1000,
            self.allowed_ms,
            self.in_vain,
            self.took.as_secs_f64(),
        )?;
        match self.throttle_percent {
            0 => Ok(()),
            percent => write!(f, ", with the guest's processors slowed by {percent} %"),
        }
    }
}

/// Watches what each pass leaves.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct StallWatch {
    /// Passes begun, as of the last look.
    passes: u32,
    /// The shortest pause a pass has left to expect, microseconds.
    shortest_us: Option<u64>,
    /// Passes since that were too long and no better, and when the first of them ended.
    in_vain: Option<(u32, Duration)>,
}

impl StallWatch {
    /// Takes in QEMU's figures; a verdict can only come when a pass has just ended.
    pub(crate) fn look(&mut self, progress: &Progress, allowed_ms: u32, now: Duration) -> Option<Stall> {
        if progress.passes <= self.passes {
            return None;
        }
        self.passes = progress.passes;
        // The first pass to end is the second to begin.
        if progress.passes < 2 || progress.expected_pause_us == 0 {
            return None;
        }
        let left_us = progress.expected_pause_us;
        if self.shortest_us.is_none_or(|shortest| left_us <= shortest - shortest / 8) {
            (self.shortest_us, self.in_vain) = (Some(left_us), None);
            return None;
        }
        if left_us <= u64::from(allowed_ms) * 1000 {
            return None;
        }
        let (in_vain, since) = self.in_vain.map_or((1, now), |(passes, since)| (passes + 1, since));
        self.in_vain = Some((in_vain, since));
        let took = now.saturating_sub(since);
        (in_vain >= PASSES && took >= PATIENCE).then_some(Stall {
            dirty_rate: progress.dirty_rate,
            rate: progress.rate,
            expected_pause_us: left_us,
            allowed_ms,
            passes: progress.passes - 1,
            in_vain,
            took,
            throttle_percent: progress.throttle_percent,
        })
    }

    /// Something was done about it: what the passes left before says nothing any more.
    pub(crate) fn begin_anew(&mut self) {
        (self.shortest_us, self.in_vain) = (None, None);
    }
}

/// What is done about a stalled move, short of giving it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// QEMU takes this share of its processors' time from the guest, percent.
    Throttle(u8),
    /// This pause is allowed from now on, milliseconds.
    Allow(u32),
}

impl OnStall {
    /// The next step of this policy after `throttle` percent; `None`: there is none left.
    pub(crate) fn remedy(self, stall: &Stall, throttle: u8) -> Option<Remedy> {
        match self {
            Self::GiveUp => None,
            Self::Throttle => THROTTLE.into_iter().find(|percent| *percent > throttle).map(Remedy::Throttle),
            // Enough for what is to be expected and an eighth, and a step that is worth it.
            Self::LongerPause { at_most_ms } if stall.allowed_ms < at_most_ms => {
                let enough_ms = u32::try_from(stall.expected_pause_us / 1000 * 9 / 8 + 1).unwrap_or(u32::MAX);
                Some(Remedy::Allow(enough_ms.max(stall.allowed_ms.saturating_mul(5) / 4 + 1).min(at_most_ms)))
            }
            Self::LongerPause { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALLOWED_MS: u32 = 300;

    /// Passes that leave, one after the other, this much to expect, microseconds, and take as long as their predecessors left.
    /// Which of them, counted from 1, is the first to be called stalled, and when.
    fn stalled_at(left: impl IntoIterator<Item = u64>) -> Option<(usize, Duration)> {
        let mut watch = StallWatch::default();
        let mut now = Duration::ZERO;
        let mut takes = Duration::from_secs(1);
        for (ended, expected_pause_us) in (1..).zip(left) {
            now += takes;
            takes = Duration::from_micros(expected_pause_us);
            let passes = ended as u32 + 1;
            let progress = Progress { passes, expected_pause_us, ..Progress::default() };
            for look in 0..3 {
                let stall = watch.look(&progress, ALLOWED_MS, now);
                assert!(look == 0 || stall.is_none(), "a pass is judged once");
                if stall.is_some() {
                    return Some((ended, now));
                }
            }
        }
        None
    }

    /// A guest of `memory` bytes that dirties `dirty` of `bandwidth` bytes a second all over its memory: what each pass leaves.
    fn constant(memory: f64, dirty: f64, bandwidth: f64) -> impl Iterator<Item = u64> {
        let leaves = move |sent: &f64| Some((sent / bandwidth * dirty).min(memory));
        let left = std::iter::successors(Some(memory), leaves).skip(1);
        left.map(move |left| (left / bandwidth * 1e6) as u64 + 1)
    }

    #[test]
    fn as_fast_as_it_can_be_sent_is_stalled_at_the_end_of_the_fourth_pass() {
        let gib = f64::from(1 << 30);
        for dirty in [1.0, 1.5, 40.0] {
            // Four passes over 1 GiB at 100 MiB/s.
            let (pass, at) = stalled_at(constant(gib, dirty * 100e6, 100e6).take(100)).unwrap();
            assert_eq!(pass, 4, "{dirty}");
            assert!(at < Duration::from_secs(34), "{at:?}");
        }
    }

    #[test]
    fn the_same_memory_again_and_again_is_stalled_soon() {
        // Passes of 0.4 s each leave as much again.
        let (pass, at) = stalled_at(std::iter::repeat_n(400_000, 100)).unwrap();
        assert_eq!((pass, at), (10, Duration::from_millis(1000 + 9 * 400)));
        assert_eq!(stalled_at(std::iter::repeat_n(300_000, 1000)), None, "but not if that much is allowed");
    }

    #[test]
    fn a_burst_is_not_a_stall() {
        // Ten passes that leave much are over in 3.3 s, and the eleventh leaves little.
        let left = [900_000, 320_000].into_iter().chain([330_000; 8]).chain([20_000; 50]);
        assert_eq!(stalled_at(left), None);
        // One that leaves much after passes that left little is only one.
        assert_eq!(stalled_at([20_000; 400].into_iter().chain([900_000, 30_000, 30_000])), None);
    }

    #[test]
    fn what_hovers_about_the_limit_is_stalled() {
        assert!(stalled_at([310_000, 295_000].into_iter().cycle().take(100)).is_some());
    }

    #[test]
    fn a_remedy_gives_it_time() {
        let mut watch = StallWatch::default();
        let progress = |passes| Progress { passes, expected_pause_us: 2_000_000, ..Progress::default() };
        let look =
            |watch: &mut StallWatch, pass: u32| watch.look(&progress(pass), ALLOWED_MS, Duration::from_secs(2) * pass);
        let stalled: Vec<_> = (1..=5).map(|pass| look(&mut watch, pass).is_some()).collect();
        assert_eq!(stalled, [false, false, false, false, true]);
        watch.begin_anew();
        let stalled: Vec<_> = (6..=9).map(|pass| look(&mut watch, pass).is_some()).collect();
        assert_eq!(stalled, [false, false, false, true]);
    }

    fn stall(expected_pause_us: u64, allowed_ms: u32) -> Stall {
        Stall {
            dirty_rate: 30 << 20,
            rate: 20 << 20,
            expected_pause_us,
            allowed_ms,
            passes: 5,
            in_vain: 3,
            took: Duration::from_millis(6_240),
            throttle_percent: 0,
        }
    }

    #[test]
    fn policies_come_to_an_end() {
        let steps = |policy: OnStall, expected_pause_us| {
            let (mut throttle, mut allowed_ms, mut steps) = (0, 300, Vec::new());
            while let Some(remedy) = policy.remedy(&stall(expected_pause_us, allowed_ms), throttle) {
                match remedy {
                    Remedy::Throttle(percent) => throttle = percent,
                    Remedy::Allow(ms) => allowed_ms = ms,
                }
                steps.push(remedy);
                assert!(steps.len() < 100, "for ever");
            }
            steps
        };
        assert_eq!(steps(OnStall::GiveUp, 800_000), []);
        assert_eq!(steps(OnStall::Throttle, 800_000), THROTTLE.map(Remedy::Throttle));
        let longer = OnStall::LongerPause { at_most_ms: 1_000 };
        assert_eq!(steps(longer, 320_000)[..2], [Remedy::Allow(376), Remedy::Allow(471)]);
        assert_eq!(steps(longer, 2_000_000), [Remedy::Allow(1_000)], "no more than the caller allows");
        assert_eq!(*steps(longer, 800_000).first().unwrap(), Remedy::Allow(901));
    }

    #[test]
    fn tells_the_numbers() {
        let told = stall(2_412_345, 300).to_string();
        assert_eq!(
            told,
            "the guest dirties 31457280 bytes/s of memory, 20971520 bytes/s are sent; after 5 passes the pause to expect is \
             2412 ms, 300 ms are allowed, and the last 3 passes (6.2 s) made it no shorter"
        );
        assert!(Stall { throttle_percent: 80, ..stall(1, 1) }.to_string().ends_with("slowed by 80 %"));
    }

    proptest! {
        /// Passes that leave 95 % or less of what they found, with some noise within that.
        #[test]
        fn what_converges_is_never_called_stalled(first in 1_000_000_u64..100_000_000, shares in prop::collection::vec(10_u64..=95, 200)) {
            let left = shares.iter().scan(first, |left, share| { *left = *left * share / 100; Some(*left) });
            prop_assert_eq!(stalled_at(left), None);
        }

        /// Whatever the passes leave: the verdict, or the limit, comes after no more passes than it takes to get an eighth
        /// better that many times.
        #[test]
        fn it_ends_one_way_or_the_other(left in prop::collection::vec(301_000_u64..60_000_000, 400)) {
            // ln(60 s / 0.3 s) / ln(8 / 7) = 40 improvements, each after 10 passes at most.
            let stalled = stalled_at(left);
            prop_assert!(stalled.is_some());
        }

        #[test]
        fn constant_dirtying_beyond_the_bandwidth_is_stalled_within_five_passes(dirty in 1.0_f64..100.0, seconds in 1.5_f64..1_000.0) {
            let (pass, _) = stalled_at(constant(seconds * 1e9, dirty * 1e9, 1e9).take(10)).expect("stalled");
            prop_assert!(pass <= 5, "only at the end of pass {}", pass);
        }

        #[test]
        fn constant_dirtying_that_can_be_sent_converges(dirty in 0.0_f64..0.95, seconds in 1.0_f64..1_000.0) {
            prop_assert_eq!(stalled_at(constant(seconds * 1e9, dirty * 1e9, 1e9).take(300)), None);
        }
    }
}
