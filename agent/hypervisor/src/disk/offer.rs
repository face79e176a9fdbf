//! The destination's end: disks that a source may write, until they are closed.

use std::{fs::File, io, net::Ipv4Addr, os::fd::AsRawFd as _, time::Duration};

use futures::future::join_all;
use qapi::{Command as _, qmp};
use throughline_cutover::DiskName;
use tokio::{
    net::UnixStream,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{nodes, options, streams::DiskInvitation};
use crate::{Awaited, Guest, HypervisorError, RunDir, Sealer, command_line::own};

/// How long QEMU may take to close exports nobody writes to.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// How often it is looked meanwhile; a guest may stand.
const CLOSE_POLL: Duration = Duration::from_millis(1);

/// A disk whose streams have not been opened yet. Nobody can once it is dropped.
#[derive(Debug)]
pub struct AwaitedDisk {
    disk: DiskName,
    mirror: Awaited,
    rest: Awaited,
}

impl Guest {
    /// Destination, launched with `incoming`: has QEMU take what comes for a disk, and opens two doors on `address` for the
    /// streams of `source`. The invitation is the source's, see [`Guest::call_disk`]; [`Guest::admit_disk`] is next. To be
    /// called for one disk after the other.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if the guest has no such disk, or it is offered already; [`HypervisorError::Stream`] if
    /// nobody can listen on that address. The disk then may be offered all the same: [`Guest::close_disks`] after an error.
    pub async fn offer_disk(
        &self,
        disk: &DiskName,
        address: Ipv4Addr,
        source: Ipv4Addr,
        sealer: &Sealer,
    ) -> Result<(AwaitedDisk, DiskInvitation), HypervisorError> {
        self.export(disk).await?;
        let door = || Awaited::for_disk(address, source, sealer);
        let failed =
            |source| HypervisorError::Stream { guest: self.name().clone(), what: "of a disk has no door", source };
        let (mirror, to_mirror) = door().map_err(failed)?;
        let (rest, to_rest) = door().map_err(failed)?;
        let invitation = DiskInvitation { disk: disk.clone(), mirror: to_mirror, rest: to_rest };
        Ok((AwaitedDisk { disk: disk.clone(), mirror, rest }, invitation))
    }

    /// Lets who is connected to the server, which runs then, write the disk.
    pub(super) async fn export(&self, disk: &DiskName) -> Result<(), HypervisorError> {
        // It may run since an earlier try; that it does not is the export's refusal.
        self.allow_refusal(options::server(RunDir::DISKS_SOCKET)).await?;
        self.execute(options::export(disk)).await.map(drop)
    }

    /// Destination: waits for the source's two calls, and connects them to the disk. Dropped, it closes the doors.
    ///
    /// # Errors
    /// [`HypervisorError::Stream`] if a stream cannot be sealed, or QEMU does not take it.
    pub async fn admit_disk(&self, awaited: AwaitedDisk) -> Result<(), HypervisorError> {
        let AwaitedDisk { disk, mirror, rest } = awaited;
        tokio::try_join!(
            mirror.arrive_at(self, || self.connect_disks()),
            rest.arrive_at(self, || self.connect_disks())
        )?;
        tracing::debug!(guest = %self.name(), %disk, "a disk's streams are open");
        Ok(())
    }

    /// Destination: has the host write to its disk what has come of the guest's disks so far. It takes as long as the host's disk
    /// does, and disturbs nobody. A mirror's end, for which the guest stands, waits for just that: whoever has this done again and
    /// again until then leaves it little (after 256 MiB here 200 ms, after none 1 ms).
    ///
    /// # Errors
    /// [`HypervisorError::Process`] if a disk cannot be written: what came for it is lost.
    pub async fn settle_disks(&self) -> Result<(), HypervisorError> {
        for number in self.disk_descriptors().await? {
            let failed = |source| self.process_error("write a disk of", source);
            // Opened again: a copy of the descriptor would keep the file locked for QEMU after its end.
            let kept = self.process().duplicate_fd(number).map_err(failed)?;
            let file = File::open(own(kept.as_raw_fd())).map_err(failed)?;
            drop(kept);
            let written = spawn_blocking(move || file.sync_data()).await;
            written.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(failed)?;
        }
        Ok(())
    }

    /// Destination: from here on nobody but the guest writes its disks; what was being written is. Ends the exports; the doors are
    /// [`AwaitedDisk`]'s. Can be repeated, also by an agent that did not open them.
    ///
    /// The server stays, and has nothing: told to stop (`nbd-server-stop`) while somebody is just being connected, a QEMU that closes
    /// stray clients (nbd/server.c, CVE-2024-7409) waits for ever for one that only its main loop could serve.
    ///
    /// # Errors
    /// [`HypervisorError::Deadline`] if they are not closed within 2 s.
    pub async fn close_disks(&self) -> Result<(), HypervisorError> {
        let started = Instant::now();
        // One that is closing is refused.
        let close = |id| self.allow_refusal(qmp::block_export_del { id, mode: Some(qmp::BlockExportRemoveMode::hard) });
        // Asked together: the guest may stand.
        let closing = join_all(self.exports().await?.into_iter().map(close));
        let (closed, mut open) = tokio::join!(closing, self.exports());
        closed.into_iter().collect::<Result<(), _>>()?;
        while !open?.is_empty() {
            if started.elapsed() > CLOSE_DEADLINE {
                let (guest, command) = (self.name().clone(), qmp::block_export_del::NAME);
                return Err(HypervisorError::Deadline { guest, command, after: CLOSE_DEADLINE });
            }
            sleep(CLOSE_POLL).await;
            open = self.exports().await;
        }
        Ok(())
    }

    /// Ids of the exports that are there, be they about to close.
    pub(super) async fn exports(&self) -> Result<Vec<String>, HypervisorError> {
        let exports = self.execute(qmp::query_block_exports {}).await?;
        Ok(exports.into_iter().map(|export| export.id).filter(|id| nodes::is_export(id)).collect())
    }

    /// A connection to the server, and to nobody else who might have put a socket there.
    pub(super) async fn connect_disks(&self) -> io::Result<UnixStream> {
        let (stream, served_by) = self.run_dir().connect_to(RunDir::DISKS_SOCKET).await?;
        if served_by != Some(self.pid()) {
            return Err(io::Error::other(format!("process {served_by:?} serves the disks' socket, and not QEMU")));
        }
        Ok(stream)
    }
}
