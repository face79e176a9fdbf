//! Where the time of a cutover goes: the bench's table.

use serde::{Deserialize, Serialize};

use super::idle::Pause;
use super::record::Run;
use super::table::median;

/// A stretch of the cutover: its name, and how many milliseconds of a run it took; `None`: that run did not have it.
type Stretch<T> = (&'static str, fn(&T) -> Option<f64>);

const STRETCHES: [Stretch<Run>; 15] = [
    ("arm to STOP: frames wait, the guest still runs", |run| run.phases_ms.stopped),
    ("STOP to pre-switchover: QEMU", |run| between(run.phases_ms.stopped, run.phases_ms.pre_switchover)),
    ("pre-switchover to the word to go on: ours", |run| between(run.phases_ms.pre_switchover, run.phases_ms.continued)),
    ("to memory in: QEMU's last memory and devices", |run| between(run.phases_ms.continued, run.phases_ms.memory_in)),
    ("to the decision: QEMU's word reaches the agent", |run| between(run.phases_ms.memory_in, run.phases_ms.decided)),
    ("to commit: ours, on disk", |run| between(run.phases_ms.decided, run.phases_ms.committed)),
    ("to `cont`: ours", |run| between(run.phases_ms.committed, run.phases_ms.cont)),
    ("to running: QEMU's `cont`", |run| between(run.phases_ms.cont, run.phases_ms.running)),
    ("STOP to running: the pause", |run| Some(run.pause_ms)),
    ("of it ours", ours),
    ("running to first frame on the destination's tap", |run| Some(run.hold_added_ms)),
    ("running to line empty", |run| between(run.phases_ms.running, run.phases_ms.line_empty)),
    ("running to open gate", |run| between(run.phases_ms.running, run.phases_ms.gate_open)),
    ("arm to settled", |run| run.phases_ms.settled),
    ("longest network gap", |run| Some(run.gap_ms)),
];

/// Those for which an idle guest stands.
const OF_A_PAUSE: [Stretch<Pause>; 8] = [
    ("STOP to pre-switchover: QEMU", |run| between(run.phases_ms.stopped, run.phases_ms.pre_switchover)),
    ("to the word to go on: ours, and mirrors end", |run| {
        between(run.phases_ms.pre_switchover, run.phases_ms.continued)
    }),
    ("to memory in: QEMU's last memory and devices", |run| between(run.phases_ms.continued, run.phases_ms.memory_in)),
    ("to the decision: QEMU's word reaches the agent", |run| between(run.phases_ms.memory_in, run.phases_ms.decided)),
    ("to commit: ours, on disk", |run| between(run.phases_ms.decided, run.phases_ms.committed)),
    ("to `cont`: ours", |run| between(run.phases_ms.committed, run.phases_ms.cont)),
    ("to running: QEMU's `cont`", |run| between(run.phases_ms.cont, run.phases_ms.running)),
    ("STOP to running: the pause", |run| Some(run.pause_ms)),
];

/// What of the pause is not QEMU's.
fn ours(run: &Run) -> Option<f64> {
    let phases = &run.phases_ms;
    Some(between(phases.pre_switchover, phases.continued)? + between(phases.memory_in, phases.cont)?)
}

/// How long a stretch took in many runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// The stretch.
    pub(crate) stretch: String,
    /// Its median, milliseconds.
    pub(crate) p50_ms: f64,
    /// Its 99th percentile, milliseconds.
    pub(crate) p99_ms: f64,
}

/// Each stretch that the runs had.
pub(super) fn rows(runs: &[Run]) -> Vec<Row> {
    rows_of(&STRETCHES, runs)
}

/// Each stretch of idle guests' pauses.
pub(crate) fn of_pauses(runs: &[Pause]) -> Vec<Row> {
    rows_of(&OF_A_PAUSE, runs)
}

fn rows_of<T>(stretches: &[Stretch<T>], runs: &[T]) -> Vec<Row> {
    let row = |(name, took): &Stretch<T>| {
        let mut values: Vec<f64> = runs.iter().filter_map(took).collect();
        values.sort_unstable_by(f64::total_cmp);
        (!values.is_empty()).then(|| Row {
            stretch: (*name).to_owned(),
            p50_ms: median(&values),
            p99_ms: percentile(&values, 99),
        })
    };
    stretches.iter().filter_map(row).collect()
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
        let rows = rows(std::slice::from_ref(&run));
        let had = STRETCHES.iter().filter(|(_, took)| took(&run).is_some()).count();
        assert!(rows.len() == had && had < STRETCHES.len(), "{rows:?}");
        assert!(rows.iter().any(|row| row.stretch == "STOP to running: the pause"), "{rows:?}");
    }
}
