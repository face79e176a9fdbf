//! The source's end: two jobs a disk, from their beginning to one of their ends.

use std::time::Duration;

use qapi::{Command, qmp};
use throughline_cutover::DiskName;
use tokio::task::JoinSet;

use super::{
    jobs::{DiskProgress, DiskState, by_disk},
    nodes, options,
    streams::DiskStreams,
};
use crate::{Guest, HypervisorError};

/// How long mirrors may take to end that have sent everything: the destination writes its files to disk meanwhile.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// What is copied beside a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// The whole disk. Zeroes are written as zeroes: only qcow2 stays sparse.
    Everything,
    /// What is in the disk's own file, and not in what that is over: the destination's is over the same.
    OverImage,
    /// What is marked, see [`Guest::begin_bitmap`] and [`Guest::merge_chart`].
    Marked,
}

impl Guest {
    /// Source: mirrors a disk from now on, and begins to copy the rest at no more than `speed` bytes per second (0: no limit).
    /// [`Guest::disk_progress`] tells how it gets on; what breaks after this shows there alone, and never in the guest.
    ///
    /// # Errors
    /// Those of any command, [`HypervisorError::Deadline`] if the destination's disk does not answer;
    /// [`Guest::abandon_mirrors`] after one.
    pub async fn mirror_disk(
        &self,
        disk: &DiskName,
        streams: DiskStreams,
        rest: Rest,
        speed: u64,
    ) -> Result<(), HypervisorError> {
        self.attach(&nodes::mirror(disk), disk, streams.mirror).await?;
        self.attach(&nodes::rest(disk), disk, streams.rest).await?;
        // The mirror first: what the copy has passed by, the mirror must not miss.
        self.execute(options::mirror(disk)).await?;
        let speed = i64::try_from(speed).unwrap_or(i64::MAX);
        self.execute(options::copy(disk, rest, speed)).await.map(drop)
    }

    /// Source: how the copies of disks get on that were begun and neither ended nor abandoned, by name.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn disk_progress(&self) -> Result<Vec<DiskProgress>, HypervisorError> {
        let jobs = self.execute(qmp::query_jobs {}).await?;
        Ok(by_disk(&jobs).into_iter().map(|(disk, jobs)| jobs.progress(disk)).collect())
    }

    /// Source: closes the stream of what was copied beside a disk's mirror, once the disk is [`DiskState::Mirrored`]. QEMU writes
    /// out each of its streams when it stops the guest, and waits for the destination's disk each time. Does nothing where it is
    /// closed.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] while the stream is in use; those of any command.
    pub async fn close_rest(&self, disk: &DiskName) -> Result<(), HypervisorError> {
        let node_name = nodes::rest(disk);
        if self.connections().await?.contains(&node_name) {
            self.execute(qmp::blockdev_del { node_name }).await?;
        }
        Ok(())
    }

    /// Source, while the guest stands: ends the mirrors of its disks, all of them. All that was written is then in the
    /// destination's files. Every one must be [`DiskState::Mirrored`].
    ///
    /// # Errors
    /// [`HypervisorError::Disk`] if a disk is not mirrored, or its mirror broke; [`HypervisorError::Deadline`] if they do not end
    /// within 2 s. [`Guest::abandon_mirrors`] after one.
    pub async fn end_mirrors(&self, disks: &[DiskName]) -> Result<(), HypervisorError> {
        let end = |disk| qmp::block_job_cancel { device: nodes::mirror(disk), force: Some(false) };
        // QEMU answers in turn: it says how they were before it ends them. One that was not mirrored is of no use anyway.
        let (mirrored, ended) = tokio::join!(self.disk_progress(), self.execute_all(disks.iter().map(end)));
        let mirrored = mirrored?;
        for disk in disks {
            let state = mirrored.iter().find(|progress| progress.disk == *disk).map(|progress| &progress.state);
            match state {
                Some(DiskState::Mirrored) => {}
                Some(DiskState::Failed(why)) => return Err(self.disk_error(disk, format!("its copy broke: {why}"))),
                Some(DiskState::Copying) | None => return Err(self.disk_error(disk, "it is not mirrored")),
            }
        }
        ended?;
        // They stay as they are, ended: to dismiss them would take the guest's time, and its QEMU is about to go.
        let over = self.jobs_over(ours, "block-job-cancel", END_DEADLINE).await?;
        for disk in disks {
            let ended = over.iter().find(|job| job.id == nodes::mirror(disk));
            match ended.map(|job| &job.error) {
                Some(None) => {}
                Some(Some(why)) => return Err(self.disk_error(disk, format!("its mirror broke: {why}"))),
                None => return Err(self.disk_error(disk, "its mirror has gone")),
            }
        }
        Ok(())
    }

    /// Source: cuts the streams to the destination, ends all jobs and removes what they used. Bitmaps stay: they say what a next
    /// try has to copy. Can be repeated, also by an agent that did not begin the copy, and does nothing where there is none. A
    /// destination that does not answer is no hindrance.
    ///
    /// # Errors
    /// [`HypervisorError::Deadline`] if the jobs do not end within 5 s.
    pub async fn abandon_mirrors(&self) -> Result<(), HypervisorError> {
        self.cut_streams(nodes::is_connection).await?;
        self.end_jobs(ours).await?;
        for node in self.connections().await? {
            self.execute(qmp::blockdev_del { node_name: node }).await?;
        }
        Ok(())
    }

    /// Nodes that are connections to a destination.
    async fn connections(&self) -> Result<Vec<String>, HypervisorError> {
        Ok(self.node_names().await?.into_iter().filter(|name| nodes::is_connection(name)).collect())
    }

    /// Carries out commands without waiting for one before the next is sent.
    async fn execute_all<C>(&self, commands: impl Iterator<Item = C>) -> Result<(), HypervisorError>
    where
        C: Command + Send + 'static,
        C::Ok: Send,
    {
        let mut sent = JoinSet::new();
        for command in commands {
            let guest = self.clone();
            sent.spawn(async move { guest.execute(command).await.map(drop) });
        }
        while let Some(answered) = sent.join_next().await {
            // A panic in there is the only way for a task to fail.
            answered.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        }
        Ok(())
    }
}

/// Those of the jobs that copy disks, the rest's before its mirror's.
fn ours(jobs: &[qmp::JobInfo]) -> Vec<&qmp::JobInfo> {
    by_disk(jobs).into_values().flat_map(|jobs| [jobs.rest, jobs.mirror]).flatten().collect()
}
