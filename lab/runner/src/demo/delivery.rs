//! When frames reached the guest, from what was seen on the taps of both hosts.

use std::collections::BTreeMap;
use std::ops::Range;

use throughline_probe::observe::Sighting;

/// By how much the network was later than the guest itself, nanoseconds: from `cont` to the first frame on the
/// destination's tap, 0 if a frame was there before. `None` if none ever came.
pub(super) fn hold_added(destination: &[Sighting], running_at: u64) -> Option<u64> {
    destination.iter().map(|frame| frame.at_ns).min().map(|first| first.saturating_sub(running_at))
}

/// The longest time without a frame for the guest that began or ended in the window, nanoseconds.
///
/// A frame is delivered when it is on the tap of a host where the guest runs: on the destination's not before `cont`, and
/// one that was on both taps was read back from the source's and counts at the destination.
pub(super) fn longest_gap(source: &[Sighting], destination: &[Sighting], running_at: u64, window: Range<u64>) -> u64 {
    let mut delivered: BTreeMap<u64, u64> = source.iter().map(|frame| (frame.sequence, frame.at_ns)).collect();
    delivered.extend(destination.iter().map(|frame| (frame.sequence, frame.at_ns.max(running_at))));
    let mut times: Vec<u64> = delivered.into_values().collect();
    times.sort_unstable();
    let in_window = |pair: &&[u64]| pair[0] < window.end && pair[1] > window.start;
    times.windows(2).filter(in_window).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

/// Where a frame was last seen, for whoever looks for the fault; times are milliseconds from `stopped_at`.
pub(super) fn trace(sequence: u64, source: &[Sighting], destination: &[Sighting], stopped_at: u64) -> String {
    let on = |tap: &[Sighting]| match tap.iter().rev().find(|frame| frame.sequence == sequence) {
        Some(frame) => format!("at {:+.3} ms", (frame.at_ns as f64 - stopped_at as f64) / 1e6),
        None => "never".to_owned(),
    };
    format!("packet {sequence}: on the source's tap {}, on the destination's {}", on(source), on(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(frames: &[(u64, u64)]) -> Vec<Sighting> {
        frames.iter().map(|&(sequence, at_ns)| Sighting { at_ns, sequence }).collect()
    }

    #[test]
    fn the_hold_adds_what_comes_after_cont() {
        assert_eq!(hold_added(&seen(&[(7, 1300), (8, 1400)]), 1000), Some(300));
        assert_eq!(hold_added(&seen(&[(7, 900), (8, 1400)]), 1000), Some(0), "it waited in the ring");
        assert_eq!(hold_added(&[], 1000), None);
    }

    #[test]
    fn the_gap_spans_both_hosts() {
        let source = seen(&[(0, 100), (1, 110), (2, 120)]);
        let destination = seen(&[(3, 160), (4, 165), (5, 300)]);
        assert_eq!(longest_gap(&source, &destination, 150, 115..170), 135, "165 to 300 began in the window");
        assert_eq!(longest_gap(&source, &destination, 150, 115..162), 40);
    }

    #[test]
    fn a_frame_in_a_paused_guests_ring_is_not_delivered() {
        let source = seen(&[(0, 100), (1, 110), (2, 120)]);
        let destination = seen(&[(2, 130), (3, 140), (4, 165)]);
        assert_eq!(longest_gap(&source, &destination, 160, 105..170), 50, "110 to `cont` at 160");
    }

    #[test]
    fn what_lies_outside_the_window_does_not_count() {
        let source = seen(&[(0, 100), (1, 900), (2, 905)]);
        assert_eq!(longest_gap(&source, &[], 0, 901..1000), 5);
        assert_eq!(longest_gap(&source, &[], 0, 2000..3000), 0);
    }

    #[test]
    fn a_lost_frame_is_traced() {
        let ms = 1_000_000;
        let source = seen(&[(3, 9 * ms), (4, 11 * ms)]);
        assert_eq!(
            trace(4, &source, &[], 10 * ms),
            "packet 4: on the source's tap at +1.000 ms, on the destination's never"
        );
    }
}
