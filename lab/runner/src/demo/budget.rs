//! Where the time of a cutover goes: the bench's table.

use super::record::Run;
use super::table::median;

/// A stretch of the cutover: its name, and how many milliseconds of a run it took; `None`: that run did not have it.
type Stretch = (&'static str, fn(&Run) -> Option<f64>);

const STRETCHES: [Stretch; 8] = [
    ("arm to STOP: frames wait, the guest still runs", |run| run.phases_ms.stopped),
    ("STOP to commit: last memory, devices, journal", |run| between(run.phases_ms.stopped, run.phases_ms.committed)),
    ("commit to cont", |run| between(run.phases_ms.committed, run.phases_ms.running)),
    ("STOP to cont: the pause", |run| Some(run.pause_ms)),
    ("cont to first frame on the destination's tap", |run| Some(run.hold_added_ms)),
    ("cont to open gate", |run| between(run.phases_ms.running, run.phases_ms.gate_open)),
    ("arm to settled", |run| run.phases_ms.settled),
    ("longest network gap", |run| Some(run.gap_ms)),
];

/// Each stretch's median and 99th percentile.
pub(super) fn of(runs: &[Run]) -> String {
    let mut table = format!("{:<50} {:>9} {:>9}\n", "", "p50 ms", "p99 ms");
    for (name, took) in STRETCHES {
        let mut values: Vec<f64> = runs.iter().filter_map(took).collect();
        values.sort_unstable_by(f64::total_cmp);
        if values.is_empty() {
            continue;
        }
        table += &format!("{name:<50} {:>9.2} {:>9.2}\n", median(&values), percentile(&values, 99));
    }
    table + &format!("{} migrations\n", runs.len())
}

fn between(earlier: Option<f64>, later: Option<f64>) -> Option<f64> {
    Some(later? - earlier?)
}

/// The smallest of sorted values that `percent` of them do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted[rank.max(1) - 1]
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::good_run;
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&values, 99), 198.0);
        assert_eq!(percentile(&values[..1], 99), 1.0);
        assert_eq!(percentile(&values[..20], 99), 20.0);
    }

    #[test]
    fn what_a_run_did_not_have_is_left_out() {
        let run = good_run();
        let table = of(std::slice::from_ref(&run));
        let had = STRETCHES.iter().filter(|(_, took)| took(&run).is_some()).count();
        assert_eq!(table.lines().count(), had + 2);
        assert!(table.contains("STOP to cont: the pause"), "{table}");
    }
}
