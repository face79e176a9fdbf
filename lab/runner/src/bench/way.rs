//! The ways of moving a guest's network that are compared.

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A way of moving the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// Bridges and VXLAN that flood and learn, QEMU's own RARP: what libvirt gives.
    Learning,
    /// Nothing is learned; a controller writes all entries, and writes them anew when it hears of RESUME.
    Rewriting,
    /// BGP EVPN.
    Evpn,
    /// Ours.
    Throughline,
}

impl Way {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: [Self; 4] = [Self::Learning, Self::Rewriting, Self::Evpn, Self::Throughline];

    /// What it is called in the report.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Learning => "(a) bridge, VXLAN flood-and-learn, QEMU's RARP",
            Self::Rewriting => "(b) FDB rewritten by a controller on RESUME",
            Self::Evpn => "(c) BGP EVPN (FRR)",
            Self::Throughline => "(d) Throughline",
        }
    }
}

/// Hosts with a guest that can be moved.
pub(super) trait Ground {
    /// Moves the guest; returns when it runs at its new host and nothing of the move is left to do.
    fn move_guest(&mut self, from: &str, to: &str) -> Result<Moved>;
}

/// A move as those who made it saw it. Times are nanoseconds since 1970.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// The guest stood still at its old host.
    pub(crate) stopped_at_ns: u64,
    /// It ran at its new host.
    pub(crate) running_at_ns: u64,
    /// Frames that waited at the source.
    pub(crate) held: u64,
    /// Frames the source passed on.
    pub(crate) carried: u64,
    /// Frames that came the new way too early and waited.
    pub(crate) gated: u64,
    /// Frames a full hold refused.
    pub(crate) overflowed: u64,
}

impl Moved {
    /// How long the guest stood still, milliseconds.
    pub(super) fn pause_ms(&self) -> f64 {
        self.running_at_ns.saturating_sub(self.stopped_at_ns) as f64 / 1e6
    }
}
