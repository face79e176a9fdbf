//! The demo: a guest moves there and back under traffic, as an operator would move it; independent probes say what the
//! network noticed.

pub(crate) mod budget;
mod delivery;
pub(crate) mod disks;
mod idle;
pub(crate) mod image;
pub(crate) mod late;
pub(crate) mod move_guest;
pub(crate) mod probe;
pub(crate) mod probes;
mod promise;
mod record;
pub(crate) mod resources;
pub(crate) mod stage;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use crate::lab::Lab;
use crate::signals;
use crate::topology::Topology;

use move_guest::{Judge, Mover};
use probes::Probes;
use record::{HostInfo, Record, Run};
use resources::Watch;
use stage::Stage;

/// Time for the probes to find their rhythm before the first migration.
const WARM_UP: Duration = Duration::from_secs(2);

/// With more runs than this the operator's command does not show its progress.
const RUNS_SHOWN: u32 = 4;

/// What the demo is to do.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Migrations, there and back in turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Show the pause of an idle guest instead: no traffic, no probe in the guest.
    #[arg(long, conflicts_with = "pps")]
    idle: bool,
    /// Numbered UDP packets a second, each way.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pps: u32,
    /// Give the guest two disks of its hosts' own, which move with it; if it is not idle it writes and checks them all the time.
    #[arg(long)]
    disks: bool,
    /// Also write all results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the lab up, with the guest in it.
    #[arg(long)]
    keep: bool,
}

impl Options {
    /// Writes the results to the file that was asked for, if one was.
    fn save<R: Serialize>(&self, record: &Record<R>) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let json = serde_json::to_vec_pretty(record)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The guest that moves, and the endpoints it talks to.
pub(crate) mod cast {
    pub(crate) const NETWORK: &str = "blue";
    pub(crate) const VNI: &str = "7001";
    pub(crate) const GUEST: &str = "web-1";
    pub(crate) const GUEST_MAC: &str = "02:00:00:07:00:10";
    pub(crate) const GUEST_ADDRESS: &str = "10.7.0.10";
    /// Not a multiple of 256 KiB: QEMU 7.2 without KVM corrupts migrated memory of such sizes.
    pub(crate) const GUEST_MEMORY: &str = "262136KiB";

    /// The guest kernel's command line; `parameters` are added.
    pub(crate) fn cmdline(parameters: &str) -> String {
        format!("console=ttyS0 quiet panic=-1 tl.ip={GUEST_ADDRESS}/24 {parameters}").trim_end().to_owned()
    }

    /// Name of the endpoint on a peer, counting from 0.
    pub(crate) fn endpoint(peer: usize) -> String {
        format!("gw{peer}")
    }

    /// Its MAC address.
    pub(crate) fn endpoint_mac(peer: usize) -> String {
        format!("02:00:00:07:00:{:02x}", peer + 1)
    }

    /// Its IPv4 address.
    pub(crate) fn endpoint_address(peer: usize) -> String {
        format!("10.7.0.{}", peer + 1)
    }
}

/// Runs the demo; an error if anything went wrong, the promise being broken included.
pub(crate) fn run(lab: &Lab, topology: &Topology, options: &Options) -> Result<()> {
    if options.idle {
        let record = Stage::play(lab, topology, options.keep, |stage| idle_migrations(stage, options))?;
        options.save(&record)?;
        print!("\n{}", idle::table(&record.runs));
        return Ok(());
    }
    let record = Stage::play(lab, topology, options.keep, |stage| migrations(stage, topology, options))?;
    options.save(&record)?;
    print!("\n{}", table::of(&record.runs));
    for disk in &record.disks {
        let disks::Disk { name, written, verified, wrong, missing, slowest_write_ms, .. } = disk;
        println!(
            "disk {name}: {written} blocks written, {verified} read back, {wrong} wrong, {missing} missing; slowest write {slowest_write_ms} ms"
        );
    }
    if !record.resources.is_empty() {
        print!("\n{}", resources::table(&record.resources));
    }
    judge(&record)
}

fn idle_migrations(stage: &Stage, options: &Options) -> Result<Record<idle::Pause>> {
    let flags = if options.disks { &disks::FLAGS[..] } else { &[] };
    idle::migrations(stage, options.runs, flags)
}

/// Migrations of an idle guest, `runs` of them, with `disks` or without.
pub(crate) fn pauses(lab: &Lab, topology: &Topology, runs: u32, disks: bool) -> Result<Vec<idle::Pause>> {
    let options = Options { runs, idle: true, pps: 0, disks, json: None, keep: false };
    Ok(Stage::play(lab, topology, options.keep, |stage| idle_migrations(stage, &options))?.runs)
}

/// The demo's migrations, `runs` of them under `pps` packets a second each way, and where the time of each cutover went; an
/// error if the promise was broken.
pub(crate) fn budget(lab: &Lab, topology: &Topology, runs: u32, pps: u32) -> Result<Vec<budget::Row>> {
    let options = Options { runs, idle: false, pps, disks: false, json: None, keep: false };
    let record = Stage::play(lab, topology, options.keep, |stage| migrations(stage, topology, &options))?;
    judge(&record)?;
    Ok(budget::rows(&record.runs))
}

fn judge(record: &Record<Run>) -> Result<()> {
    let mut broken: Vec<String> = record.runs.iter().flat_map(promise::broken).collect();
    broken.extend(record.disks.iter().filter_map(disks::Disk::broken));
    let grown = resources::grown(&record.resources);
    if !broken.is_empty() {
        bail!("the promise is broken:\n  {}", [broken, grown].concat().join("\n  "))
    }
    println!("\nThe promise held: nothing lost, duplicated or reordered, no connection reset, memory intact.");
    ensure!(grown.is_empty(), "something was left behind:\n  {}", grown.join("\n  "));
    Ok(())
}

fn migrations(stage: &Stage, topology: &Topology, options: &Options) -> Result<Record<Run>> {
    let (parameters, flags) = if options.disks { (disks::PARAMETERS, &disks::FLAGS[..]) } else { ("", &[][..]) };
    stage.create_guest(parameters, flags)?;
    println!("waiting for {} to answer", cast::GUEST);
    let mut probes = Probes::start(stage.lab, &stage.hypervisors, stage.peers[0], options.pps)?;
    signals::sleep(WARM_UP)?;
    let mut record = Record::new(HostInfo::find(&stage.operator, stage.hypervisors[0])?);
    let mut watch = Watch::new(stage.lab, topology, options.runs);
    watch.look(0)?;
    let mut judge = Judge::new(Mover::new(&stage.operator, options.runs <= RUNS_SHOWN), &mut probes)?;
    for number in 0..options.runs {
        let (from, to) = stage.way(number as usize);
        println!("run {} of {}: {} moves from {from} to {to}", number + 1, options.runs, cast::GUEST);
        record.runs.push(judge.run(from, to)?);
        watch.look(number + 1)?;
    }
    record.resources = watch.finish();
    if options.disks {
        println!("the guest reads its disks back");
        record.disks = disks::read_back(&mut probes)?;
    }
    Ok(record)
}
