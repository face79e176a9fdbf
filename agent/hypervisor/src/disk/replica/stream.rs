//! The one stream a disk of a replica goes over, at both ends. It is always sealed.

use std::{net::Ipv4Addr, os::fd::OwnedFd};

use throughline_cutover::DiskName;

use crate::{Awaited, Guest, HypervisorError, Invitation, Sealer};

/// Where a disk's part of a point may be sent, and how.
#[derive(Debug, Clone)]
pub struct ReplicaInvitation {
    /// The disk.
    pub disk: DiskName,
    /// Where it calls.
    pub stream: Invitation,
}

/// A disk's stream, open, for [`Guest::send_point`]. Dropped, it ends.
#[derive(Debug)]
pub struct ReplicaStream(pub(super) OwnedFd);

/// A kept disk whose stream has not been opened yet. Nobody can once it is dropped.
#[derive(Debug)]
pub struct AwaitedReplica {
    disk: DiskName,
    stream: Awaited,
}

impl Guest {
    /// Source: calls the replica's host from this host's address `from`.
    ///
    /// # Errors
    /// [`HypervisorError::Stream`] if nobody is there, it is not who made the invitation, or it wants a disk in the clear.
    pub async fn call_replica(
        &self,
        invitation: &ReplicaInvitation,
        from: Ipv4Addr,
        sealer: &Sealer,
    ) -> Result<ReplicaStream, HypervisorError> {
        invitation.stream.accept_disk(self, from, sealer).await.map(ReplicaStream)
    }

    /// Keeper: has QEMU take what comes for a disk, and opens a door on `address` for the stream of `source`. The invitation is the
    /// source's, see [`Guest::call_replica`]; [`Guest::admit_replica`] is next. To be called for one disk after the other.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if the keeper has no such disk, or it is offered already; [`HypervisorError::Stream`] if
    /// nobody can listen on that address. The disk then may be offered all the same: [`Guest::close_disks`] after an error.
    pub async fn offer_replica(
        &self,
        disk: &DiskName,
        address: Ipv4Addr,
        source: Ipv4Addr,
        sealer: &Sealer,
    ) -> Result<(AwaitedReplica, ReplicaInvitation), HypervisorError> {
        self.export(disk).await?;
        let (stream, invitation) = Awaited::for_disk(address, source, sealer).map_err(|source| {
            HypervisorError::Stream { guest: self.name().clone(), what: "of a replica has no door", source }
        })?;
        let invitation = ReplicaInvitation { disk: disk.clone(), stream: invitation };
        Ok((AwaitedReplica { disk: disk.clone(), stream }, invitation))
    }

    /// Keeper: waits for the source's call, and connects it to the disk. Dropped, it closes the door.
    ///
    /// # Errors
    /// [`HypervisorError::Stream`] if the stream cannot be sealed, or QEMU does not take it.
    pub async fn admit_replica(&self, awaited: AwaitedReplica) -> Result<(), HypervisorError> {
        let AwaitedReplica { disk, stream } = awaited;
        stream.arrive_at(self, || self.connect_disks()).await?;
        tracing::debug!(keeper = %self.name(), %disk, "a replica's stream is open");
        Ok(())
    }
}
