//! What is promised of each cell.

use super::cell::{Cell, Fault, Victim};
use super::phase::Phase;
use super::run::{Fate, Seen, Verdict};
use super::window::Counts;

/// How long a link cut may show after it is whole again, milliseconds: what was under way, and TCP's own patience.
const CUT_SHOWS_MS: u64 = 3000;
/// When the first packet of a cut may be lost before the cut was noted, milliseconds.
const CUT_BEGINS_MS: u64 = 200;

/// How a move may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// The guest has moved.
    Moved,
    /// It stays, and the operator is told why.
    Undone,
    /// One or the other: which, the moment decides.
    Either,
}

/// What becomes of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// It runs on.
    Lives,
    /// Its only QEMU was killed.
    Dies,
    /// The one or the other.
    Either,
}

/// What is promised.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promise {
    ends: Ends,
    guest: Guest,
    /// Frames may be lost, but only on the link that is cut, while it is.
    cut: bool,
    /// Frames may be lost that nobody but the dead source had, and the migration says so.
    held: bool,
    /// Frames come in the order they were sent in.
    in_order: bool,
    /// What of its disks is copied again at most, if anything is promised.
    left_percent: Option<u64>,
}

impl Promise {
    /// Of a cell.
    pub(super) fn of(cell: Cell) -> Self {
        let Cell { victim, fault, phase, .. } = cell;
        let before = phase.is_before_commit();
        let killed = fault.kills();
        let ends = match (victim, fault) {
            // Nobody's word is needed but that of one that comes back.
            (Victim::Controller | Victim::PeerAgent | Victim::PeerLink | Victim::ControllerLink, _) => Ends::Moved,
            // Nothing is left to write when all is over, so there may be nothing to fail.
            (Victim::DestinationStorage, _) if phase <= Phase::MirrorMiddle => Ends::Undone,
            _ if !before && phase != Phase::Commit => Ends::Moved,
            _ if killed && phase < Phase::Told => Ends::Undone,
            // Until it is told, a destination's word is not asked for.
            (Victim::DestinationQemu | Victim::DestinationHost, _) if killed && before => Ends::Undone,
            _ => Ends::Either,
        };
        let guest = match victim {
            Victim::SourceQemu | Victim::SourceHost if killed && phase < Phase::Told => Guest::Dies,
            Victim::SourceQemu | Victim::SourceHost if killed && phase <= Phase::Commit => Guest::Either,
            Victim::DestinationQemu | Victim::DestinationHost if killed && phase > Phase::Commit => Guest::Dies,
            Victim::DestinationQemu | Victim::DestinationHost if killed && phase == Phase::Commit => Guest::Either,
            _ => Guest::Lives,
        };
        let cut = fault == Fault::Cut && victim != Victim::ControllerLink;
        let held = victim == Victim::SourceHost && (Phase::Told..=Phase::Open).contains(&phase);
        Self { ends, guest, cut, held, in_order: is_in_order(cell), left_percent: cell.left_percent() }
    }

    /// What of it was broken, in sentences.
    pub(super) fn broken(&self, seen: &Seen) -> Vec<String> {
        let mut broken = seen.wrong.clone();
        match (self.ends, seen.verdict) {
            (Ends::Moved | Ends::Either, Verdict::Moved) | (Ends::Undone | Ends::Either, Verdict::Undone) => {}
            // An end whose guest died may say so in either way.
            (_, Verdict::Moved | Verdict::Undone) if seen.fate == Fate::Died => {}
            (ends, verdict) => broken.push(format!("the migration was to end as {ends:?}, it is {verdict:?}")),
        }
        if seen.verdict == Verdict::Undone && seen.reason.is_empty() {
            broken.push("an operator is not told why it was undone".to_owned());
        }
        match (self.guest, seen.fate) {
            (Guest::Lives, Fate::Died) => broken.push("the guest is gone".to_owned()),
            (Guest::Dies, Fate::Lives) => broken.push("the guest lives without its QEMU".to_owned()),
            _ => {}
        }
        if let Some(disks) = seen.disks.as_ref().filter(|_| seen.verdict == Verdict::Undone)
            && let (Some(left), Some(percent)) = (disks.left, self.left_percent)
            && left * 100 > disks.whole * percent
        {
            broken.push(format!(
                "the next try copied {left} of {} bytes again: what was over is copied once",
                disks.whole
            ));
        }
        if let Some(counts) = &seen.counts {
            self.check(counts, seen, &mut broken);
        }
        broken
    }

    fn check(&self, counts: &Counts, seen: &Seen, broken: &mut Vec<String>) {
        let lost = counts.lost_to_guest + counts.lost_from_guest;
        if lost > 0 && self.held && seen.reason != "SOURCE_DIED" {
            broken.push(format!("{lost} packets were lost with the source, and the migration does not say so"));
        }
        if lost > 0 && !self.cut && !self.held {
            broken.push(format!(
                "{} packets to the guest and {} from it were lost",
                counts.lost_to_guest, counts.lost_from_guest
            ));
            broken.extend(counts.traces.iter().cloned());
        }
        if let (true, Some((first, last))) = (self.cut, counts.lost_between) {
            let ms = |at: u64| (at as f64 - seen.struck_at_ns as f64) / 1e6;
            let until = super::strike::FOR.as_millis() as u64 + CUT_SHOWS_MS;
            if ms(first) < -(CUT_BEGINS_MS as f64) || ms(last) > until as f64 {
                broken.push(format!(
                    "packets were lost from {:.0} to {:.0} ms after the cut: not all were the cut's",
                    ms(first),
                    ms(last)
                ));
            }
        }
        let faults = [
            (counts.sent == 0, "nothing was sent, so nothing was shown".to_owned()),
            (counts.duplicated > 0, format!("{} packets came more than once", counts.duplicated)),
            (self.in_order && counts.reordered > 0, format!("{} packets came out of order", counts.reordered)),
            (counts.resets > 0, format!("{} TCP connections broke", counts.resets)),
            (counts.damaged > 0, format!("{} TCP messages were damaged or stuck", counts.damaged)),
            (counts.corrupted > 0, format!("{} pages of the guest's memory were corrupted", counts.corrupted)),
        ];
        broken.extend(faults.into_iter().filter_map(|(is, what)| is.then_some(what)));
    }

    /// What the promise says of lost frames.
    pub(super) fn losses(&self) -> &'static str {
        match (self.guest, self.cut, self.held) {
            (Guest::Dies, ..) => "the guest's own",
            (_, true, _) => "only on the cut link",
            (_, _, true) => "only what the source alone had",
            (Guest::Either, ..) => "none, if it lives",
            (Guest::Lives, ..) => "none",
        }
    }

    /// Whether order is promised.
    pub(super) fn is_in_order(&self) -> bool {
        self.in_order
    }
}

/// Where order is not assured: nobody is there who could tell when the older frames are in.
fn is_in_order(cell: Cell) -> bool {
    let Cell { victim, fault, phase, .. } = cell;
    match (victim, fault) {
        // The gate waits 2 s for a source that says nothing: one that is killed is back by then, one that stands still or has
        // lost its QEMU is not.
        (Victim::SourceAgent, Fault::Stop) | (Victim::SourceHost, Fault::Kill | Fault::Stop) => {
            phase < Phase::Told || phase > Phase::Open
        }
        // What is cut while the old path is emptied is late, and the markers with it.
        (_, Fault::Cut) => victim == Victim::ControllerLink,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::cell::Kind;
    use super::super::disks::Copied;
    use super::*;

    fn seen(verdict: Verdict, counts: Counts) -> Seen {
        Seen { verdict, counts: Some(counts), reason: "R".to_owned(), ..Seen::default() }
    }

    fn counts() -> Counts {
        Counts { sent: 1000, ..Counts::default() }
    }

    #[test]
    fn one_lost_packet_breaks_it_unless_the_link_was_cut_or_the_source_died() {
        let lost = Counts { lost_to_guest: 1, ..counts() };
        for cell in Cell::all() {
            let promise = Promise::of(cell);
            let verdict = if promise.ends == Ends::Undone { Verdict::Undone } else { Verdict::Moved };
            let fate = if promise.guest == Guest::Dies { Fate::Died } else { Fate::Lives };
            let good = Seen { fate, ..seen(verdict, counts()) };
            assert_eq!(promise.broken(&good), Vec::<String>::new(), "{cell}");
            let bad = Seen { fate, ..seen(verdict, lost.clone()) };
            assert_eq!(promise.broken(&bad).is_empty(), promise.cut, "{cell}");
            let said = Seen { reason: "SOURCE_DIED".to_owned(), ..bad };
            assert_eq!(promise.broken(&said).is_empty(), promise.cut || promise.held, "{cell}");
        }
    }

    #[test]
    fn a_cut_excuses_only_what_was_lost_in_it() {
        let promise =
            Promise::of(Cell { kind: Kind::Bare, victim: Victim::PeerLink, fault: Fault::Cut, phase: Phase::Arm });
        let struck_at_ns = 50_000_000_000;
        let at = |ms: u64| struck_at_ns + ms * 1_000_000;
        let lost = |first, last| Counts { lost_to_guest: 9, lost_between: Some((first, last)), ..counts() };
        let within = Seen { struck_at_ns, ..seen(Verdict::Moved, lost(at(1), at(1999))) };
        assert_eq!(promise.broken(&within), Vec::<String>::new());
        let after = Seen { struck_at_ns, ..seen(Verdict::Moved, lost(at(1), at(9000))) };
        assert_eq!(promise.broken(&after).len(), 1);
    }

    #[test]
    fn what_was_copied_is_not_copied_again_unless_it_may_be_less_than_it_seems() {
        let next = |left| Some(Copied { whole: 10, left: Some(left) });
        for cell in Cell::with_disks().filter(|cell| cell.victim != Victim::SourceQemu) {
            let undone = |left| Seen { disks: next(left), ..seen(Verdict::Undone, counts()) };
            let promise = Promise::of(cell);
            assert_eq!(promise.broken(&undone(5)), Vec::<String>::new(), "{cell}");
            assert_eq!(promise.broken(&undone(8)).is_empty(), cell.left_percent() != Some(50), "{cell}");
            assert_eq!(promise.broken(&undone(9)).is_empty(), cell.left_percent().is_none(), "{cell}");
        }
    }

    #[test]
    fn every_other_fault_breaks_it() {
        let cell = Cell { kind: Kind::Bare, victim: Victim::PeerAgent, fault: Fault::Kill, phase: Phase::Carry };
        let promise = Promise::of(cell);
        let faults: [fn(&mut Seen); 8] = [
            |seen| seen.counts = Some(Counts { duplicated: 1, ..counts() }),
            |seen| seen.counts = Some(Counts { reordered: 1, ..counts() }),
            |seen| seen.counts = Some(Counts { resets: 1, ..counts() }),
            |seen| seen.counts = Some(Counts { corrupted: 1, ..counts() }),
            |seen| seen.counts = Some(Counts { sent: 0, ..counts() }),
            |seen| seen.verdict = Verdict::Open,
            |seen| seen.fate = Fate::Died,
            |seen| seen.wrong.push("two QEMUs".to_owned()),
        ];
        for fault in faults {
            let mut seen = seen(Verdict::Moved, counts());
            fault(&mut seen);
            assert!(!promise.broken(&seen).is_empty(), "{seen:?}");
        }
    }
}
