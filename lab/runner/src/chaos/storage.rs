//! A small file system of its own for a hypervisor's disks, so that it can be full and the machine's is not.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;

use crate::lab::Lab;

/// Room for the guest's disks twice over, and for what an agent leaves free to others.
const OPTIONS: &str = "size=160m,mode=0700";
/// What takes the rest of the room; no guest has such a name.
const FILLER: &str = ".filler";
/// The last of it is taken in steps of this: others write meanwhile.
const STEP: usize = 4096;
const LAST: u64 = 1 << 20;

/// Where a node's agent keeps its guests' disks.
pub(super) fn directory(lab: &Lab, node: &str) -> PathBuf {
    lab.node_state(node).join("state/disks")
}

/// Has a node's disks be on a file system of their own. Before its agent is started; it goes with the lab.
pub(super) fn mount_on(lab: &Lab, node: &str) -> Result<()> {
    let directory = directory(lab, node);
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    mount(Some("tmpfs"), &directory, Some("tmpfs"), MsFlags::empty(), Some(OPTIONS))
        .with_context(|| format!("cannot mount a small file system on {}", directory.display()))
}

/// Takes every block that is left on it.
pub(super) fn fill(lab: &Lab, node: &str) -> Result<()> {
    let path = directory(lab, node).join(FILLER);
    let mut filler = OpenOptions::new().create(true).append(true).open(&path)?;
    let system = statvfs(&path)?;
    let most = (system.blocks_available() * system.fragment_size()).saturating_sub(LAST);
    match fallocate(&filler, FallocateFlags::empty(), 0, most.cast_signed()) {
        Ok(()) | Err(Errno::ENOSPC | Errno::EINVAL) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot make {} large", path.display())),
    }
    loop {
        match filler.write_all(&[0; STEP]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot fill {}", path.display())),
        }
    }
}

/// Gives it all back.
pub(super) fn make_room(lab: &Lab, node: &str) -> Result<()> {
    let path = directory(lab, node).join(FILLER);
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}
