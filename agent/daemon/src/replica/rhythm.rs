//! When a point is begun. Pure: time goes in.

use std::{collections::VecDeque, time::Duration};

use throughline_cutover::Rhythm;
use tokio::time::Instant;

/// First wait after a failure, doubled up to [`LONGEST_WAIT`], and never longer than the replica's own rhythm.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How soon it is looked again whether there is anything to send: the guest moves, or is not here yet.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// So many points tell how long the next will take: the longest of them. The first of a replica is everything, and is soon forgotten.
const POINTS_TELL: usize = 4;
/// What a point may take longer than those did, at least: word of it has to reach the controller too. Else a quarter of theirs.
const LEAST_HEADROOM: Duration = Duration::from_secs(1);
/// However far behind a replica is, its points are begun no closer together.
const CLOSEST: Duration = Duration::from_secs(1);

/// How a replica's points have gone, and so when the next is due.
#[derive(Debug, Default)]
pub(super) struct Course {
    last: Last,
    /// How long the last points took, from their beginning until they were made.
    took: VecDeque<Duration>,
}

/// How the last try ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// There was none.
    #[default]
    None,
    /// A point was made, begun then.
    Made(Instant),
    /// So many failed since, the last one at that time.
    Failed(u32, Instant),
    /// Nothing could be sent at that time.
    Idle(Instant),
}

impl Course {
    /// When the next one is due.
    pub(super) fn next(&self, rhythm: Rhythm, now: Instant) -> Instant {
        let (Rhythm::Every(ms) | Rhythm::Lag(ms)) = rhythm;
        let period = Duration::from_millis(ms.into());
        match self.last {
            Last::None => now,
            Last::Made(began) => match rhythm {
                Rhythm::Every(_) => began + period,
                // It is as it was some time after it began, so that its age is, if anything, less.
                Rhythm::Lag(_) => began + period.saturating_sub(self.time_for_one()).max(CLOSEST),
            },
            Last::Failed(tries, at) => {
                let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1)));
                at + wait.min(LONGEST_WAIT).min(period)
            }
            Last::Idle(at) => at + LOOK_AGAIN,
        }
    }

    /// How long the next one may take.
    fn time_for_one(&self) -> Duration {
        let longest = self.took.iter().max().copied().unwrap_or_default();
        longest + (longest / 4).max(LEAST_HEADROOM)
    }

    /// A point that was begun then is made now.
    pub(super) fn made(&mut self, began: Instant, now: Instant) {
        self.last = Last::Made(began);
        self.took.truncate(POINTS_TELL - 1);
        self.took.push_front(now - began);
    }

    /// It failed once more.
    pub(super) fn failed(&mut self, now: Instant) {
        let before = if let Last::Failed(tries, _) = self.last { tries } else { 0 };
        self.last = Last::Failed(before.saturating_add(1), now);
    }

    /// It is another's turn, or the guest is not here.
    pub(super) fn is_idle(&mut self, now: Instant) {
        self.last = Last::Idle(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Seconds from now until the next one is due.
    fn wait(course: &Course, rhythm: Rhythm, now: Instant) -> u64 {
        course.next(rhythm, now).saturating_duration_since(now).as_secs()
    }

    #[test]
    fn points_are_begun_as_often_as_asked_and_failures_sooner_but_not_at_once() {
        let (now, mut course) = (Instant::now(), Course::default());
        for (rhythm, shorter) in
            [(Rhythm::Every(60_000), Rhythm::Every(5_000)), (Rhythm::Lag(60_000), Rhythm::Lag(5_000))]
        {
            assert_eq!(wait(&Course::default(), rhythm, now), 0);
            course.made(now, now);
            let mut waits = Vec::new();
            for _ in 0..7 {
                course.failed(now);
                waits.push(wait(&course, rhythm, now));
            }
            assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
            assert_eq!(wait(&course, shorter, now), 5, "never rarer than asked");
            course.last = Last::Failed(u32::MAX, now);
            assert_eq!(wait(&course, rhythm, now), 30);
            course.is_idle(now);
            assert_eq!(course.next(rhythm, now), now + LOOK_AGAIN);
        }
        course.made(now, now + 10 * SECOND);
        assert_eq!(wait(&course, Rhythm::Every(60_000), now), 60, "however long it took");
    }

    /// Plays so many points of these lengths, one after the other; gives when each was begun, and the age of the newest complete one just
    /// before each was made, both in seconds.
    fn play(target_ms: u32, took: &[Duration]) -> Vec<(u64, u64)> {
        let begin = Instant::now();
        let (mut course, mut now, mut newest) = (Course::default(), begin, None);
        let mut played = Vec::new();
        for took in took {
            let began = course.next(Rhythm::Lag(target_ms), now).max(now);
            now = began + *took;
            let age = newest.map_or(Duration::ZERO, |newest| now - newest);
            played.push(((began - begin).as_secs(), age.as_secs()));
            course.made(began, now);
            newest = Some(began);
        }
        played
    }

    #[test]
    fn points_are_complete_before_the_lag_is_reached_and_no_sooner_than_need_be() {
        assert_eq!(play(30_000, &[SECOND; 4]), [(0, 0), (28, 29), (56, 29), (84, 29)]);
        // Slow ones are begun sooner, with headroom for one that is slower still.
        assert_eq!(play(30_000, &[8 * SECOND, 10 * SECOND, 8 * SECOND]), [(0, 0), (20, 30), (37, 25)]);
        // What was slow once is forgotten after so many.
        let mut took = vec![3_600 * SECOND];
        took.extend([SECOND; 7]);
        let begun: Vec<_> = play(30_000, &took).into_iter().map(|(begun, _)| begun).collect();
        assert_eq!(begun, [0, 3_600, 3_601, 3_602, 3_603, 3_631, 3_659, 3_687]);
    }

    #[test]
    fn a_target_that_cannot_be_met_has_points_follow_one_another() {
        assert_eq!(play(5_000, &[7 * SECOND; 3]), [(0, 0), (7, 14), (14, 14)]);
        let quick = Duration::from_millis(1);
        assert_eq!(play(2_000, &[quick; 4]), [(0, 0), (1, 1), (2, 1), (3, 1)], "but no closer than a second");
    }

    #[test]
    fn after_failures_it_is_begun_in_time_again() {
        let (now, target) = (Instant::now(), Rhythm::Lag(30_000));
        let mut course = Course::default();
        course.made(now, now + 4 * SECOND);
        course.failed(now + 25 * SECOND);
        assert_eq!(wait(&course, target, now), 26, "while it is not behind yet");
        course.made(now + 26 * SECOND, now + 30 * SECOND);
        assert_eq!(wait(&course, target, now), 51, "26 and 30, less 4 and 1; the try that failed does not tell");
    }
}
