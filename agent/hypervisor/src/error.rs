//! What can go wrong between the agent and QEMU.

use std::{io, path::PathBuf, time::Duration};

use throughline_cutover::{DiskName, GuestName};

use crate::{Exit, FdRole};

/// Why a guest could not be run or told something. Each names the guest, and the command where there was one.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A file or directory of the guest's run directory.
    #[error("guest {guest}: cannot use {}: {source}", path.display())]
    RunDir {
        /// Guest.
        guest: GuestName,
        /// File or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The run directory's path is too long for a UNIX socket address.
    #[error("guest {guest}: {} is longer than a socket's path may be (107 bytes); choose a shorter run directory", path.display())]
    SocketPath {
        /// Guest.
        guest: GuestName,
        /// Path of the socket.
        path: PathBuf,
    },
    /// A QEMU already answers in the run directory.
    #[error("guest {guest}: a QEMU already runs in {}; adopt it or end it first", run_dir.display())]
    Occupied {
        /// Guest.
        guest: GuestName,
        /// Run directory.
        run_dir: PathBuf,
    },
    /// The process in the run directory is not the guest's QEMU.
    #[error("guest {guest}: what answers in {} is not its QEMU: {why}; it was left alone", run_dir.display())]
    NotThatGuest {
        /// Guest.
        guest: GuestName,
        /// Run directory.
        run_dir: PathBuf,
        /// What did not match.
        why: String,
    },
    /// A QEMU that would not go over the guest's memory again under an anchor.
    #[error(
        "guest {guest}: QEMU {major}.{minor} cannot be kept in pre-copy until frames are held; guests of QEMU 7.2 to 8.2 can be moved"
    )]
    Version {
        /// Guest.
        guest: GuestName,
        /// Of QEMU's version.
        major: i64,
        /// Of QEMU's version.
        minor: i64,
    },
    /// QEMU could not be started at all.
    #[error("guest {guest}: cannot start {program}: {source}; is QEMU installed?")]
    Spawn {
        /// Guest.
        guest: GuestName,
        /// Program.
        program: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A kernel or initial RAM disk that a guest cannot be given.
    #[error("guest {guest}: cannot boot {path:?}: {why}")]
    Image {
        /// Guest.
        guest: GuestName,
        /// As it was asked for.
        path: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A stream of its memory or of a disk could not be opened, sealed or handed over.
    #[error("guest {guest}: the stream {what}: {source}")]
    Stream {
        /// Guest.
        guest: GuestName,
        /// What did not work.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A disk is not as it would have to be.
    #[error("guest {guest}: disk {disk}: {why}")]
    Disk {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// What is wrong.
        why: String,
    },
    /// QEMU ended before it answered.
    #[error("guest {guest}: QEMU ended as it started: {exit}")]
    Died {
        /// Guest.
        guest: GuestName,
        /// How, and its last words.
        exit: Exit,
    },
    /// The process could not be watched, signalled or asked for a descriptor.
    #[error("guest {guest}: cannot {action} QEMU (pid {pid}): {source}")]
    Process {
        /// Guest.
        guest: GuestName,
        /// What was tried.
        action: &'static str,
        /// Process.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection to QEMU is closed: it ended, or is about to.
    #[error("guest {guest}: QEMU is gone, {command} was not carried out or its result is unknown")]
    Gone {
        /// Guest.
        guest: GuestName,
        /// QMP command.
        command: &'static str,
    },
    /// No answer in time; the command may still take effect.
    #[error("guest {guest}: no answer to {command} within {after:?}; it may still take effect")]
    Deadline {
        /// Guest.
        guest: GuestName,
        /// QMP command, or what was awaited.
        command: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// QEMU refused.
    #[error("guest {guest}: QEMU refused {command}: {desc} ({class})")]
    Refused {
        /// Guest.
        guest: GuestName,
        /// QMP command.
        command: &'static str,
        /// QMP's error class.
        class: String,
        /// QMP's description.
        desc: String,
    },
    /// QEMU answered something this version does not understand.
    #[error("guest {guest}: cannot understand QEMU's answer to {command}: {detail}; is this QEMU supported?")]
    Answer {
        /// Guest.
        guest: GuestName,
        /// QMP command.
        command: &'static str,
        /// What was wrong with it.
        detail: String,
    },
    /// QEMU does not hold that descriptor.
    #[error("guest {guest}: QEMU holds no descriptor named {role}; was it started with that port?")]
    NoSuchFd {
        /// Guest.
        guest: GuestName,
        /// What was looked for.
        role: FdRole,
    },
}
