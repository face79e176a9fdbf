//! Starting a guest's QEMU so that it outlives the agent.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sys::{
    signal::Signal,
    stat::{SFlag, fstat},
};
use throughline_cutover::{Boot, GuestName, MacAddr, Mtu, PortId};
use tokio::{
    net::UnixStream,
    sync::broadcast,
    time::{Instant, sleep, timeout},
};
use tracing::info;

use crate::{
    Accelerator, Below, Confinement, DiskFd, FdRole, Guest, HypervisorError, RunDir,
    command_line::{BootArgs, CommandLine, NicArgs},
    confinement::{Allowance, Cell},
    disk::arguments::{BelowArgs, DiskArgs},
    guest::{EVENTS_KEPT, ExitWatch, watch_exit},
    image::Images,
    process::Process,
    qmp::Connection,
    ram_kib,
};

/// The emulator.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// How long QEMU may take to open its monitor.
const START_DEADLINE: Duration = Duration::from_secs(15);
/// How often the monitor is tried meanwhile.
const START_POLL: Duration = Duration::from_millis(3);

/// A network card and what it is plugged into.
#[derive(Debug)]
pub struct NicFds {
    /// Its port.
    pub port: PortId,
    /// Its address.
    pub mac: MacAddr,
    /// What the guest is told its MTU is.
    pub mtu: Mtu,
    /// Its tap, open with a vnet header: its queues, in the order of their opening. QEMU serves them and keeps a duplicate
    /// of each, see [`FdRole::Tap`] and [`FdRole::Queue`]. Both ends of a migration need as many. None: it is plugged into nothing,
    /// no frame comes to it and none leaves.
    pub tap: Vec<OwnedFd>,
    /// Its hold, which QEMU only keeps, see [`FdRole::Hold`]; a card that moves has one.
    pub hold: Option<OwnedFd>,
    /// The hold's further queues, which QEMU only keeps, see [`FdRole::Lane`].
    pub lanes: Vec<OwnedFd>,
}

/// A guest to be started.
#[derive(Debug)]
pub struct Launch {
    /// Its name.
    pub name: GuestName,
    /// Where its sockets, logs and pid file go; made if absent.
    pub run_dir: RunDir,
    /// Virtual processors.
    pub vcpus: u32,
    /// RAM, KiB; what the guest gets is [`ram_kib`].
    pub memory_kib: u64,
    /// How it boots.
    pub boot: Boot,
    /// What runs it. Both ends of a migration need the same.
    pub accelerator: Accelerator,
    /// Network cards in slot order, at most 8.
    pub nics: Vec<NicFds>,
    /// Disks in order, at most 8.
    pub disks: Vec<DiskFd>,
    /// It has a channel to an agent in the guest. Both ends of a migration need the same.
    pub guest_agent: bool,
    /// Wait for a migration instead of booting.
    pub incoming: bool,
}

impl Guest {
    /// Starts QEMU, confined and in its own session, and waits until its monitor answers. The guest runs, or waits for
    /// [`Guest::listen`] if `launch.incoming`.
    ///
    /// # Errors
    /// [`HypervisorError::Occupied`] if one runs there already, [`HypervisorError::Died`] with QEMU's words if it
    /// ended at once. After an error no QEMU of this launch runs; its log stays in the run directory.
    pub async fn launch(launch: Launch, confinement: &Confinement) -> Result<Self, HypervisorError> {
        let cell = prepare_run_dir(&launch.name, &launch.run_dir, confinement)?;
        let given = ram_kib(launch.memory_kib, launch.accelerator);
        if given < launch.memory_kib {
            info!(
                guest = %launch.name, asked_kib = launch.memory_kib, given_kib = given,
                "RAM reduced: a TCG guest with a multiple of 256 KiB loses memory when it migrates"
            );
        }
        let child = spawn(&launch, &cell)?;
        let Launch { name, run_dir, .. } = launch;
        Self::meet(name, run_dir, cell, child).await
    }

    /// A QEMU that was just started, as soon as its monitor answers.
    pub(crate) async fn meet(
        name: GuestName,
        run_dir: RunDir,
        cell: Cell,
        child: Child,
    ) -> Result<Self, HypervisorError> {
        let (process, child) = hold(&name, child)?;
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let watch = process.watch(Some(child)).map_err(|source| process_error(&name, "watch", &process, source))?;
        let exit = watch_exit(watch, run_dir.clone());
        let connection = async {
            let stream = connect(&name, &run_dir, process.pid()).await?;
            Connection::open(&name, stream, events.clone()).await
        };
        let opened = tokio::select! {
            opened = connection => opened,
            exit = exit.ended() => {
                cell.clear().await;
                return Err(HypervisorError::Died { guest: name, exit });
            }
        };
        match opened {
            Ok(connection) => Ok(Self::new(name, run_dir, cell, process, connection, events, exit)),
            Err(error) => {
                let error = end_failed_start(&name, &process, &exit, error).await;
                cell.clear().await;
                Err(error)
            }
        }
    }
}

/// Ends a QEMU that does not answer; gives the better reason of its own end and `error`.
async fn end_failed_start(
    guest: &GuestName,
    process: &Process,
    exit: &ExitWatch,
    error: HypervisorError,
) -> HypervisorError {
    // A closed monitor is the sign of an end that is about to be known.
    let by_itself = timeout(Duration::from_secs(1), exit.ended()).await;
    if let (HypervisorError::Gone { .. }, Ok(exit)) = (&error, by_itself) {
        return HypervisorError::Died { guest: guest.clone(), exit };
    }
    match process.signal(Signal::SIGKILL) {
        Ok(()) => {
            exit.ended().await;
            error
        }
        Err(source) => process_error(guest, "signal", process, source),
    }
}

/// Makes the directory of a QEMU that is about to start, where none runs.
pub(crate) fn prepare_run_dir(
    guest: &GuestName,
    run_dir: &RunDir,
    confinement: &Confinement,
) -> Result<Cell, HypervisorError> {
    if !run_dir.fits_socket() {
        return Err(HypervisorError::SocketPath { guest: guest.clone(), path: run_dir.qmp_socket() });
    }
    let unusable = |source| HypervisorError::RunDir { guest: guest.clone(), path: run_dir.path().to_owned(), source };
    if run_dir.owner().map_err(unusable)?.is_some() {
        return Err(HypervisorError::Occupied { guest: guest.clone(), run_dir: run_dir.path().to_owned() });
    }
    confinement.prepare(guest, run_dir).map_err(unusable)
}

/// Connects as soon as QEMU has made its socket.
async fn connect(guest: &GuestName, run_dir: &RunDir, pid: i32) -> Result<UnixStream, HypervisorError> {
    let started = Instant::now();
    loop {
        match run_dir.connect().await {
            Ok((stream, served_by)) if served_by == Some(pid) => return Ok(stream),
            _ if started.elapsed() < START_DEADLINE => sleep(START_POLL).await,
            _ => {
                return Err(HypervisorError::Deadline {
                    guest: guest.clone(),
                    command: "start",
                    after: START_DEADLINE,
                });
            }
        }
    }
}

fn spawn(launch: &Launch, cell: &Cell) -> Result<Child, HypervisorError> {
    let program = PROGRAM;
    let failed = |source| HypervisorError::Spawn { guest: launch.name.clone(), program, source };
    let images = Images::open(&launch.name, &launch.boot)?;
    let run_dir = &launch.run_dir;
    let log = run_dir.open_log(&run_dir.qemu_log()).map_err(failed)?;
    let serial_log = run_dir.open_log(&run_dir.serial_log()).map_err(failed)?;
    // QEMU closes what -add-fd names after it has duplicated it, so what it serves needs a number of its own.
    let copies = |nic: &NicFds| nic.tap.iter().map(OwnedFd::try_clone).collect();
    let kept_taps: Vec<Vec<OwnedFd>> = launch.nics.iter().map(copies).collect::<io::Result<_>>().map_err(failed)?;
    let nics: Vec<NicArgs> = launch.nics.iter().zip(&kept_taps).map(|(nic, kept)| numbers(nic, kept)).collect();
    let boot = BootArgs {
        kernel: images.kernel.as_raw_fd(),
        initrd: images.initrd.as_ref().map(AsRawFd::as_raw_fd),
        cmdline: &launch.boot.cmdline,
    };
    let mut inherited = vec![boot.kernel, serial_log.as_raw_fd()];
    inherited.extend(boot.initrd);
    let disks: Vec<DiskArgs> = launch.disks.iter().map(disk_numbers).collect();
    inherited
        .extend(disks.iter().flat_map(|disk| [disk.image].into_iter().chain(disk.below.map(BelowArgs::descriptor))));
    inherited.extend(nics.iter().flat_map(|nic| nic.kept.iter().map(|(_, fd)| fd).chain(&nic.tap)));
    let line = CommandLine {
        name: &launch.name,
        vcpus: launch.vcpus,
        memory_kib: launch.memory_kib,
        boot,
        serial_log: serial_log.as_raw_fd(),
        accelerator: launch.accelerator,
        nics: &nics,
        disks: &disks,
        guest_agent: launch.guest_agent,
        incoming: launch.incoming,
    };
    let mut command = Command::new(program);
    command.args(line.arguments()).current_dir(run_dir.path());
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    let Launch { vcpus, memory_kib, accelerator, .. } = *launch;
    let allowance = Allowance { vcpus, memory_kib, accelerator };
    cell.hold(&mut command, Some(allowance), inherited).map_err(failed)?;
    command.spawn().map_err(failed)
}

fn numbers(nic: &NicFds, kept_tap: &[OwnedFd]) -> NicArgs {
    let queues = (0..).zip(kept_tap);
    let mut kept: Vec<_> = queues.map(|(queue, fd)| (FdRole::of_tap(nic.port, queue), fd.as_raw_fd())).collect();
    kept.extend(nic.hold.iter().map(|hold| (FdRole::Hold(nic.port), hold.as_raw_fd())));
    let lanes = (1..).zip(&nic.lanes);
    kept.extend(lanes.map(|(lane, queue)| (FdRole::Lane(nic.port, lane), queue.as_raw_fd())));
    let tap = nic.tap.iter().map(OwnedFd::as_raw_fd).collect();
    NicArgs { port: nic.port, mac: nic.mac, mtu: nic.mtu, tap, kept }
}

pub(crate) fn disk_numbers(disk: &DiskFd) -> DiskArgs {
    DiskArgs {
        name: disk.name.clone(),
        format: disk.format,
        bus: disk.bus,
        image: disk.image.as_raw_fd(),
        below: disk.below.as_ref().map(|below| match below {
            Below::Image(image) => BelowArgs::Image(image.as_raw_fd()),
            Below::Connection(connection) => BelowArgs::Connection(connection.as_raw_fd()),
        }),
        device: fstat(&disk.image)
            .is_ok_and(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFBLK),
    }
}

/// Holds a child by pidfd. It cannot have been reaped: `child` is ours.
fn hold(guest: &GuestName, mut child: Child) -> Result<(Process, Child), HypervisorError> {
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    match Process::open(pid) {
        Ok(process) => Ok((process, child)),
        Err(source) => {
            let _killed = child.kill().and_then(|()| child.wait());
            Err(HypervisorError::Process { guest: guest.clone(), action: "hold", pid, source })
        }
    }
}

fn process_error(guest: &GuestName, action: &'static str, process: &Process, source: io::Error) -> HypervisorError {
    HypervisorError::Process { guest: guest.clone(), action, pid: process.pid(), source }
}
