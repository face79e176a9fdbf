//! What arrived of one flow, in a bit a packet: at high rates an emulated guest has no time for more.

/// One flow, as its receiver sees it.
#[derive(Debug, Default)]
pub(super) struct Track {
    seen: Vec<u64>,
    highest: Option<u64>,
    /// Arrivals of a packet that had already arrived.
    pub(super) duplicated: u64,
    /// First arrivals that came after one with a higher number.
    pub(super) reordered: u64,
    /// The furthest any of them had fallen behind.
    pub(super) displacement: u64,
}

impl Track {
    /// Numbers from here on are nobody's: no flow gets that far, and a stray one must not take all memory.
    const NUMBERS: u64 = 1 << 28;

    /// Notes an arrival.
    pub(super) fn note(&mut self, number: u64) {
        if number >= Self::NUMBERS {
            return;
        }
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.duplicated += 1;
        } else if let Some(highest) = self.highest.filter(|&highest| highest > number) {
            self.reordered += 1;
            self.displacement = self.displacement.max(highest - number);
        }
        self.seen[word] |= bit;
        self.highest = self.highest.max(Some(number));
    }

    /// Of the first `sent` numbers, how many arrived.
    pub(super) fn arrived(&self, sent: u64) -> u64 {
        sent - self.missing(sent).count() as u64
    }

    /// Of the first `sent` numbers, those that did not arrive.
    pub(super) fn missing(&self, sent: u64) -> impl Iterator<Item = u64> {
        (0..sent).filter(|number| {
            let word = self.seen.get((number / 64) as usize).copied().unwrap_or(0);
            word & 1 << (number % 64) == 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lost_duplicated_and_reordered_apart() {
        let mut track = Track::default();
        [0, 1, 1, 5, 3, 4, 6, 3].into_iter().for_each(|number| track.note(number));
        assert_eq!((track.arrived(8), track.missing(8).collect::<Vec<_>>()), (6, vec![2, 7]));
        assert_eq!((track.duplicated, track.reordered, track.displacement), (2, 2, 2));
    }

    #[test]
    fn everything_in_order_is_fine_across_words() {
        let mut track = Track::default();
        (0..200).for_each(|number| track.note(number));
        assert_eq!((track.arrived(200), track.duplicated, track.reordered), (200, 0, 0));
        assert_eq!(track.missing(202).collect::<Vec<_>>(), [200, 201]);
        track.note(u64::MAX);
        assert_eq!(track.highest, Some(199));
    }
}
