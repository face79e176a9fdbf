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
//!  disk_progress, until all are Mirrored    settle_disks, again and again
//!  ... memory ... event PreSwitchover
//!  end_mirrors                              close_disks
//!  continue_switchover                      event Completed
//!                                           cont                <- the commit
//! ```
//!
//! No QEMU writes a disk that the other may write too: the source's mirrors end while its guest stands, and the destination's
//! exports are closed before its guest runs.
//!
//! A guest that stays may be sent elsewhere too, again and again: see [`replica`].

pub(crate) mod arguments;
mod bitmap;
mod copy;
mod ending;
mod jobs;
mod nodes;
mod offer;
mod options;
mod replica;
mod streams;

use std::os::fd::{OwnedFd, RawFd};

use qapi::qmp;
use throughline_cutover::{DiskBus, DiskFormat, DiskName};

pub use self::{
    copy::Rest,
    jobs::{DiskProgress, DiskState},
    offer::AwaitedDisk,
    replica::{
        AwaitedReplica, InvalidReplicaName, KeeperId, PointDisk, PointInstant, PointName, PointProgress, PointState,
        ReplicaInvitation, ReplicaName, ReplicaRecord, ReplicaStream, RestorePoint,
    },
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
    /// The file, or block device, open for reading and writing. QEMU locks it while its guest may run, and nobody else may have it open
    /// to write then.
    pub image: OwnedFd,
    /// What the disk is where nothing was written to the file, a qcow2 then. `None`: the file is all there is.
    pub below: Option<Below>,
}

/// What a disk is where nothing was written to it; nothing is written there.
#[derive(Debug)]
pub enum Below {
    /// A qcow2 over nothing, open to read; others may read it, too.
    Image(OwnedFd),
    /// A connection to an NBD server that waits for its client's first word.
    Connection(OwnedFd),
}

impl Guest {
    /// The guest's disks, by the descriptors its QEMU keeps: cheaper to ask for than its nodes.
    async fn disks(&self) -> Result<Vec<DiskName>, HypervisorError> {
        let kept = self.execute(qmp::query_fdsets {}).await?;
        Ok(disk_descriptors(&kept).map(|(disk, _)| disk).collect())
    }

    /// The numbers QEMU has their files by.
    async fn disk_descriptors(&self) -> Result<Vec<RawFd>, HypervisorError> {
        let kept = self.execute(qmp::query_fdsets {}).await?;
        Ok(disk_descriptors(&kept).map(|(_, number)| number).collect())
    }

    fn disk_error(&self, disk: &DiskName, why: impl Into<String>) -> HypervisorError {
        HypervisorError::Disk { guest: self.name().clone(), disk: disk.clone(), why: why.into() }
    }
}

fn disk_descriptors(sets: &[qmp::FdsetInfo]) -> impl Iterator<Item = (DiskName, RawFd)> {
    let kept = sets.iter().flat_map(|set| &set.fds);
    kept.filter_map(|fd| Some((nodes::disk_of_descriptor(fd.opaque.as_deref()?)?, RawFd::try_from(fd.fd).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_among_what_else_is_kept() {
        let sets: Vec<qmp::FdsetInfo> = serde_json::from_str(
            r#"[{"fds": [{"fd": 15, "opaque": "tap:17"}], "fdset-id": 3}, {"fds": [{"fd": 9}], "fdset-id": 2},
                {"fds": [{"fd": 12, "opaque": "disk:data"}], "fdset-id": 2001},
                {"fds": [{"fd": 11, "opaque": "disk:root"}, {"fd": 8, "opaque": "disk:No"}], "fdset-id": 2000}]"#,
        )
        .unwrap();
        let found: Vec<_> = disk_descriptors(&sets).collect();
        assert_eq!(found, [("data".parse().unwrap(), 12), ("root".parse().unwrap(), 11)]);
    }
}
