//! What disks cost a move: how fast they are copied, and how much longer their guest stands.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::cost::{self, Cost};
use crate::demo::{self, budget};
use crate::lab::Lab;
use crate::topology::Topology;

/// Moves of an idle guest with disks, and of one without, before the other's turn.
const MOVES: u32 = 8;

/// What came out.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Disks {
    /// Their copy, beside QEMU's own tool.
    pub(super) copy: Cost,
    /// An idle guest's pause without disks, and with two that are idle too.
    pub(super) without: Vec<budget::Row>,
    pub(super) with: Vec<budget::Row>,
}

/// Measures both; pauses in `rounds` turns.
pub(super) fn play(lab: &Lab, topology: &Topology, rounds: u32) -> Result<Disks> {
    let copy = cost::measure(cost::DISKS)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        without.extend(demo::pauses(lab, topology, MOVES, false)?);
        with.extend(demo::pauses(lab, topology, MOVES, true)?);
    }
    Ok(Disks { copy, without: budget::of_pauses(&without), with: budget::of_pauses(&with) })
}
