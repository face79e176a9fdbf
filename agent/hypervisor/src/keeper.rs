//! Starting a QEMU that runs no guest: it keeps the disks of one that runs elsewhere.

use std::{
    os::fd::AsRawFd as _,
    process::{Child, Command, Stdio},
};

use throughline_cutover::GuestName;

use crate::{
    Accelerator, Confinement, DiskFd, Guest, HypervisorError, RunDir,
    command_line::keeper,
    confinement::{Allowance, Cell},
    disk::arguments::DiskArgs,
    launch::{PROGRAM, disk_numbers, prepare_run_dir},
};

/// Memory beside what every QEMU is allowed, KiB, and that for each disk: tables of its file, and what has come and is not written yet.
const MEMORY_KIB: u64 = 64 << 10;
const MEMORY_OF_DISK_KIB: u64 = 96 << 10;

/// A keeper to be started.
#[derive(Debug)]
pub struct Keeper {
    /// The name of the guest whose replica it keeps.
    pub name: GuestName,
    /// Where its sockets, logs and pid file go; made if absent. Not the guest's own.
    pub run_dir: RunDir,
    /// The guest's disks, as qcow2 files; nothing here uses their bus.
    pub disks: Vec<DiskFd>,
}

impl Guest {
    /// Starts a QEMU without processor, memory or device, confined as a guest's and in its own session, that has disks open for
    /// [`Guest::offer_replica`]. What is for guests it does not do. [`Guest::adopt`] takes it back, [`Guest::quit`] ends it.
    ///
    /// # Errors
    /// As [`Guest::launch`].
    pub async fn keep(keeper: Keeper, confinement: &Confinement) -> Result<Self, HypervisorError> {
        let cell = prepare_run_dir(&keeper.name, &keeper.run_dir, confinement)?;
        let child = spawn(&keeper, &cell)?;
        let Keeper { name, run_dir, .. } = keeper;
        Self::meet(name, run_dir, cell, child).await
    }
}

fn spawn(it: &Keeper, cell: &Cell) -> Result<Child, HypervisorError> {
    let program = PROGRAM;
    let failed = |source| HypervisorError::Spawn { guest: it.name.clone(), program, source };
    let log = it.run_dir.open_log(&it.run_dir.qemu_log()).map_err(failed)?;
    let disks: Vec<DiskArgs> = it.disks.iter().map(disk_numbers).collect();
    let mut command = Command::new(program);
    command.args(keeper(&it.name, &uuid::Uuid::new_v4(), &disks)).current_dir(it.run_dir.path());
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    let memory_kib = MEMORY_KIB + MEMORY_OF_DISK_KIB * it.disks.len() as u64;
    let allowance = Allowance { vcpus: 1, memory_kib, accelerator: Accelerator::Kvm };
    let inherited = it.disks.iter().map(|disk| disk.image.as_raw_fd()).collect();
    cell.hold(&mut command, Some(allowance), inherited).map_err(failed)?;
    command.spawn().map_err(failed)
}
