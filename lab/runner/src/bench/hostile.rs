//! Moves beside garbage: what a flood at the tunnels of a move's destination does to it.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::garbage::{Aim, Garbage};
use super::load::COMPARED;
use super::ours::Ours;
use super::traffic::{Traffic, Window};
use super::way::Ground as _;
use crate::demo::stage::Stage;
use crate::lab::Lab;
use crate::topology::{Role, Topology};

/// Garbage a second. What sends it and what drops it share the machine's processors with the guest.
const PPS: u32 = 20_000;

/// Moves with and without, in turn.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Hostile {
    /// Frames of garbage sent in all.
    pub(super) garbage: u64,
    /// Moves beside it.
    pub(super) flooded: Vec<Window>,
    /// Moves without.
    pub(super) quiet: Vec<Window>,
}

/// Moves the guest in pairs, until that much garbage has been sent.
pub(super) fn play(lab: &Lab, topology: &Topology, garbage: u64) -> Result<Hostile> {
    Stage::play(lab, topology, false, |stage| moves(stage, topology, garbage))
}

fn moves(stage: &Stage, topology: &Topology, garbage: u64) -> Result<Hostile> {
    // The first load of the comparison: 2,000 packets a second each way.
    let load = &COMPARED[0];
    let intruder = stage.peers.last().context("a peer to send garbage from")?;
    let mut ours = Ours::up(stage)?;
    let mut traffic = Traffic::start(stage.lab, &stage.peers, load)?;
    let mut seen = Hostile::default();
    let mut at = 0;
    while seen.garbage < garbage {
        // Each way with and without it, turn and turn about.
        for flooded in if at / 2 % 2 == 0 { [true, false] } else { [false, true] } {
            let (from, to) = stage.way(at);
            let aim = Aim { to: vtep(topology, to)?, claimed: vtep(topology, from)? };
            let sending = flooded.then(|| Garbage::start(&stage.lab.namespace(intruder), aim, PPS)).transpose()?;
            let window = traffic.window(|| ours.move_guest(from, to).map(Some));
            let sent = sending.map_or(Ok(0), Garbage::stop)?;
            let window = window?;
            println!(
                "  {from} → {to} beside {sent} frames of garbage: {} of {} packets to the guest lost, pause {:.1} ms, outage \
                 {:.1} ms",
                window.lost_to_guest, window.sent_to_guest, window.pause_ms, window.outage_ms,
            );
            seen.garbage += sent;
            if flooded {
                seen.flooded.push(window)
            } else {
                seen.quiet.push(window)
            }
            at += 1;
        }
        ensure!(seen.garbage > 0, "no garbage was sent");
    }
    Ok(seen)
}

fn vtep(topology: &Topology, host: &str) -> Result<std::net::Ipv4Addr> {
    let node = topology.with_role(Role::Hypervisor).find(|node| node.name == host).context("a hypervisor")?;
    topology.vtep(node)?.parse().context("--vtep is no address")
}
