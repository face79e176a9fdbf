//! Where the time of a cutover goes: the bench's table.

use serde::{Deserialize, Serialize};

use super::idle::Pause;
use super::record::{Phases, Run};
use super::table::median;

/// A stretch of the cutover: its name, and how many milliseconds of a run it took; `None`: that run did not have it.
type Stretch<T> = (&'static str, fn(&T) -> Option<f64>);

const ARMED: Stretch<Run> = ("arm to STOP: frames wait, the guest still runs", |run| run.phases_ms.stopped);

/// While the guest stands.
const PAUSED: [Stretch<Phases>; 7] = [
    ("STOP to pre-switchover: QEMU", |phases| between(phases.stopped, phases.pre_switchover)),
    ("to the word to go on: ours, and the disks' mirrors end", |phases| {
        between(phases.pre_switchover, phases.continued)
    }),
    ("to memory in: QEMU's last memory and devices", |phases| between(phases.continued, phases.memory_in)),
    ("to the decision: QEMU's word reaches the agent", |phases| between(phases.memory_in, phases.decided)),
    ("to commit: ours, on disk", |phases| between(phases.decided, phases.committed)),
    ("to `cont`: ours", |phases| between(phases.committed, phases.cont)),
    ("to running: QEMU's `cont`", |phases| between(phases.cont, phases.running)),
];

const PAUSE: &str = "STOP to running: the pause";

const AFTER: [Stretch<Run>; 6] = [
    ("of it ours", ours),
    ("running to first frame on the destination's tap", |run| Some(run.hold_added_ms)),
    ("running to line empty", |run| between(run.phases_ms.running, run.phases_ms.line_empty)),
    ("running to open gate", |run| between(run.phases_ms.running, run.phases_ms.gate_open)),
    ("arm to settled", |run| run.phases_ms.settled),
    ("longest network gap", |run| Some(run.gap_ms)),
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
    let row = |(name, took): Stretch<Run>| row(name, runs.iter().filter_map(took));
    let paused = pause(runs.iter().map(|run| (&run.phases_ms, run.pause_ms)));
    row(ARMED).into_iter().chain(paused).chain(AFTER.into_iter().filter_map(row)).collect()
}

/// Each stretch of idle guests' pauses.
pub(crate) fn of_pauses(runs: &[Pause]) -> Vec<Row> {
    pause(runs.iter().map(|run| (&run.phases_ms, run.pause_ms)))
}

/// The stretches of pauses, and the whole of them.
fn pause<'a>(runs: impl Iterator<Item = (&'a Phases, f64)> + Clone) -> Vec<Row> {
    let paused = |(name, took): Stretch<Phases>| row(name, runs.clone().filter_map(|(phases, _)| took(phases)));
    let whole = row(PAUSE, runs.clone().map(|(_, whole)| whole));
    PAUSED.into_iter().filter_map(paused).chain(whole).collect()
}

fn row(stretch: &str, values: impl Iterator<Item = f64>) -> Option<Row> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    (!values.is_empty()).then(|| Row {
        stretch: stretch.to_owned(),
        p50_ms: median(&values),
        p99_ms: percentile(&values, 99),
    })
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
        let all = 1 + PAUSED.len() + 1 + AFTER.len();
        let had = PAUSED.iter().filter(|(_, took)| took(&run.phases_ms).is_some()).count()
            + [ARMED].iter().chain(&AFTER).filter(|(_, took)| took(&run).is_some()).count()
            + 1;
        assert!(rows.len() == had && had < all, "{rows:?}");
        assert!(rows.iter().any(|row| row.stretch == PAUSE), "{rows:?}");
    }
}
