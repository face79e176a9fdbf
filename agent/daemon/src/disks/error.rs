//! What can go wrong with a guest's disks.

use std::{
    io,
    path::{Path, PathBuf},
};

use throughline_confine::NotPrivate;
use throughline_cutover::{DiskName, Failure, GuestName, HostName};
use throughline_hypervisor::QemuUser;

use super::tools::ToolError;

/// Why a disk could not be made, opened or taken away.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is too little room.
    #[error(
        "guest {guest}, disk {disk}: {need} bytes are needed in {}, {have} are free: make room, or name another --disk-dir", path.display()
    )]
    Space {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// Where.
        path: PathBuf,
        /// Bytes the disk takes at once, and what is left to others.
        need: u64,
        /// Bytes that are free.
        have: u64,
    },
    /// It is not here.
    #[error("guest {guest}: this host has no disk {disk} of it; was it removed by hand, or is it on another host?")]
    Missing {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
    },
    /// This host does not know where it is to be.
    #[error(
        "guest {guest}, disk {disk}: this host has {what}; see that there is one, and that its agent is started so"
    )]
    Place {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// What is missing.
        what: String,
    },
    /// Storage that is to be in common is not.
    #[error(
        "guest {guest}, disk {disk}: what host {writer} has written to the shared storage is not found here, as {}: the two have \
         different storage under one name; mount the same, or start the agents with other --shared", path.display()
    )]
    OtherStorage {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// Who has written it.
        writer: HostName,
        /// What was looked for.
        path: PathBuf,
    },
    /// Storage in common does not tell one host of another's locks.
    #[error(
        "guest {guest}, disk {disk}: {} is open in the guest's QEMU at its host, and this host does not see its lock; mount the storage \
         with locks that all hosts see (of NFS: not with `nolock` or `local_lock`)", path.display()
    )]
    NoLock {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// The image.
        path: PathBuf,
    },
    /// A block device that was to be copied to itself.
    #[error(
        "guest {guest}, disk {disk}: {} is the very device that the guest runs on at its host; name another one so here, or keep the \
         disk on shared storage", path.display()
    )]
    SameDevice {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// The device here.
        path: PathBuf,
    },
    /// Something is here that would be lost.
    #[error(
        "guest {guest}: {} is there already, of a guest of that name that was here before: move it away if it is wanted, else remove it",
        path.display()
    )]
    Exists {
        /// Guest.
        guest: GuestName,
        /// The file in the way.
        path: PathBuf,
    },
    /// A QEMU has it open.
    #[error(
        "guest {guest}: its disk {file} is in use, by a QEMU that has not ended or, a device, by the host; end that first"
    )]
    InUse {
        /// Guest.
        guest: GuestName,
        /// Disk, or its file.
        file: String,
    },
    /// It is not the disk that it should be.
    #[error("guest {guest}: {} is not the disk it should be: {why}", path.display())]
    Unfit {
        /// Guest.
        guest: GuestName,
        /// File.
        path: PathBuf,
        /// In what.
        why: String,
    },
    /// An image that a disk cannot begin as, or be over.
    #[error("guest {guest}, disk {disk}: its image {image:?}: {why}")]
    Image {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// As it was asked for.
        image: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// An image that is not known yet.
    #[error("guest {guest}, disk {disk}: its image {image:?}: {how_far}")]
    ImageBeingRead {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// As it was asked for.
        image: String,
        /// How far it has been read, and when to try again.
        how_far: String,
    },
    /// A migration whose id cannot be part of a file's name.
    #[error(
        "a migration's id of {length} bytes is none: 1 to 64 of 0-9, a-f and '-'; do controller and agents have one version?"
    )]
    CopyId {
        /// Its length.
        length: usize,
    },
    /// A replica that does not have what is to be gone back to.
    #[error("guest {guest}: the replica's disks do not all have that restore point; promote it by another one")]
    Point {
        /// Guest.
        guest: GuestName,
    },
    /// One of QEMU's tools failed.
    #[error("guest {guest}, disk {disk}: {source}")]
    Tool {
        /// Guest.
        guest: GuestName,
        /// Disk.
        disk: DiskName,
        /// How.
        source: ToolError,
    },
    /// The directory is not the agent's alone.
    #[error("guests' disks cannot be kept: {0}")]
    NotPrivate(#[from] NotPrivate),
    /// There is nobody for the tools to run as.
    #[error("QEMU's tools cannot run as {user:?}: {source}; name another user with --qemu-user")]
    User {
        /// Who was named.
        user: QemuUser,
        /// Why not.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {doing} {}: {source}; see to its file system", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl DiskError {
    /// That the system refused to do something to that file.
    pub(super) fn io<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source: source.into() }
    }

    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Space { .. } => "DISK_SPACE",
            Self::Missing { .. } => "DISK_MISSING",
            Self::Place { .. } => "DISK_PLACE",
            Self::OtherStorage { .. } => "STORAGE_NOT_SHARED",
            Self::NoLock { .. } => "STORAGE_NO_LOCKS",
            Self::SameDevice { .. } => "DISK_SAME_DEVICE",
            Self::Exists { .. } => "DISK_EXISTS",
            Self::InUse { .. } => "DISK_IN_USE",
            Self::Unfit { .. } => "DISK_UNFIT",
            Self::Image { .. } => "DISK_IMAGE",
            Self::ImageBeingRead { .. } => "IMAGE_BEING_READ",
            Self::Point { .. } => "DISK_POINT",
            Self::Tool { .. } => "DISK_TOOL",
            Self::CopyId { .. } => "DISK_COPY_ID",
            Self::NotPrivate(_) | Self::User { .. } | Self::Io { .. } => "DISK_STORE",
        }
    }
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
