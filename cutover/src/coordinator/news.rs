//! What the ends tell of a migration, and what is known of it.

use serde::{Deserialize, Serialize};

use crate::{Failure, Generation, Progress};

/// Where a migration is. The order is the order of time; `Aborted` may follow anything before `Committed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted; the guest is asked to shut down, and nothing is done before it has.
    Stopping,
    /// Accepted; the two ends make ready.
    Preparing,
    /// Memory is copied while the guest runs.
    Precopy,
    /// Frames for the guest are held at the source.
    Armed,
    /// The guest is paused.
    Paused,
    /// The destination owns the guest.
    Committed,
    /// Peers were told; what is late comes in.
    Settling,
    /// Everything has moved.
    Done,
    /// Undone before commit.
    Aborted,
}

impl Phase {
    /// Nothing can follow.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }
}

/// Which end of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Gives the guest up.
    Source,
    /// Takes it.
    Destination,
}

impl Role {
    /// The other end.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// What an end reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Destination: plan received, the source may call.
    Expecting,
    /// Source: memory is being copied.
    Precopy,
    /// Source: how memory is getting on.
    Progress,
    /// Source: memory does not converge, and something is done about it.
    Stalled,
    /// Source: frames are held.
    Armed,
    /// Source: the guest is paused.
    Paused,
    /// Destination: owns the guest, durably.
    Committed,
    /// Destination: the guest runs.
    Running,
    /// Source: its line is empty.
    LineEmpty,
    /// Destination: the gate is open.
    GateOpen,
    /// Either: nothing of the move is left here.
    Settled,
    /// Either: undone before commit.
    Aborted,
}

/// One report of one end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// Who speaks.
    pub role: Role,
    /// What happened.
    pub step: Step,
    /// With `Progress`.
    pub progress: Option<Progress>,
    /// With `Aborted`: why. With `Stalled`: the figures, and what is done. With `Settled`: what could not be kept, if anything.
    pub failure: Option<Failure>,
    /// What this end has counted so far.
    pub report: CutoverReport,
    /// With `Committed`: the new generation.
    pub generation: Option<Generation>,
}

/// What the cutover did, as the agents counted it. Times are nanoseconds since 1970 on the host that saw them; 0: did not happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CutoverReport {
    /// Frames began to be held (source).
    pub armed_at_ns: u64,
    /// QEMU's STOP (source).
    pub stopped_at_ns: u64,
    /// Ownership durably recorded (destination).
    pub committed_at_ns: u64,
    /// `cont` answered (destination).
    pub running_at_ns: u64,
    /// The gate opened for good (destination).
    pub gate_open_at_ns: u64,
    /// Nothing left in line (source).
    pub line_empty_at_ns: u64,
    /// Settled (controller).
    pub settled_at_ns: u64,
    /// Frames that waited at the source.
    pub held: u64,
    /// Frames carried.
    pub carried: u64,
    /// Frames that waited at the gate.
    pub gated: u64,
    /// Frames lost to a full hold, each end's own count.
    pub overflowed: u64,
    /// Peers whose markers were in time, for each port.
    pub markers_in: u32,
    /// Peers that sent and whose markers were late, for each port.
    pub markers_missed: u32,
    /// Peers that sent nothing and whose markers were late, for each port.
    pub markers_cold: u32,
    /// Frames that came to the landing and were neither the source's nor a peer's markers (destination).
    pub refused: u64,
    /// QEMU's own figure for the pause, milliseconds.
    pub qemu_downtime_ms: u64,
    /// Bytes of memory and device state sent.
    pub memory_bytes: u64,
    /// QEMU waited for the word to go on (source).
    pub pre_switchover_at_ns: u64,
    /// It was given (source).
    pub continued_at_ns: u64,
    /// QEMU had everything (destination).
    pub memory_in_at_ns: u64,
    /// Nothing was missing any more: the commit was handed to the disk (destination).
    pub decided_at_ns: u64,
    /// `cont` was sent (destination).
    pub cont_at_ns: u64,
}

impl CutoverReport {
    /// Takes over a later report of the same end: every field only grows.
    pub(super) fn advance(&mut self, later: &Self) {
        *self = self.with(later, u64::max);
    }

    /// What both ends counted, taken together: each field is one end's own, but both may have lost frames.
    #[must_use]
    pub(super) fn joined(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    fn with(&self, other: &Self, overflows: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            armed_at_ns: self.armed_at_ns.max(other.armed_at_ns),
            stopped_at_ns: self.stopped_at_ns.max(other.stopped_at_ns),
            committed_at_ns: self.committed_at_ns.max(other.committed_at_ns),
            running_at_ns: self.running_at_ns.max(other.running_at_ns),
            gate_open_at_ns: self.gate_open_at_ns.max(other.gate_open_at_ns),
            line_empty_at_ns: self.line_empty_at_ns.max(other.line_empty_at_ns),
            settled_at_ns: self.settled_at_ns.max(other.settled_at_ns),
            held: self.held.max(other.held),
            carried: self.carried.max(other.carried),
            gated: self.gated.max(other.gated),
            overflowed: overflows(self.overflowed, other.overflowed),
            markers_in: self.markers_in.max(other.markers_in),
            markers_missed: self.markers_missed.max(other.markers_missed),
            markers_cold: self.markers_cold.max(other.markers_cold),
            refused: self.refused.max(other.refused),
            qemu_downtime_ms: self.qemu_downtime_ms.max(other.qemu_downtime_ms),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            pre_switchover_at_ns: self.pre_switchover_at_ns.max(other.pre_switchover_at_ns),
            continued_at_ns: self.continued_at_ns.max(other.continued_at_ns),
            memory_in_at_ns: self.memory_in_at_ns.max(other.memory_in_at_ns),
            decided_at_ns: self.decided_at_ns.max(other.decided_at_ns),
            cont_at_ns: self.cont_at_ns.max(other.cont_at_ns),
        }
    }
}
