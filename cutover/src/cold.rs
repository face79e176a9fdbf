//! The move of a guest that is stopped: its disks are copied and compared, then it changes hands as a running one does, with the same
//! words: given up, durably, told, committed, durably. There is no memory, no pause, and no frame to carry.
//!
//! ```text
//! source       Preparing ─ peer prepared ─► Copying ─ all are the same ─► GivingUp ─ on disk ─► Told ─ committed ─► Settling
//!                  │                           │                              │                   │ lost, late          │ settle
//!                  └── failed, cancelled, late ┴──────────► Undoing ─► Ended ◄┘                   ▼                     ▼
//!                                                              ▲────── declined ────────── Unresolved ─ committed ─► Removing ─► Ended
//!
//! destination  Expecting ─ called ─► Preparing ─ ready ─► Receiving ─ disks in, given up ─► Committing ─ on disk ─► Open ─ settle ─► Ended
//!                  └────────────────────┴────────┬───────────┘                                                  (closing)
//!                                             Declining ─ on disk ─► Undoing ─► Ended
//! ```
//!
//! The source's copy stays until the destination has committed what was compared.

mod destination;
mod source;
#[cfg(test)]
mod tests;

pub use destination::ColdDestination;
pub use source::ColdSource;
