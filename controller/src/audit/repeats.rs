//! Refusals that come again and again are written once a minute, with how often.

use std::{collections::BTreeMap, mem, time::Duration};

use tokio::time::Instant;

use super::entry::{Line, Outcome, Who};

/// How long the same is counted instead of written.
const QUIET: Duration = Duration::from_secs(60);
/// Most kinds of refusals that are told apart. Callers have certificates, so there are not many; beyond it counting begins anew.
const KINDS: usize = 4096;

type Kind = (Who, &'static str, Outcome);

/// What was written lately, and what came again since.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    seen: BTreeMap<Kind, Seen>,
}

#[derive(Debug)]
struct Seen {
    written: Instant,
    /// The last that was not written, and how many were not.
    held: Option<(Line, u64)>,
}

impl Repeats {
    /// What is to be written now that `line` has come.
    pub(super) fn take(&mut self, line: Line, now: Instant) -> Vec<Line> {
        let mut due = self.due(now);
        if self.seen.len() >= KINDS {
            due.extend(self.drain());
        }
        let kind = (line.who.clone(), line.did, line.outcome.clone());
        if let Some(seen) = self.seen.get_mut(&kind) {
            let more = seen.held.take().map_or(0, |(_, count)| count);
            seen.held = Some((line, more + 1));
        } else {
            self.seen.insert(kind, Seen { written: now, held: None });
            due.push(line);
        }
        due
    }

    /// Everything that was held back.
    pub(super) fn drain(&mut self) -> Vec<Line> {
        mem::take(&mut self.seen).into_values().filter_map(Seen::held).collect()
    }

    fn due(&mut self, now: Instant) -> Vec<Line> {
        let old = self.seen.extract_if(.., |_, seen| now.saturating_duration_since(seen.written) >= QUIET);
        old.filter_map(|(_, seen)| seen.held()).collect()
    }
}

impl Seen {
    fn held(self) -> Option<Line> {
        self.held.map(|(line, repeated)| Line { repeated, ..line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::entry::Object;

    fn line(who: &str) -> Line {
        Line::new(Who::Known(who.parse().unwrap()), None, "GetGuest", Object::default(), Outcome::refused("NO_ROLE"))
    }

    #[test]
    fn a_thousand_refusals_are_two_lines() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        assert_eq!(repeats.take(line("operator/eve"), start).len(), 1);
        assert!((1..1000).all(|_| repeats.take(line("operator/eve"), start).is_empty()));
        assert_eq!(repeats.take(line("operator/mallory"), start).len(), 1, "another's are another's");
        let due = repeats.take(line("operator/eve"), start + QUIET);
        assert_eq!(due.iter().map(|line| line.repeated).collect::<Vec<_>>(), [999, 0]);
    }

    #[test]
    fn nothing_is_held_back_at_the_end() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        (0..3).for_each(|_| drop(repeats.take(line("operator/eve"), start)));
        assert_eq!(repeats.drain().iter().map(|line| line.repeated).collect::<Vec<_>>(), [2]);
    }
}
