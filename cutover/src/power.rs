//! Whether a guest is to run.

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
