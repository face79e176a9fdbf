//! A disk that is written all the time, every block of which tells by itself what it is and when it was written.
//!
//! Writes are numbered, and the number alone says which block is written: each pass over the disk writes every block once, in an
//! order of its own. A block also says up to which number writes were known to be *acknowledged* (flushed) when it was written. So
//! the blocks of a disk convict it together: whatever was acknowledged must be there, or something newer in its place. That is checked
//! all the time in the guest, which remembers what was acknowledged ([`writer`]), and of a disk's file with nothing but the file
//! ([`check`]).

pub mod block;
pub mod check;
pub mod find;
pub mod order;
pub mod writer;

use serde::{Deserialize, Serialize};

/// How a disk is doing, since its writer was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The disk, as it was named.
    pub name: String,
    /// Its length, in blocks of 4 KiB.
    pub blocks: u64,
    /// Blocks written.
    pub written: u64,
    /// Number of the last write that is known to be flushed, and all before it.
    pub acknowledged: u64,
    /// Blocks read back and compared. From any moment on, among twice as many as the disk has are all of them.
    pub verified: u64,
    /// Blocks that had something that was never written there: torn, flipped, another block's. Anything but 0: the disk is corrupted.
    pub wrong: u64,
    /// Blocks that had something older than was acknowledged. Anything but 0: a write was lost.
    pub missing: u64,
    /// Reads, writes and flushes that failed; each is tried again.
    pub failed: u64,
    /// Longest that a write or a flush took, or the one under way has taken so far, milliseconds.
    pub slowest_write_ms: u64,
}
