//! Room for a disk, looked at before it is made.

use std::{fs::Metadata, os::unix::fs::MetadataExt as _, path::Path};

use nix::sys::statvfs::statvfs;
use throughline_cutover::{Disk, GuestName};

use super::DiskError;

/// What a new disk leaves free to others, bytes: the agent's journal may be on the same file system.
const RESERVE: u64 = 64 << 20;
/// Bytes of a block that `st_blocks` counts, whatever the file system's own are.
pub(super) const BLOCK: u64 = 512;

/// Bytes that a file takes of its file system.
pub(super) fn allocated(metadata: &Metadata) -> u64 {
    metadata.blocks() * BLOCK
}

/// That there is room for `taken` bytes, and that others are left some. A disk that is blank takes next to nothing and grows as its
/// guest writes; one that can grow no more stops its guest.
pub(super) fn check(guest: &GuestName, disk: &Disk, path: &Path, taken: u64) -> Result<(), DiskError> {
    let system = statvfs(path).map_err(DiskError::io("look for room in", path))?;
    let have = system.blocks_available() * system.fragment_size();
    let need = taken.saturating_add(RESERVE);
    if need <= have {
        return Ok(());
    }
    Err(DiskError::Space { guest: guest.clone(), disk: disk.name.clone(), path: path.to_owned(), need, have })
}
