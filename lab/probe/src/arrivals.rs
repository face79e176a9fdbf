//! What arrived, one entry a packet, and what follows from it for a range of numbers.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// One packet's arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its number.
    pub sequence: u64,
    /// When, nanoseconds of the receiver's clock.
    pub at_ns: u64,
}

/// Arrivals in the order in which the receiver saw them.
#[derive(Debug, Default)]
pub struct Log {
    entries: Mutex<Vec<Arrival>>,
}

impl Log {
    /// Notes an arrival.
    pub fn push(&self, arrival: Arrival) {
        self.lock().push(arrival);
    }

    /// Forgets everything: a new session begins.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// What happened to the packets numbered `sent`; forgets those numbered lower, which no later window asks for.
    pub fn summarise(&self, sent: Range<u64>) -> Summary {
        let mut entries = self.lock();
        entries.retain(|arrival| arrival.sequence >= sent.start);
        Summary::of(sent, &entries)
    }

    /// When the packets with these numbers were first noted; those that never were are passed over. The log's numbers and
    /// `numbers` both rise.
    pub fn times(&self, numbers: &[u64]) -> Vec<u64> {
        let entries = self.lock();
        let find = |number: &u64| entries.binary_search_by_key(number, |arrival| arrival.sequence).ok();
        numbers.iter().filter_map(find).map(|index| entries[index].at_ns).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arrival>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of the packets sent in a window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Packets sent.
    pub sent: u64,
    /// Of them, arrived at least once.
    pub arrived: u64,
    /// Of them, not arrived.
    pub lost: u64,
    /// Their numbers, the first [`Summary::NUMBERS`] of them.
    pub lost_numbers: Vec<u64>,
    /// Arrivals of a packet that had already arrived.
    pub duplicated: u64,
    /// First arrivals that came after one with a higher number.
    pub reordered: u64,
    /// The furthest any of them had fallen behind, in numbers.
    pub displacement: u64,
    /// Longest interval between two arrivals that followed each other, nanoseconds; 0 with fewer than two.
    pub longest_gap_ns: u64,
    /// When it began, nanoseconds of the receiver's clock.
    pub gap_began_ns: u64,
    /// The longest [`Summary::GAPS`] such intervals of at least [`Summary::GAP_NS`], in their order.
    pub gaps: Vec<Gap>,
}

/// An interval without an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// When it began, nanoseconds of the receiver's clock.
    pub began_ns: u64,
    /// How long it was, nanoseconds.
    pub length_ns: u64,
}

impl Summary {
    /// How many lost packets are named.
    pub const NUMBERS: usize = 4096;

    /// How many intervals are named.
    pub const GAPS: usize = 64;

    /// Shorter ones are the machine's.
    pub const GAP_NS: u64 = 2_000_000;

    /// What `arrivals` (in order of arrival) say about the packets numbered `sent`; others are passed over.
    pub fn of(sent: Range<u64>, arrivals: &[Arrival]) -> Self {
        let mut summary = Self { sent: sent.end.saturating_sub(sent.start), ..Self::default() };
        let mut seen = HashSet::new();
        let mut highest = None;
        let mut previous: Option<u64> = None;
        for arrival in arrivals.iter().filter(|arrival| sent.contains(&arrival.sequence)) {
            summary.note_gap(previous.replace(arrival.at_ns), arrival.at_ns);
            if !seen.insert(arrival.sequence) {
                summary.duplicated += 1;
            } else if let Some(highest) = highest.filter(|&highest| highest > arrival.sequence) {
                summary.reordered += 1;
                summary.displacement = summary.displacement.max(highest - arrival.sequence);
            }
            highest = highest.max(Some(arrival.sequence));
        }
        summary.keep_the_longest_gaps();
        summary.arrived = seen.len() as u64;
        summary.lost = summary.sent - summary.arrived;
        summary.lost_numbers = sent.filter(|sequence| !seen.contains(sequence)).take(Self::NUMBERS).collect();
        summary
    }

    fn keep_the_longest_gaps(&mut self) {
        let surplus = self.gaps.len().saturating_sub(Self::GAPS);
        self.gaps.sort_unstable_by_key(|gap| gap.length_ns);
        self.gaps.drain(..surplus);
        self.gaps.sort_unstable_by_key(|gap| gap.began_ns);
    }

    fn note_gap(&mut self, previous: Option<u64>, now: u64) {
        let Some(previous) = previous else { return };
        let gap = now.saturating_sub(previous);
        if gap >= Self::GAP_NS {
            self.gaps.push(Gap { began_ns: previous, length_ns: gap });
        }
        if gap > self.longest_gap_ns {
            self.longest_gap_ns = gap;
            self.gap_began_ns = previous;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(sequences: &[u64]) -> Vec<Arrival> {
        sequences.iter().zip(1..).map(|(&sequence, at)| Arrival { sequence, at_ns: at * 1000 }).collect()
    }

    #[test]
    fn everything_once_and_in_order() {
        let summary = Summary::of(0..4, &arrivals(&[0, 1, 2, 3]));
        assert_eq!(
            summary,
            Summary { sent: 4, arrived: 4, longest_gap_ns: 1000, gap_began_ns: 1000, ..Summary::default() }
        );
    }

    #[test]
    fn counts_lost_duplicated_and_reordered_apart() {
        let summary = Summary::of(0..8, &arrivals(&[0, 1, 1, 5, 3, 4, 6, 3]));
        assert_eq!((summary.sent, summary.arrived), (8, 6));
        assert_eq!((summary.lost, summary.lost_numbers), (2, vec![2, 7]));
        assert_eq!(summary.duplicated, 2, "1 and 3");
        assert_eq!((summary.reordered, summary.displacement), (2, 2), "3 and 4 after 5");
    }

    #[test]
    fn other_windows_do_not_count() {
        let summary = Summary::of(2..4, &arrivals(&[0, 1, 2, 3, 4]));
        assert_eq!((summary.sent, summary.arrived, summary.lost, summary.reordered), (2, 2, 0, 0));
    }

    #[test]
    fn nothing_arrived() {
        let summary = Summary::of(0..3, &[]);
        assert_eq!((summary.lost, summary.longest_gap_ns), (3, 0));
    }

    #[test]
    fn finds_the_longest_gap() {
        let at = |at_ns| Arrival { sequence: at_ns, at_ns };
        let summary = Summary::of(0..100, &[at(1), at(2), at(40), at(45)]);
        assert_eq!((summary.longest_gap_ns, summary.gap_began_ns), (38, 2));
    }

    #[test]
    fn the_longest_gaps_are_kept_in_their_order() {
        let ms = 1_000_000;
        let mut at_ns = 0;
        let arrivals: Vec<_> = (0..100)
            .map(|sequence| {
                at_ns += if sequence == 50 { 100 * ms } else { 3 * ms };
                Arrival { sequence, at_ns }
            })
            .collect();
        let gaps = Summary::of(0..100, &arrivals).gaps;
        assert_eq!(gaps.len(), Summary::GAPS);
        assert!(gaps.is_sorted_by_key(|gap| gap.began_ns));
        assert!(gaps.contains(&Gap { began_ns: 150 * ms, length_ns: 100 * ms }), "{gaps:?}");
        assert_eq!(Summary::of(0..50, &arrivals[..50]).gaps.len(), 49);
    }

    #[test]
    fn a_log_knows_when() {
        let log = Log::default();
        arrivals(&[0, 1, 2, 3]).into_iter().for_each(|arrival| log.push(arrival));
        assert_eq!(log.times(&[1, 3, 9]), [2000, 4000]);
    }

    #[test]
    fn a_log_forgets_what_no_window_asks_for() {
        let log = Log::default();
        arrivals(&[0, 1, 2, 3]).into_iter().for_each(|arrival| log.push(arrival));
        assert_eq!(log.summarise(2..4).lost, 0);
        assert_eq!(log.summarise(0..2).lost, 2);
    }
}
