//! The disks of a demo's guest, which writes to them and checks them all the time, and what became of them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use throughline_probe::disk::Status;

use super::probes::Probes;
use crate::signals;

/// What the guest is created with: a disk of either format, on either bus. Small, so that all of it is read back in a run or two.
pub(super) const FLAGS: [&str; 4] =
    ["--disk", "name=root,size=4MiB", "--disk", "name=data,size=4MiB,format=qcow2,bus=virtio-scsi"];
/// What its kernel's command line says of them: an emulated guest that writes more has no time for its network.
pub(crate) const PARAMETERS: &str = "tl.disk=root tl.disk=data tl.disk-rate=128";
/// How often it is looked how far the guest is with reading everything back.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// One disk after a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Disk {
    pub(crate) name: String,
    pub(crate) blocks: u64,
    /// Blocks that were written since the guest booted, and of those the last that was acknowledged.
    pub(crate) written: u64,
    pub(crate) acknowledged: u64,
    pub(crate) verified: u64,
    pub(crate) wrong: u64,
    pub(crate) missing: u64,
    pub(crate) failed: u64,
    /// Since the guest booted, milliseconds.
    pub(crate) slowest_write_ms: u64,
}

impl From<&Status> for Disk {
    fn from(status: &Status) -> Self {
        let Status { name, blocks, written, acknowledged, verified, wrong, missing, failed, slowest_write_ms } =
            status.clone();
        Self { name, blocks, written, acknowledged, verified, wrong, missing, failed, slowest_write_ms }
    }
}

impl Disk {
    /// What is wrong with it, in words.
    pub(crate) fn broken(&self) -> Option<String> {
        let Self { name, written, verified, wrong, missing, failed, .. } = self;
        let sound = *wrong == 0 && *missing == 0 && *failed == 0 && *written > 0 && *verified > 0;
        (!sound).then(|| {
            format!(
                "disk {name}: {written} blocks written, {verified} read back, {wrong} wrong, {missing} older than acknowledged, \
                 {failed} requests failed"
            )
        })
    }
}

/// Waits until the guest has read back every block of its disks since now.
pub(crate) fn read_back(probes: &mut Probes) -> Result<Vec<Disk>> {
    let goals: Vec<u64> = now(probes)?.iter().map(|disk| disk.verified + 2 * disk.blocks).collect();
    let began = Instant::now();
    loop {
        let disks = now(probes)?;
        if disks.iter().zip(&goals).all(|(disk, goal)| disk.verified >= *goal) {
            return Ok(disks);
        }
        ensure!(began.elapsed() < PATIENCE, "the guest does not read its disks back: {disks:?}");
        signals::sleep(LOOK_EVERY)?;
    }
}

fn now(probes: &mut Probes) -> Result<Vec<Disk>> {
    let (from, to) = (probes.mark()?, probes.mark()?);
    Ok(probes.report(from, to)?.disks.iter().map(Disk::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_sound_only_if_it_was_written_and_read() {
        let sound = Disk::from(&Status { written: 9, verified: 5, ..Status::default() });
        assert_eq!(sound.broken(), None);
        let faults: [fn(&mut Disk); 5] = [
            |disk| disk.written = 0,
            |disk| disk.verified = 0,
            |disk| disk.wrong = 1,
            |disk| disk.missing = 1,
            |disk| disk.failed = 1,
        ];
        for fault in faults {
            let mut disk = sound.clone();
            fault(&mut disk);
            assert!(disk.broken().is_some(), "{disk:?}");
        }
    }
}
