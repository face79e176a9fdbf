//! The fault suite: each part of the fabric is killed, stopped, cut off or starved at each moment of a move, on real daemons
//! and a real guest, and independent probes say what the network noticed.
//!
//! One lab and one guest serve for as many cells as can be: the guest moves there and back. A cell that broke a promise costs
//! the next a new lab, and so does the first whose guest is of another kind.

mod cell;
mod clock;
mod cold;
mod cold_table;
mod disks;
mod disks_table;
mod ear;
mod expect;
mod phase;
mod report;
mod results;
mod run;
mod sight;
mod storage;
mod strike;
mod window;
mod world;

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use cell::Cell;
use expect::Promise;
use results::{Played, Results};
use run::{Fate, Seen};
use world::World;

use crate::lab::Lab;
use crate::play;
use crate::signals;
use crate::teardown::Guard;
use crate::topology::Topology;

/// How often a cell is played until it is struck where it is to be.
const TRIES: u32 = 3;

/// What the suite is to do.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Cells to play, by parts of their names, `*` standing for anything; all if absent. What is left out stays as it was.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    only: Vec<String>,
    /// Only those that were not played, or broke their promise.
    #[arg(long)]
    missing: bool,
    /// Name the cells, and do nothing.
    #[arg(long)]
    list: bool,
    /// Begin no cell after so many minutes.
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<f64>,
    /// The table; its figures go beside it, as JSON.
    #[arg(long, value_name = "FILE", default_value = "docs/faults.md")]
    out: PathBuf,
}

/// Runs the suite; an error if a cell broke its promise.
pub(crate) fn run(lab: &Lab, topology: &Topology, options: &Options) -> Result<()> {
    let mut results = Results::read(&options.out)?;
    let mut left: VecDeque<Cell> = chosen(options, &results);
    ensure!(!left.is_empty() || options.missing, "no cell is called so; --list names them");
    if options.list {
        left.iter().for_each(|cell| println!("{cell}"));
        return Ok(());
    }
    let _lock = lab.lock()?;
    let until = options.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let (mut played, mut broken) = (0, Vec::new());
    let in_time = || until.is_none_or(|until| Instant::now() < until);
    while let Some(kind) = left.front().map(|cell| cell.kind).filter(|_| in_time()) {
        let guard = Guard::new(lab.clone());
        let mut world = World::new(lab, topology, kind).inspect_err(|_| play::show_logs(lab, topology))?;
        while in_time()
            && let Some(cell) = left.pop_front_if(|cell| cell.kind == kind)
        {
            let one = play_cell(&mut world, cell)?;
            let good = one.broken.is_empty();
            tell(&cell, &one);
            if !good {
                keep_evidence(lab, topology, &cell)?;
                broken.push(cell.to_string());
            }
            played += 1;
            let died = one.seen.fate == Fate::Died;
            results.cells.insert(cell.to_string(), one);
            results.write(&options.out)?;
            if !good {
                break;
            }
            // One that cannot be made anew is another cell's beginning: it gets a new lab.
            if died && !left.is_empty() && world.revive().is_err() {
                break;
            }
        }
        drop(world);
        guard.finish()?;
    }
    results.write(&options.out)?;
    println!(
        "\n{} of {played} cells are green, {} were not played; see {}",
        played - broken.len(),
        left.len(),
        options.out.display()
    );
    ensure!(broken.is_empty(), "promises were broken in {}", broken.join(", "));
    Ok(())
}

fn chosen(options: &Options, results: &Results) -> VecDeque<Cell> {
    let wanted = |cell: &Cell| {
        let green = results.of(cell).is_some_and(|played| played.broken.is_empty());
        let named = options.only.is_empty() || options.only.iter().any(|pattern| cell.is_picked_by(pattern));
        named && !(options.missing && green)
    };
    Cell::all().into_iter().filter(wanted).collect()
}

/// Plays a cell until it is struck where it is to be, or breaks its promise.
fn play_cell(world: &mut World<'_>, cell: Cell) -> Result<Played> {
    let began = Instant::now();
    let promise = Promise::of(cell);
    for tries in 1.. {
        signals::check()?;
        let seen = run::play(world, cell)
            .unwrap_or_else(|error| Seen { wrong: vec![format!("{error:#}")], ..Seen::default() });
        signals::check()?;
        let broken = promise.broken(&seen);
        let done = seen.hit == Some(cell.phase) || tries == TRIES || !broken.is_empty();
        if done {
            return Played::new(tries, began.elapsed().as_secs_f64(), seen, broken);
        }
        if seen.fate == Fate::Died {
            world.revive()?;
        }
    }
    unreachable!("the last try is done")
}

fn tell(cell: &Cell, played: &Played) {
    let Played { seconds, seen, broken, tries, .. } = played;
    let verdict = if broken.is_empty() { "green" } else { "BROKEN" };
    let hit = seen.hit.map_or("nothing", phase::Phase::name);
    println!("{verdict:<7} {cell:<36} hit {hit:<9} {tries} tries {seconds:>5.1} s  {:?} {}", seen.verdict, seen.reason);
    broken.iter().for_each(|what| println!("        {what}"));
}

/// The daemons' logs go with the lab.
fn keep_evidence(lab: &Lab, topology: &Topology, cell: &Cell) -> Result<()> {
    let directory = results::evidence().join(cell.to_string().replace('/', "."));
    fs::create_dir_all(&directory)?;
    for node in topology.nodes.iter().filter(|node| !node.daemon.is_empty()) {
        fs::copy(lab.log(&node.name), directory.join(format!("{}.log", node.name)))?;
    }
    println!("        the daemons' logs are in {}", directory.display());
    Ok(())
}
