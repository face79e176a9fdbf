//! Whether a guest is to run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is wanted of a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Power {
    /// It runs. So are guests on record from before they could be stopped.
    #[default]
    On,
    /// It does not; its host keeps its disks and its memory's room for it.
    Off(Stop),
}

/// How a guest is stopped: it is asked to shut down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stop {
    /// Its power is cut if it still runs so long after it was asked, milliseconds; at 0 it is not asked. `None`: it is waited for.
    pub cut_after_ms: Option<u32>,
}

/// A guest that runs is to be stopped, moved stopped, and started where it has come to: for one that cannot move as it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StopFirst {
    /// How long it may take to shut down, milliseconds: for the controller from the acceptance until the host has the guest as stopped;
    /// for a host that is to cut its power, from when it heard of that.
    pub deadline_ms: u32,
    /// What becomes of it if it runs on past that.
    pub otherwise: RunsOn,
}

/// What becomes of a guest that was asked to shut down, to be moved, and did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RunsOn {
    /// It stays where it is, and the migration is undone.
    Stay,
    /// Its power is cut, and it moves.
    Cut,
}

impl StopFirst {
    /// How long a host may take to cut a guest's power and to say so, milliseconds.
    const CUT_GRACE_MS: u32 = 30_000;

    /// What its host is told.
    pub fn stop(self) -> Stop {
        Stop { cut_after_ms: (self.otherwise == RunsOn::Cut).then_some(self.deadline_ms) }
    }

    /// How long it is waited for, from the acceptance.
    pub fn patience(self) -> Duration {
        let grace = if self.otherwise == RunsOn::Cut { Self::CUT_GRACE_MS } else { 0 };
        Duration::from_millis(u64::from(self.deadline_ms) + u64::from(grace))
    }
}
