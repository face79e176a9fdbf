//! The two streams of one disk, at the source. They are always sealed.

use std::{
    io,
    net::{Ipv4Addr, Shutdown},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use qapi::qmp;
use throughline_cutover::DiskName;

use super::options;
use crate::{Guest, HypervisorError, Invitation, Sealer};

/// How long QEMU may take to find the disk at the other end of a stream. Its main loop, which the guest's network and disks need,
/// waits for that.
const ATTACH_DEADLINE: Duration = Duration::from_secs(2);

/// Where a source's disk may be sent, and how.
#[derive(Debug, Clone)]
pub struct DiskInvitation {
    /// The disk.
    pub disk: DiskName,
    /// Where its mirror calls.
    pub mirror: Invitation,
    /// Where the rest of it does.
    pub rest: Invitation,
}

/// A disk's streams, open, for [`Guest::mirror_disk`]. Dropped, they end.
#[derive(Debug)]
pub struct DiskStreams {
    pub(super) mirror: OwnedFd,
    pub(super) rest: OwnedFd,
}

impl Guest {
    /// Source: calls the destination from this host's address `from`.
    ///
    /// # Errors
    /// [`HypervisorError::Stream`] if nobody is there, it is not who made the invitation, or it wants a disk in the clear.
    pub async fn call_disk(
        &self,
        invitation: &DiskInvitation,
        from: Ipv4Addr,
        sealer: &Sealer,
    ) -> Result<DiskStreams, HypervisorError> {
        let DiskInvitation { mirror, rest, .. } = invitation;
        let (mirror, rest) =
            tokio::try_join!(mirror.accept_disk(self, from, sealer), rest.accept_disk(self, from, sealer))?;
        Ok(DiskStreams { mirror, rest })
    }

    /// Makes `node` of a stream, whose other end must be the disk's export.
    pub(super) async fn attach(&self, node: &str, disk: &DiskName, stream: OwnedFd) -> Result<(), HypervisorError> {
        let unusable =
            |source| HypervisorError::Stream { guest: self.name().clone(), what: "of a disk is torn", source };
        let fuse = Fuse::of(&stream).map_err(unusable)?;
        let fdname = node.to_owned();
        self.execute_with(qmp::getfd { fdname: fdname.clone() }, stream).await?;
        let attached = self.execute_within(options::connection(node, disk), ATTACH_DEADLINE).await;
        if attached.is_ok() {
            fuse.spare();
        } else {
            drop(fuse);
            // It may have been taken all the same.
            let _closed = self.execute(qmp::closefd { fdname }).await;
        }
        attached.map(drop)
    }
}

/// Cuts a stream that QEMU is about to wait for, unless it is spared: whoever is at the other end may never answer, and the caller
/// may go away.
struct Fuse(Option<UnixStream>);

impl Fuse {
    fn of(stream: &OwnedFd) -> io::Result<Self> {
        stream.try_clone().map(|stream| Self(Some(stream.into())))
    }

    fn spare(mut self) {
        self.0 = None;
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            // One that is closed already needs no cut.
            let _cut = stream.shutdown(Shutdown::Both);
        }
    }
}
