//! A point, from its instant to one of its ends, at the source.
//!
//! ```text
//!   guest's device                        guest's device
//!         │                                     │
//!     disk-NAME             ───►            disk-NAME
//!         │               instant               │
//!     image-NAME                           before-NAME ── what is overwritten ──► aside-NAME
//!                                            │      │                                 │
//!                                       image-NAME  └─ instant-NAME: one or the other ┘
//!                                                           │
//!                                                       send-NAME  ══► the replica
//! ```

use std::{
    fs::File,
    os::fd::OwnedFd,
    time::{Duration, SystemTime},
};

use qapi::qmp;
use throughline_cutover::DiskName;
use tokio::time::timeout;
use tracing::warn;

use super::{
    super::{bitmap::Records, nodes},
    names::KeeperId,
    options,
    progress::{PointProgress, PointState, by_disk, ours},
    record::{FRESH, LEFT, SINCE, with},
    stream::ReplicaStream,
};
use crate::{Guest, HypervisorError};

/// How long QEMU may take to lead the disks' writes elsewhere: it has each file written to the host's disk before.
const LEAD_DEADLINE: Duration = Duration::from_secs(15);

/// How long a guest may be held frozen for the host's disk, twice.
const HELD_AT_MOST: Duration = Duration::from_secs(2);

/// A disk's part of a point that is to be sent.
#[derive(Debug)]
pub struct PointDisk {
    /// The disk.
    pub disk: DiskName,
    /// Where it goes.
    pub stream: ReplicaStream,
    /// An empty file, open for reading and writing, that nobody else knows: what the guest overwrites before it is sent goes
    /// there. It comes to take as much room as the guest overwrites, the disk's size at most.
    pub aside: OwnedFd,
}

/// When a point is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointInstant {
    /// A time just before: whatever was done by then is in it.
    pub at: SystemTime,
    /// The guest had written out its file systems, and wrote nothing to them then.
    pub quiesced: bool,
}

impl Guest {
    /// Source: begins to send a point to `keeper`, all disks as they are at one instant from now on, at no more than `speed` bytes per
    /// second each (0: no limit): what the last try has left with that keeper, and what was written since; if that was another, what was
    /// written since the last point that was completed; for the first, all that is marked. [`Guest::point_progress`]
    /// tells how it gets on; what breaks after this shows there alone, and never in the guest.
    ///
    /// A guest's agent, if there is one that does so, has its file systems frozen for the instant, and thawed after it, also if this
    /// fails or is dropped.
    ///
    /// No migration of the guest may be under way, nor be begun before the point is ended or abandoned.
    ///
    /// # Errors
    /// Those of any command, [`HypervisorError::Disk`] if a disk of the guest is missing, [`HypervisorError::Deadline`] if the
    /// replica's disk does not answer; [`Guest::abandon_point`] after one.
    pub async fn send_point(
        &self,
        disks: Vec<PointDisk>,
        keeper: &KeeperId,
        speed: u64,
    ) -> Result<PointInstant, HypervisorError> {
        let Some(record) = self.replica_begun().await? else {
            return Err(self.no_replica());
        };
        let names: Vec<DiskName> = disks.iter().map(|disk| disk.disk.clone()).collect();
        if let Some(missing) = self.disks().await?.iter().find(|disk| !names.contains(disk)) {
            return Err(self.disk_error(missing, "a point is of all disks of a guest"));
        }
        for PointDisk { disk, stream, aside } in disks {
            self.attach(&nodes::send(&disk), &disk, stream.0).await?;
            self.add_aside(&disk, aside).await?;
            self.execute(options::before(&disk)).await?;
        }
        // From before the instant on, so that nothing after it is missed.
        self.transact(names.iter().map(|disk| options::add(disk, FRESH, Records::Writes)).collect()).await?;
        let instant = self.lead_aside(&names).await?;
        for disk in &names {
            self.execute(options::instant(disk)).await?;
            self.execute(options::sending(disk)).await?;
        }
        let from = if record.left.as_ref() == Some(keeper) { LEFT } else { SINCE };
        let left = |disk: &DiskName| {
            let image = nodes::image(disk);
            let mut actions = vec![options::merge((&image, from), (&nodes::instant(disk), options::SENDING))];
            actions.push(match &record.left {
                Some(_) => options::clear(&image, LEFT),
                None => options::add(disk, LEFT, Records::Writes),
            });
            // Within one transaction a name is not free again.
            if record.left.as_ref() != Some(keeper) {
                actions.extend(record.left.as_ref().map(|before| options::remove(&image, &with(before))));
                actions.push(options::add(disk, &with(keeper), Records::Nothing));
            }
            actions.extend([options::merge((&image, FRESH), (&image, LEFT)), options::remove(&image, FRESH)]);
            actions
        };
        self.transact(names.iter().flat_map(left).collect()).await?;
        let speed = i64::try_from(speed).unwrap_or(i64::MAX);
        for disk in &names {
            self.execute(options::send(disk, speed)).await?;
        }
        Ok(instant)
    }

    /// The point's instant. While the guest is frozen nothing is waited for but this host's disk.
    async fn lead_aside(&self, names: &[DiskName]) -> Result<PointInstant, HypervisorError> {
        // QEMU does so too, and its main loop, which the guest's network needs, waits for it. It is to find little.
        self.settle_disks().await?;
        let mut frozen = self.freeze().await;
        if frozen.is_some() {
            match timeout(HELD_AT_MOST, self.settle_disks()).await {
                Ok(settled) => settled?,
                Err(_) => {
                    warn!(guest = %self.name(), "its host's disk is too slow to hold it for a point; this one is as after a power cut");
                    frozen = None;
                }
            }
        }
        let at = SystemTime::now();
        let within = if frozen.is_some() { HELD_AT_MOST } else { LEAD_DEADLINE };
        self.execute_within(options::lead(names, nodes::before), within).await?;
        let quiesced = match frozen {
            Some(frozen) => frozen.thaw().await,
            None => false,
        };
        Ok(PointInstant { at, quiesced })
    }

    /// Makes a node of the file for what the guest overwrites, as long as the disk.
    async fn add_aside(&self, disk: &DiskName, aside: OwnedFd) -> Result<(), HypervisorError> {
        let image = nodes::image(disk);
        let all = self.execute(qmp::query_named_block_nodes { flat: Some(true) }).await?;
        let size =
            all.iter().find(|node| node.node_name.as_deref() == Some(&image)).map(|it| it.image.base.virtual_size);
        let size = size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
        let file = File::from(aside);
        file.set_len(size).map_err(|error| {
            self.disk_error(disk, format!("no file can be made for what the guest overwrites: {error}"))
        })?;
        let opaque = Some(nodes::aside_descriptor(disk));
        let added = self.execute_with(qmp::add_fd { fdset_id: None, opaque }, file.into()).await?;
        self.execute(options::aside(disk, added.fdset_id)).await.map(drop)
    }

    /// Source: how a point gets on that was begun and neither ended nor abandoned, by name of the disk.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn point_progress(&self) -> Result<Vec<PointProgress>, HypervisorError> {
        Ok(by_disk(&self.execute(qmp::query_jobs {}).await?))
    }

    /// Source: closes the streams of a point of which every disk is [`PointState::Sent`], and removes what it used. The record is
    /// less only by [`Guest::complete_point`].
    ///
    /// # Errors
    /// [`HypervisorError::Disk`] if a disk is not sent; [`Guest::abandon_point`] after it. Those of [`Guest::abandon_point`].
    pub async fn end_point(&self) -> Result<(), HypervisorError> {
        let progress = self.point_progress().await?;
        for disk in self.disks().await? {
            match progress.iter().find(|it| it.disk == disk).map(|it| &it.state) {
                Some(PointState::Sent) => {}
                Some(PointState::Failed(why)) => return Err(self.disk_error(&disk, format!("it was not sent: {why}"))),
                Some(PointState::Sending) | None => return Err(self.disk_error(&disk, "it is not sent")),
            }
        }
        self.abandon_point().await
    }

    /// Source: cuts the streams of a point, ends its jobs and removes what it used. What it has not sent is on record.
    /// Can be repeated, also by an agent that did not begin it, and does nothing where there is none. A
    /// replica's host that does not answer is no hindrance.
    ///
    /// # Errors
    /// [`HypervisorError::Deadline`] if the jobs do not end within 5 s.
    pub async fn abandon_point(&self) -> Result<(), HypervisorError> {
        self.thaw_what_is_frozen();
        self.cut_streams(nodes::is_sending).await?;
        self.end_jobs(ours).await?;
        let names = self.node_names().await?;
        let is_there = |node: &String| names.contains(node);
        let disks = self.disks().await?;
        self.keep_unsent(&disks).await?;
        let mut gone: Vec<String> = Vec::new();
        for part in [nodes::send, nodes::instant] {
            gone.extend(disks.iter().map(part).filter(is_there));
        }
        for node_name in gone {
            self.execute(qmp::blockdev_del { node_name }).await?;
        }
        let led: Vec<_> = disks.iter().filter(|disk| is_there(&nodes::before(disk))).cloned().collect();
        if !led.is_empty() {
            // As before a point's instant.
            self.settle_disks().await?;
            self.execute_within(options::lead(&led, nodes::image), LEAD_DEADLINE).await?;
        }
        for part in [nodes::before, nodes::aside] {
            for node_name in disks.iter().map(part).filter(is_there) {
                self.execute(qmp::blockdev_del { node_name }).await?;
            }
        }
        self.forget_asides().await
    }

    /// Puts on record what a point's jobs have not sent, and that it was not sent that nobody came to.
    async fn keep_unsent(&self, disks: &[DiskName]) -> Result<(), HypervisorError> {
        let mut actions = Vec::new();
        for disk in disks {
            let (image, instant) = (nodes::image(disk), nodes::instant(disk));
            let on_record = self.bitmaps(&image).await?;
            let is_on_record = |name: &str| on_record.iter().any(|bitmap| bitmap == name);
            if is_on_record(LEFT) && self.bitmaps(&instant).await?.iter().any(|bitmap| bitmap == options::SENDING) {
                actions.push(options::merge((&instant, options::SENDING), (&image, LEFT)));
            }
            if is_on_record(FRESH) {
                // Of a try that did not come to its jobs: the others have it too.
                actions.push(options::remove(&image, FRESH));
            }
        }
        self.transact(actions).await
    }

    async fn forget_asides(&self) -> Result<(), HypervisorError> {
        let kept = self.execute(qmp::query_fdsets {}).await?;
        for set in kept {
            for fd in set.fds.iter().filter(|fd| fd.opaque.as_deref().is_some_and(nodes::is_aside_descriptor)) {
                self.execute(qmp::remove_fd { fdset_id: set.fdset_id, fd: Some(fd.fd) }).await?;
            }
        }
        Ok(())
    }
}
