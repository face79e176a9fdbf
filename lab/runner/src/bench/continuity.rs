//! Continuity: what the network notices of a move, in each way, under each load, in turn: a b c d a b c d …

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use throughline_probe::load::Report;

use super::load::{Flood, Load};
use super::ours::Ours;
use super::today::Today;
use super::traffic::{ANSWER, Traffic, Window, start_flood};
use super::way::{Ground, Way};
use crate::demo::stage::Stage;
use crate::lab::Lab;
use crate::signals;
use crate::teardown::Guard;
use crate::topology::{Role, Topology};

/// Rates at which the guest is tried without a move, packets a second.
const RATES: [u32; 10] = [2000, 5000, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000, 60_000, 80_000];

/// How long each.
const TRIED: std::time::Duration = std::time::Duration::from_secs(2);

/// All that was seen.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Continuity {
    /// A row for each load and way.
    pub(super) rows: Vec<Row>,
    /// What the guest takes without a move, on a plain bridge.
    pub(super) ceiling: Vec<Tried>,
}

/// One way under one load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    /// The load's name.
    pub(super) load: String,
    /// The way.
    pub(super) way: Way,
    /// One entry a move.
    pub(super) moves: Vec<Window>,
    /// The same without a move: the machine's own noise.
    pub(super) still: Vec<Window>,
}

/// A rate the guest was tried at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tried {
    /// Packets a second.
    pub(super) pps: u32,
    /// Packets sent.
    pub(super) sent: u64,
    /// Of them, not arrived.
    pub(super) lost: u64,
}

/// How it is played.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) lab: &'a Lab,
    pub(super) topology: &'a Topology,
    pub(super) ways: Vec<Way>,
    pub(super) loads: Vec<Load>,
    pub(super) rounds: u32,
    /// Moves under each load in each round.
    pub(super) moves: u32,
    /// Whether to find out what the guest takes.
    pub(super) ceiling: bool,
}

impl Plan<'_> {
    /// Plays all rounds.
    pub(super) fn play(&self) -> Result<Continuity> {
        let row = |load: &Load, way: &Way| Row {
            load: load.name.to_owned(),
            way: *way,
            moves: Vec::new(),
            still: Vec::new(),
        };
        let rows = self.loads.iter().flat_map(|load| self.ways.iter().map(move |way| row(load, way)));
        let mut seen = Continuity { rows: rows.collect(), ceiling: Vec::new() };
        for round in 0..self.rounds {
            for &way in &self.ways {
                println!("round {} of {}: {}", round + 1, self.rounds, way.title());
                let ceiling = self.ceiling && round == 0 && way == self.ways[0];
                self.visit(way, ceiling, &mut seen).with_context(|| way.title())?;
            }
        }
        Ok(seen)
    }

    /// One way, from its hosts' coming up to their going down.
    fn visit(&self, way: Way, ceiling: bool, seen: &mut Continuity) -> Result<()> {
        if way == Way::Throughline {
            return Stage::play(self.lab, self.topology, false, |stage| {
                self.under_all_loads(way, &mut Ours::up(stage)?, ceiling, seen)
            });
        }
        let _lock = self.lab.lock()?;
        let guard = Guard::new(self.lab.clone());
        let mut today = Today::up(self.lab, self.topology, way)?;
        self.under_all_loads(way, &mut today, ceiling, seen).inspect_err(|_| today.show_logs())?;
        drop(today);
        guard.finish()
    }

    fn under_all_loads(&self, way: Way, ground: &mut impl Ground, ceiling: bool, seen: &mut Continuity) -> Result<()> {
        let names = |role| self.topology.with_role(role).map(|node| node.name.as_str()).collect::<Vec<_>>();
        let (hypervisors, peers) = (names(Role::Hypervisor), names(Role::Peer));
        let needed = self.loads.iter().flat_map(|load| load.floods).map(|flood| flood.peer + 1).max().unwrap_or(1);
        ensure!(peers.len() >= needed, "the bench needs {needed} peers, {} has {}", self.lab.name(), peers.len());
        let mut at = 0;
        for load in &self.loads {
            let mut traffic = Traffic::start(self.lab, &peers, load)?;
            if ceiling && load == &self.loads[0] {
                seen.ceiling = find_ceiling(self.lab, &peers)?;
            }
            let row = seen.rows.iter_mut().find(|row| row.load == load.name && row.way == way);
            let row = row.context("every load and way has a row")?;
            row.still.push(traffic.still()?);
            for _ in 0..self.moves {
                let (from, to) = (hypervisors[at % 2], hypervisors[(at + 1) % 2]);
                let window = traffic.window(|| ground.move_guest(from, to).map(Some))?;
                println!(
                    "  {}, {from} → {to}: {} of {} packets to the guest lost, pause {:.1} ms, outage {:.1} ms from {:+.1} ms",
                    load.name,
                    window.lost_to_guest,
                    window.sent_to_guest,
                    window.pause_ms,
                    window.outage_ms,
                    window.outage_began_ms
                );
                row.moves.push(window);
                at += 1;
            }
        }
        Ok(())
    }
}

/// Tries rates until twice in a row more than a twentieth is lost.
fn find_ceiling(lab: &Lab, peers: &[&str]) -> Result<Vec<Tried>> {
    let (mut tried, mut too_much) = (Vec::new(), 0);
    for pps in RATES {
        let mut flood = start_flood(lab, peers, Flood { peer: 0, pps, flows: 1, bulk: false })?;
        signals::sleep(TRIED)?;
        let Report { sent, lost, .. } = flood.ask("finish", ANSWER)?;
        println!("  {pps} packets/s, no move: {lost} of {sent} lost");
        tried.push(Tried { pps, sent, lost });
        too_much = if lost * 20 > sent { too_much + 1 } else { 0 };
        if too_much == 2 {
            break;
        }
    }
    Ok(tried)
}
