//! What the coordinator hears and what it orders.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{News, Phase, Role};
use crate::{Failure, Generation, HostName};

/// What happens to a migration, as the controller sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoordinatorEvent {
    /// It was admitted and recorded.
    Begin {
        /// Every host that has the guest's networks, with whether its agent is connected.
        hosts: BTreeMap<HostName, bool>,
    },
    /// Its host has the guest, which was being stopped to be moved, as stopped.
    GuestStopped,
    /// An end reports.
    News(Box<News>),
    /// A peer answers a `Rebind`.
    RebindAck {
        /// Which peer.
        host: HostName,
        /// Which of the guest's ports, by its place in the plan.
        port: usize,
        /// Applied and read back, or why not.
        outcome: Result<(), Failure>,
    },
    /// A host's agent is gone.
    HostLost(HostName),
    /// A host's agent is there, again or for the first time.
    HostBack(HostName),
    /// Somebody wants it undone.
    Cancel(Failure),
    /// An operator's word, in place of that of a destination that is gone for good.
    Resolve {
        /// The guest goes on at the source; otherwise it runs at the destination.
        guest_stays: bool,
    },
    /// The controller itself was away: nobody is connected, and no time has been lost by anyone.
    Restarted,
    /// Time has passed.
    Tick,
}

/// What the controller is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoordinatorEffect {
    /// Send the plan to the destination.
    Expect,
    /// Send the plan to the source.
    Start,
    /// Tell an end to undo its part, unless it has committed.
    Abort {
        /// Which end.
        role: Role,
        /// Why.
        failure: Failure,
    },
    /// Record, durably, that the destination owns the guest.
    RecordOwner {
        /// At this generation.
        generation: Generation,
    },
    /// Tell the source an operator's word.
    Resolve {
        /// The guest goes on there; otherwise it runs at the destination.
        guest_stays: bool,
    },
    /// Record, durably, that the source owns the guest, and that the destination is to end it if it ever has it.
    FenceDestination {
        /// The source's new generation.
        generation: Generation,
        /// The highest that the destination can have come to.
        ended: Generation,
    },
    /// Tell a peer that a port has moved. Nothing may delay it: the gate waits.
    Rebind {
        /// Which peer.
        host: HostName,
        /// Which of the guest's ports, by its place in the plan.
        port: usize,
        /// The peer's number in its markers.
        marker_index: u32,
    },
    /// Tell an end that every peer was told.
    Settle {
        /// Which end.
        role: Role,
    },
    /// Send both ends their desired state once more: they ignored it for the guest's ports while it moved.
    Refresh,
    /// The same for one end, which ended its part only after the migration was over.
    RefreshEnd {
        /// Which end.
        role: Role,
    },
    /// The guest runs at the destination.
    GuestRuns,
    /// Memory got on; nothing else changed.
    Progressed,
    /// Something worth the history.
    Event {
        /// Where the migration is after it.
        phase: Phase,
        /// For people, one line.
        message: String,
    },
    /// Over: moved.
    Done,
    /// Over: undone.
    Aborted {
        /// Why.
        failure: Failure,
    },
}

/// Names one `Rebind`, so that its answer finds its migration: the migration's id and the port's place in the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebindId {
    /// Id of the migration.
    pub migration: String,
    /// The port's place in the plan.
    pub port: usize,
}

/// Not a [`RebindId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a rebind id; echo the one that came with Rebind")]
pub struct InvalidRebindId;

impl fmt::Display for RebindId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.migration, self.port)
    }
}

impl FromStr for RebindId {
    type Err = InvalidRebindId;
    fn from_str(text: &str) -> Result<Self, InvalidRebindId> {
        let (migration, port) = text.split_once('/').ok_or(InvalidRebindId)?;
        Ok(Self { migration: migration.to_owned(), port: port.parse().map_err(|_| InvalidRebindId)? })
    }
}
