//! The demo: a guest moves there and back under traffic, as an operator would move it; independent probes say what the
//! network noticed.

mod delivery;
mod image;
mod move_guest;
mod probes;
mod promise;
mod record;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::lab::Lab;
use crate::operator::Operator;
use crate::play;
use crate::signals;
use crate::teardown::Guard;
use crate::topology::{Role, Topology};

use image::Image;
use move_guest::Mover;
use probes::Probes;
use record::{HostInfo, Record};

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
    /// Numbered UDP packets a second, each way.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pps: u32,
    /// Also write all results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the lab up, with the guest in it.
    #[arg(long)]
    keep: bool,
}

/// The guest that moves, and the endpoint it talks to.
mod cast {
    pub(super) const NETWORK: &str = "blue";
    pub(super) const VNI: &str = "7001";
    pub(super) const GUEST: &str = "web-1";
    pub(super) const GUEST_MAC: &str = "02:00:00:07:00:10";
    pub(super) const GUEST_ADDRESS: &str = "10.7.0.10";
    /// Not a multiple of 256 KiB: QEMU 7.2 without KVM corrupts migrated memory of such sizes.
    pub(super) const GUEST_MEMORY: &str = "262136KiB";
    pub(super) const ENDPOINT: &str = "gw0";
    pub(super) const ENDPOINT_MAC: &str = "02:00:00:07:00:01";
    pub(super) const ENDPOINT_ADDRESS: &str = "10.7.0.1";
}

/// Runs the demo; an error if anything went wrong, the promise being broken included. The lab is taken down whatever
/// happens, unless it is to be kept.
pub(crate) fn run(lab: &Lab, topology: &Topology, options: &Options) -> Result<()> {
    let _lock = lab.lock()?;
    let image = Image::find()?;
    let guard = Guard::new(lab.clone());
    let record = perform(lab, topology, options, &image);
    if options.keep {
        guard.keep();
        println!("lab {} stays up; take it down with: throughline-lab down", lab.name());
    } else {
        guard.finish()?;
    }
    let record = record?;
    if let Some(path) = &options.json {
        let json = serde_json::to_vec_pretty(&record)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("\n{}", table::of(&record.runs));
    let broken: Vec<String> = record.runs.iter().flat_map(promise::broken).collect();
    if broken.is_empty() {
        println!("\nThe promise held: nothing lost, duplicated or reordered, no connection reset, memory intact.");
        return Ok(());
    }
    bail!("the promise is broken:\n  {}", broken.join("\n  "))
}

fn perform(lab: &Lab, topology: &Topology, options: &Options, image: &Image) -> Result<Record> {
    println!("bringing up lab {}", lab.name());
    let operator = play::up(lab, topology)?;
    migrations(lab, topology, options, image, &operator).inspect_err(|_| play::show_logs(lab, topology))
}

fn migrations(lab: &Lab, topology: &Topology, options: &Options, image: &Image, operator: &Operator) -> Result<Record> {
    let hypervisors: Vec<&str> = topology.with_role(Role::Hypervisor).map(|node| node.name.as_str()).collect();
    ensure!(hypervisors.len() >= 2, "the demo needs two hypervisors, {} has {}", lab.name(), hypervisors.len());
    let peer = topology.with_role(Role::Peer).next().context("the demo needs a node with the role peer")?;

    create(operator, hypervisors[0], &peer.name, image)?;
    println!("waiting for {} to answer", cast::GUEST);
    let mut probes = Probes::start(lab, &hypervisors, &peer.name, options.pps)?;
    signals::sleep(WARM_UP)?;
    let mut record = Record { runs: Vec::new(), host: HostInfo::find(operator, hypervisors[0])? };
    let mut mover = Mover::new(operator, &mut probes, options.runs <= RUNS_SHOWN)?;
    for number in 0..options.runs as usize {
        let (from, to) = (hypervisors[number % 2], hypervisors[(number + 1) % 2]);
        println!("run {} of {}: {} moves from {from} to {to}", number + 1, options.runs, cast::GUEST);
        record.runs.push(mover.run(from, to)?);
    }
    Ok(record)
}

fn create(operator: &Operator, host: &str, peer: &str, image: &Image) -> Result<()> {
    let (kernel, initrd) = (image.kernel(), image.initrd());
    let cmdline = format!("console=ttyS0 quiet panic=-1 tl.ip={}/24", cast::GUEST_ADDRESS);
    operator.run(&["network", "create", cast::NETWORK, "--vni", cast::VNI])?;
    operator.run(&[
        "endpoint",
        "create",
        cast::ENDPOINT,
        "--network",
        cast::NETWORK,
        "--host",
        peer,
        "--mac",
        cast::ENDPOINT_MAC,
        "--ip",
        cast::ENDPOINT_ADDRESS,
    ])?;
    operator.run(&[
        "guest",
        "create",
        cast::GUEST,
        "--network",
        cast::NETWORK,
        "--host",
        host,
        "--memory",
        cast::GUEST_MEMORY,
        "--vcpus",
        "1",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--cmdline",
        &cmdline,
        "--mac",
        cast::GUEST_MAC,
        "--ip",
        cast::GUEST_ADDRESS,
    ])
}
