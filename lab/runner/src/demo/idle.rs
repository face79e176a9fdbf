//! The pause of an idle guest: no probe runs in it, and nothing is sent to it while it moves. What is left is the least a
//! migration stops any guest for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::cast;
use super::move_guest::Mover;
use super::probes::BOOT;
use super::record::{HostInfo, Phases, Record};
use super::stage::Stage;
use super::table::{median, worst};
use crate::play::sibling;
use crate::signals;

/// What makes `lab/guest/init` start no probe.
const NO_PROBE: &str = "tl.probe=off";

/// How long a guest that has just moved may take to answer a ping.
const ANSWER: Duration = Duration::from_secs(5);

/// After the guest has answered for the first time: the rest of its start is no idle time.
const WARM_UP: Duration = Duration::from_secs(2);

/// One migration of an idle guest.
#[derive(Debug, Serialize)]
pub(crate) struct Pause {
    /// STOP at the source to `cont` at the destination, milliseconds, as the agents report it.
    pub(super) pause_ms: f64,
    /// Host the guest left.
    from: String,
    /// Host it went to.
    to: String,
    /// Where the time went.
    pub(super) phases_ms: Phases,
}

/// Moves an idle guest, created with `flags` besides, `runs` times, there and back in turn; an error if it does not answer afterwards, or if a frame was
/// lost because a hold was full.
pub(super) fn migrations(stage: &Stage, runs: u32, flags: &[&str]) -> Result<Record<Pause>> {
    stage.create_guest(NO_PROBE, flags)?;
    println!("waiting for {} to answer", cast::GUEST);
    ping(stage, BOOT)?;
    signals::sleep(WARM_UP)?;
    let mut record = Record::new(HostInfo::find(&stage.operator, stage.hypervisors[0])?);
    let mover = Mover::new(&stage.operator, false);
    for number in 0..runs as usize {
        let (from, to) = stage.way(number);
        println!("run {} of {runs}: {}, idle, moves from {from} to {to}", number + 1, cast::GUEST);
        let cutover = mover.run(from, to)?;
        ensure!(cutover.overflowed == 0, "{from} → {to}: {} frames found a hold full", cutover.overflowed);
        ping(stage, ANSWER).with_context(|| format!("{} moved from {from} to {to}, but is not there", cast::GUEST))?;
        record.runs.push(Pause {
            pause_ms: cutover.pause_ms(),
            from: from.to_owned(),
            to: to.to_owned(),
            phases_ms: Phases::of(&cutover),
        });
    }
    Ok(record)
}

/// Has the peer ping the guest until it answers once.
fn ping(stage: &Stage, patience: Duration) -> Result<()> {
    let mut command = stage.lab.namespace(stage.peers[0]).command(sibling("throughline-probe")?)?;
    command.args(["ping", "--guest", cast::GUEST_ADDRESS, "--patience", &patience.as_secs().to_string()]);
    let output = command.output().context("cannot run the probe")?;
    signals::check()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A line for each run, then the median and the worst.
pub(super) fn table(runs: &[Pause]) -> String {
    let mut text = format!("{:<10}  pause ms\n", "");
    for Pause { pause_ms, from, to, .. } in runs {
        text += &format!("{:<10}  {pause_ms:>8.1}\n", format!("{from} → {to}"));
    }
    let mut pauses: Vec<f64> = runs.iter().map(|run| run.pause_ms).collect();
    pauses.sort_unstable_by(f64::total_cmp);
    let (median, worst) = (median(&pauses), worst(&pauses));
    text + &format!("idle guest: pause median {median:.1} ms, worst {worst:.1} ms over {} runs\n", runs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_ends_with_the_median_and_the_worst() {
        let pause =
            |pause_ms| Pause { pause_ms, from: "h1".to_owned(), to: "h2".to_owned(), phases_ms: Phases::default() };
        assert_eq!(
            table(&[pause(11.72), pause(20.1), pause(9.0)]),
            "            pause ms\n\
             h1 → h2         11.7\n\
             h1 → h2         20.1\n\
             h1 → h2          9.0\n\
             idle guest: pause median 11.7 ms, worst 20.1 ms over 3 runs\n"
        );
    }
}
