//! When a point is begun. Pure: time goes in.

use std::time::Duration;

use tokio::time::Instant;

/// First wait after a failure, doubled up to [`LONGEST_WAIT`], and never longer than the replica's own rhythm.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How soon it is looked again whether there is anything to send: the guest moves, or is not here yet.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How the last try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// There was none.
    None,
    /// A point was made, begun then.
    Made(Instant),
    /// So many failed since, the last one at that time.
    Failed(u32, Instant),
    /// Nothing could be sent at that time.
    Idle(Instant),
}

impl Last {
    /// When the next one is due.
    pub(super) fn next(self, every: Duration, now: Instant) -> Instant {
        match self {
            Self::None => now,
            Self::Made(began) => began + every,
            Self::Failed(tries, at) => {
                let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1)));
                at + wait.min(LONGEST_WAIT).min(every)
            }
            Self::Idle(at) => at + LOOK_AGAIN,
        }
    }

    /// It failed once more.
    pub(super) fn failed(self, now: Instant) -> Self {
        let before = if let Self::Failed(tries, _) = self { tries } else { 0 };
        Self::Failed(before.saturating_add(1), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_begun_as_often_as_asked_and_failures_sooner_but_not_at_once() {
        let (now, every) = (Instant::now(), Duration::from_secs(60));
        let wait = |last: Last, every| last.next(every, now).duration_since(now).as_secs();
        assert_eq!(wait(Last::None, every), 0);
        assert_eq!(wait(Last::Made(now), every), 60);
        let mut last = Last::Made(now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            last = last.failed(now);
            waits.push(wait(last, every));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(wait(last, Duration::from_secs(5)), 5, "never rarer than asked");
        assert_eq!(wait(Last::Failed(u32::MAX, now), every), 30);
        assert_eq!(Last::Idle(now).next(every, now), now + LOOK_AGAIN);
    }
}
