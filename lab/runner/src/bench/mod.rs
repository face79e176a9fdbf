//! The bench: what the network notices of a move, beside what people use today; what Throughline bears; where the time of a
//! cutover goes; what the data path costs. Each part is measured anew or kept from an earlier run, with the command that made
//! it.

mod continuity;
mod cost;
mod disks;
mod evpn;
mod garbage;
mod hostile;
mod load;
mod ours;
mod qemu;
mod report;
mod results;
mod today;
mod traffic;
pub(crate) mod way;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};

use continuity::{Continuity, Plan};
use load::{COMPARED, HEAVY, Load};
use results::{Part, Results};
use traffic::Window;
use way::Way;

use crate::demo;
use crate::lab::Lab;
use crate::topology::Topology;

/// Packets a second each way while the cutover's budget is measured.
const BUDGET_PPS: u32 = 2000;

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Throughline and what people use today, side by side.
    Continuity,
    /// Throughline alone, under as much as a guest takes.
    Load,
    /// Where the time of a cutover goes.
    Budget,
    /// Throughline alone, beside a flood of garbage.
    Hostile,
    /// What the programs and the hold cost.
    Cost,
    /// What it costs to seal a guest's memory on its way.
    Stream,
    /// How fast disks are copied, and how much longer their guest stands.
    Disks,
}

/// What the bench is to do.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Parts to measure; what is left out stays as it was measured before.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "continuity,load,budget,hostile,cost,stream,disks")]
    only: Vec<Section>,
    /// Rounds of continuity: in each, every way has its turn. And of the pauses with disks and without.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Moves under each load in each round.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    moves: u32,
    /// Ways of continuity.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "learning,rewriting,evpn,throughline")]
    ways: Vec<Way>,
    /// Loads of continuity, by name; all if absent: paced, fast, most, bulk, flows.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<String>,
    /// Migrations of the budget.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Frames of garbage sent beside moves, at least.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    garbage: u64,
    /// Directory for results.md and results.json.
    #[arg(long, value_name = "DIRECTORY", default_value = "bench")]
    out: PathBuf,
}

/// Runs the bench; an error if something could not be measured, or if Throughline broke its promise.
pub(crate) fn run(lab: &Lab, topology: &Topology, options: &Options) -> Result<()> {
    let mut results = Results::read(&options.out)?;
    let compared = chosen(&options.loads)?;
    for section in &options.only {
        let began = Instant::now();
        match section {
            Section::Continuity => {
                let ready = !options.ways.contains(&Way::Evpn) || evpn::is_installed();
                ensure!(ready, "FRR is missing: run scripts/bench-setup.sh, as `make bench` does");
                let plan = Plan {
                    lab,
                    topology,
                    ways: options.ways.clone(),
                    loads: compared.clone(),
                    rounds: options.rounds,
                    moves: options.moves,
                    ceiling: true,
                };
                results.continuity = Some(Part::new(began, plan.play()?)?);
            }
            Section::Load => {
                let plan = Plan {
                    lab,
                    topology,
                    ways: vec![Way::Throughline],
                    loads: HEAVY.to_vec(),
                    rounds: 1,
                    moves: options.rounds * options.moves,
                    ceiling: false,
                };
                results.load = Some(Part::new(began, plan.play()?)?);
            }
            Section::Budget => {
                results.budget = Some(Part::new(began, demo::budget(lab, topology, options.runs, BUDGET_PPS)?)?);
            }
            Section::Hostile => {
                results.hostile = Some(Part::new(began, hostile::play(lab, topology, options.garbage)?)?);
            }
            Section::Stream => {
                results.stream = Some(Part::new(began, cost::measure(cost::STREAM)?)?);
            }
            Section::Disks => {
                results.disks = Some(Part::new(began, disks::play(lab, topology, options.rounds)?)?);
            }
            Section::Cost => match cost::measure(cost::DATAPATH) {
                Ok(cost) => results.cost = Some(Part::new(began, cost)?),
                Err(error) => println!("cost and hold were not measured: {error:#}"),
            },
        }
        // After each part: what was measured stays, whatever happens to the next.
        results.write(&options.out)?;
    }
    println!("\n{}", report::of(&results));
    let mut broken: Vec<String> = [&results.continuity, &results.load].into_iter().flatten().flat_map(broken).collect();
    let flooded = results.hostile.iter().flat_map(|part| &part.result.flooded);
    broken.extend(flooded.flat_map(|window| faults(window, false)).map(|fault| format!("beside garbage: {fault}")));
    ensure!(broken.is_empty(), "the promise is broken:\n  {}", broken.join("\n  "));
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<Load>> {
    if let Some(unknown) = names.iter().find(|name| !COMPARED.iter().any(|load| load.name == **name)) {
        bail!("there is no load {unknown:?}; there are {}", COMPARED.map(|load| load.name).join(", "));
    }
    Ok(COMPARED.into_iter().filter(|load| names.is_empty() || names.iter().any(|name| name == load.name)).collect())
}

/// Where Throughline did what it promises not to do. What is lost, or refused by a full hold, under a load of which the guest
/// loses packets without a move, too, is no proof against it.
fn broken(part: &Part<Continuity>) -> Vec<String> {
    let mut broken = Vec::new();
    for row in part.result.rows.iter().filter(|row| row.way == Way::Throughline) {
        let noisy = row.still.iter().any(|window| window.lost_to_guest + window.lost_from_guest > 0);
        for window in &row.moves {
            broken.extend(faults(window, noisy).map(|fault| format!("{}: {fault}", row.load)));
        }
    }
    broken
}

/// What a window shows that must not be. `noisy`: the guest loses packets without a move, too.
fn faults(window: &Window, noisy: bool) -> impl Iterator<Item = String> {
    let lost = window.lost_to_guest + window.lost_from_guest;
    let refused = window.moved.map_or(0, |moved| moved.overflowed);
    let counts = [
        ("lost", if noisy { 0 } else { lost }),
        ("refused by a full hold", if noisy { 0 } else { refused }),
        ("duplicated", window.duplicated),
        ("reordered", window.reordered),
        ("connections reset", window.resets),
        ("TCP messages damaged", window.damaged),
        ("times memory was corrupted", u64::from(!window.memory_ok)),
    ];
    counts.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_chosen_by_name() {
        assert_eq!(chosen(&[]).unwrap().len(), COMPARED.len());
        assert_eq!(chosen(&["bulk".to_owned()]).unwrap(), [COMPARED[3]]);
        assert!(chosen(&["heavy".to_owned()]).is_err());
    }

    #[test]
    fn a_broken_promise_is_told_unless_the_guest_loses_by_itself() {
        let window = traffic::Window { memory_ok: true, ..Default::default() };
        let lossy = traffic::Window { lost_to_guest: 3, ..window.clone() };
        let part = |moves: &traffic::Window, still: &traffic::Window| {
            let row = continuity::Row {
                load: "fast".to_owned(),
                way: Way::Throughline,
                moves: vec![moves.clone()],
                still: vec![still.clone()],
            };
            Part::for_test(Continuity { rows: vec![row], ceiling: Vec::new() })
        };
        assert_eq!(broken(&part(&window, &window)), Vec::<String>::new());
        assert_eq!(broken(&part(&lossy, &window)), ["fast: 3 lost"]);
        assert_eq!(broken(&part(&lossy, &lossy)), Vec::<String>::new());
        let reordered = traffic::Window { reordered: 1, ..lossy.clone() };
        assert_eq!(broken(&part(&reordered, &lossy)), ["fast: 1 reordered"]);
    }
}
