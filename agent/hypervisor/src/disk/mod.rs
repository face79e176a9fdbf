//! A guest's disks, and how they move with it.
//!
//! A disk is a file of the host's agent; QEMU gets its descriptor and opens no path ([`arguments`]). While the guest moves, two jobs
//! copy it to a file at the destination, over two connections to one NBD export there ([`offer`], [`streams`]):
//!
//! * the *mirror* sends every write of the guest also to the destination, before the guest is told that it is done;
//! * the *rest* is what was there before, copied beside it. What is still to be copied a dirty bitmap says ([`bitmap`]); it
//!   outlives a job that breaks, and a second try copies no more than that.
//!
//! ```text
//!  source                                   destination (launched with `incoming`)
//!                                           offer_disk          -> invitation
//!  begin_bitmap (merge_chart)               admit_disk
//!  call_disk(invitation)
//!  mirror_disk
//!  disk_progress, until all are Mirrored
//!  ... memory ... event PreSwitchover
//!  end_mirrors                              close_disks
//!  continue_switchover                      event Completed
//!                                           cont                <- the commit
//! ```
//!
//! No QEMU writes a disk that the other may write too: the source's mirrors end while its guest stands, and the destination's
//! exports are closed before its guest runs.

pub(crate) mod arguments;
mod bitmap;
mod copy;
mod jobs;
mod nodes;
mod offer;
mod options;
mod streams;

use std::os::fd::OwnedFd;

use throughline_cutover::{DiskBus, DiskFormat, DiskName};

pub use self::{
    copy::Rest,
    jobs::{DiskProgress, DiskState},
    offer::AwaitedDisk,
    streams::{DiskInvitation, DiskStreams},
};
use crate::{Guest, HypervisorError};

/// A disk and the file it is kept in.
#[derive(Debug)]
pub struct DiskFd {
    /// Its name; both ends of a migration need the same disks in the same order.
    pub name: DiskName,
    /// How the file is written.
    pub format: DiskFormat,
    /// How the guest finds it.
    pub bus: DiskBus,
    /// The file, open for reading and writing. Nobody else may have it open: QEMU locks it.
    pub image: OwnedFd,
}

impl Guest {
    fn disk_error(&self, disk: &DiskName, why: impl Into<String>) -> HypervisorError {
        HypervisorError::Disk { guest: self.name().clone(), disk: disk.clone(), why: why.into() }
    }
}
