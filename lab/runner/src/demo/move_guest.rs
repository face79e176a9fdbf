//! One migration under traffic.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use throughline_probe::peer::Report;

use super::cast;
use super::late;
use super::probes::Probes;
use super::record::{Cutover, Run, Taps};
use crate::bench::way::Moved;
use crate::operator::Operator;
use crate::signals;

/// After a migration is done: late retransmissions (a timeout takes TCP at least 200 ms) still belong to it.
const AFTERMATH: Duration = Duration::from_millis(500);

/// After a run's last packet was sent, before anybody asks what has arrived.
const DRAIN: Duration = Duration::from_millis(1500);

/// How often what has not is waited for as long again.
const LATE: u32 = 4;

/// Moves the guest as an operator would.
#[derive(Debug)]
pub(crate) struct Mover<'a> {
    operator: &'a Operator,
    show_progress: bool,
}

/// Moves the guest and has the probes judge it. A run's window begins where the one before ended: no packet is left out.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    mover: Mover<'a>,
    probes: &'a mut Probes,
    mark: usize,
}

/// What `throughline migration list` prints, less what is not used here.
#[derive(Debug, Deserialize)]
struct Migrations {
    migrations: Vec<Migration>,
}

#[derive(Debug, Deserialize)]
struct Migration {
    source_host: String,
    destination_host: String,
    report: Option<Cutover>,
}

impl<'a> Judge<'a> {
    /// The first run's window begins now.
    pub(super) fn new(mover: Mover<'a>, probes: &'a mut Probes) -> Result<Self> {
        let mark = probes.mark()?;
        Ok(Self { mover, probes, mark })
    }

    /// One migration, from the operator's command to the last packet's fate.
    pub(super) fn run(&mut self, from: &str, to: &str) -> Result<Run> {
        // What the observers saw until now is the run's before.
        self.probes.sightings(from)?;
        self.probes.sightings(to)?;
        let cutover = self.mover.run(from, to)?;
        signals::sleep(AFTERMATH)?;
        let end = self.probes.mark()?;
        signals::sleep(DRAIN)?;
        let taps = Taps { source: self.probes.sightings(from)?.frames, destination: self.probes.sightings(to)?.frames };
        let report =
            late::wait(DRAIN, LATE, |report: &Report| report.missing() == 0, || self.probes.report(self.mark, end))?;
        self.mark = end;
        Run::of(from, to, &cutover, &report, &taps)
    }
}

impl<'a> Mover<'a> {
    /// Each migration shows its progress on this terminal, or none does.
    pub(crate) fn new(operator: &'a Operator, show_progress: bool) -> Self {
        Self { operator, show_progress }
    }

    /// One migration, from the operator's command to the agents' account of it.
    pub(super) fn run(&self, from: &str, to: &str) -> Result<Cutover> {
        self.migrate(to)?;
        self.report(from, to)
    }

    /// As [`Mover::run`], less what only the demo wants to know.
    pub(crate) fn moved(&self, from: &str, to: &str) -> Result<Moved> {
        let cutover = self.run(from, to)?;
        Ok(Moved {
            stopped_at_ns: cutover.stopped_at_ns,
            running_at_ns: cutover.running_at_ns,
            held: cutover.held,
            carried: cutover.carried,
            gated: cutover.gated,
            overflowed: cutover.overflowed,
        })
    }

    fn migrate(&self, to: &str) -> Result<()> {
        let command = ["migrate", cast::GUEST, "--to", to, "--watch"];
        if !self.show_progress {
            return self.operator.run(&command);
        }
        println!("$ throughline {}", command.join(" "));
        self.operator.run_here(&command)
    }

    /// The agents' account of the migration that was just watched to its end.
    fn report(&self, from: &str, to: &str) -> Result<Cutover> {
        let list: Migrations = self.operator.ask(&["migration", "list", "--guest", cast::GUEST])?;
        let newest = list.migrations.into_iter().next().context("the fabric has forgotten the migration")?;
        let hosts = (newest.source_host.as_str(), newest.destination_host.as_str());
        ensure!(hosts == (from, to), "the newest migration is {hosts:?}, not {from} → {to}");
        let report = newest.report.context("the migration ended without a report")?;
        let complete = [report.armed_at_ns, report.stopped_at_ns, report.running_at_ns, report.settled_at_ns];
        ensure!(complete.iter().all(|&at| at > 0), "the migration's report is incomplete: {report:?}");
        Ok(report)
    }
}
