//! Guests' disks: files that this host's agent makes, hands out open, and takes away again.
//!
//! ```text
//!  DISK-DIR/             0700
//!    GUEST/              0700, locked while something is done to what is in it
//!      root.qcow2        kept: the guest's
//!      data.raw.COPY.incoming  comes from another host; the guest's once that is decided
//!      data.raw.COPY.part      came in part; the next try goes on with it. For a day, and not past a crash of the host
//!      data.raw.COPY.doubtful  was coming when the host went down
//!      data.raw.new            half made; whoever finds one removes it
//!      logs.raw -> /dev/vg0/web-1-logs    a link, where a disk is a block device or on shared storage ([`elsewhere`])
//!      data.raw.before-failover-AT  the guest's before a replica took its place; an operator's to remove
//!    .image-sums         what images were found to be that disks are over ([`sums`])
//!    .replicas/          0700, the same of guests that run elsewhere ([`replicas`])
//!      ID/root.qcow2     with points, as internal snapshots
//!      .point-ID         the socket of a point that is tested, until its client has connected
//!
//!  create ──► kept ──► open ──► QEMU          receive ──► incoming ──► QEMU
//!              ▲                                 ▲           │
//!              └────────────────────── keep ─────┼───────────┤
//!                                    part ───────┘           ├── put_aside ──► part
//!                                                            └── discard_incoming ──► nothing
//! ```
//!
//! A file has its name only once it is whole and on disk, so that after a crash at any instant each call may simply be made
//! again. Who has a file open to write to has it locked (flock), and as the lock is the open file's, QEMU holds it by the descriptor
//! it was given, for as long as it lives, whatever becomes of the agent. So no file is opened twice, nor removed under a guest.
//!
//! What has to read or write an image format is qemu-img's and qemu-io's to do, without the agent's privileges ([`tools`]).
//! Everything here blocks, some of it for minutes (an image that is copied): not for a thread that has others waiting.

mod chart;
mod children;
mod copy_id;
mod elsewhere;
mod error;
mod extents;
mod folder;
mod hosted;
mod incoming;
mod made_over;
mod make;
mod operators_image;
mod qcow2;
mod replicas;
mod space;
mod sums;
mod tested;
mod tools;

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use throughline_confine::private_dir;
use throughline_cutover::{Disk, DiskFormat, DiskPlace, GuestName, HostName};
use throughline_hypervisor::QemuUser;
use throughline_wire::v1::DiskHere;
use tracing::warn;

use self::{
    folder::{Folder, State},
    sums::Sums,
    tools::Tools,
};

pub use self::{
    chart::BITMAP,
    copy_id::CopyId,
    elsewhere::{Elsewhere, is_device, length},
    error::DiskError,
    extents::Extent,
    hosted::{Opened, Unfinished},
    incoming::Received,
    make::Made,
    qcow2::{InvalidQcow2, qcow2_length},
    replicas::{Replicas, as_kept},
    sums::Sum,
    tested::TestDisk,
    tools::{PointServer, ToolError, ToolUser},
};

/// What tells one boot of a host from another (proc(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where the one that parts were made in is noted; no guest has such a name.
const NOTED_BOOT: &str = ".boot-id";

/// How long a move waits for its images to be read: it has half a minute for all that comes before it copies.
const IMAGES_PATIENCE: Duration = Duration::from_secs(15);

/// All disks of a host's guests.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    tools: Tools,
    elsewhere: Elsewhere,
    sums: Sums,
}

impl Store {
    /// The store in `directory`, which is made if it is not there. What is left half made in it is removed. QEMU's tools run as
    /// `user`. Disks that are not in it are `elsewhere`.
    ///
    /// # Errors
    /// If the directory is not this agent's alone, or there is no such user.
    pub fn open(directory: &Path, user: &QemuUser, elsewhere: Elsewhere) -> Result<Self, DiskError> {
        let user = ToolUser::of(user).map_err(|source| DiskError::User { user: user.clone(), source })?;
        private_dir(directory)?;
        let (tools, sums) = (Tools::new(user), Sums::noted_in(directory));
        let store = Self { directory: directory.to_owned(), tools, elsewhere, sums };
        store.clear_up()?;
        Ok(store)
    }

    /// Removes what nobody goes on with.
    fn clear_up(&self) -> Result<(), DiskError> {
        for guest in self.guests()? {
            if let Some(folder) = self.folder_of(&guest) {
                folder.remove_half_made()?;
            }
        }
        self.forget_parts_of_another_boot()?;
        self.remove_old_parts()
    }

    /// What came in part may never have reached the disk itself: nobody waited for that. A host that was down knows no more what is
    /// missing in it.
    fn forget_parts_of_another_boot(&self) -> Result<(), DiskError> {
        let (kernels, noted) = (Path::new(BOOT_ID), self.directory.join(NOTED_BOOT));
        let now = fs::read_to_string(kernels).map_err(DiskError::io("read", kernels))?;
        if fs::read_to_string(&noted).is_ok_and(|noted| noted == now) {
            return Ok(());
        }
        self.remove_parts(None)?;
        self.doubt_what_was_coming()?;
        fs::write(&noted, now).map_err(DiskError::io("write", &noted))
    }

    /// A guest's directory. One that cannot be used, being somebody else's, is in nobody's way.
    fn folder_of(&self, guest: &GuestName) -> Option<Folder> {
        Folder::find(&self.directory, guest).unwrap_or_else(|error| {
            warn!(%guest, %error, "a directory among guests' disks is left alone");
            None
        })
    }

    /// Every guest that there are files of, in order.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn guests(&self) -> Result<Vec<GuestName>, DiskError> {
        let failed = DiskError::io("read", &self.directory);
        let entries = fs::read_dir(&self.directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        // What bears no guest's name is not ours.
        let names = entries.map_err(failed)?.into_iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut guests: Vec<GuestName> = names.collect();
        guests.sort();
        Ok(guests)
    }

    /// Where a guest's disk is that is kept here, or would be.
    fn kept_path(&self, guest: &GuestName, disk: &Disk) -> PathBuf {
        self.directory.join(guest.as_str()).join(folder::kept_name(disk))
    }

    /// Opens a disk that is kept here, to read and write, for one QEMU: give it the descriptor and close this one. Until QEMU has
    /// ended nobody else gets one.
    ///
    /// # Errors
    /// [`DiskError::Missing`], [`DiskError::InUse`], or [`DiskError::Unfit`] if it has not the size it should have.
    pub fn open_disk(&self, guest: &GuestName, disk: &Disk) -> Result<File, DiskError> {
        let missing = || DiskError::Missing { guest: guest.clone(), disk: disk.name.clone() };
        let folder = Folder::find(&self.directory, guest)?.ok_or_else(missing)?;
        if !folder.has(disk)? {
            return Err(missing());
        }
        self.open_alone(guest, disk, &folder.kept(disk))
    }

    /// Opens a disk that nobody else has open to write to: what is under its name, or what that leads to, which is where it should be.
    fn open_alone(&self, guest: &GuestName, disk: &Disk, path: &Path) -> Result<File, DiskError> {
        let file = self.open_placed(guest, disk, path)?;
        check(guest, disk, path, &file)?;
        lock(guest, disk, &file)?;
        Ok(file)
    }

    fn open_placed(&self, guest: &GuestName, disk: &Disk, path: &Path) -> Result<File, DiskError> {
        match self.check_placed(guest, disk, path)? {
            Some(target) => elsewhere::open_target(guest, disk, &target),
            None => open_to_write(path),
        }
    }

    /// That what is under a disk's name leads to where the disk should be, or is the disk itself if it should be here. One that was kept of
    /// an earlier guest, or whose storage was moved, may not be.
    fn check_placed(&self, guest: &GuestName, disk: &Disk, path: &Path) -> Result<Option<PathBuf>, DiskError> {
        let (is, should) = (elsewhere::led_to(path)?, self.elsewhere.of(guest, disk)?);
        if is == should {
            return Ok(is);
        }
        let place = |at: Option<PathBuf>| at.map_or_else(|| "here".to_owned(), |at| at.display().to_string());
        let why = format!(
            "it is {}, and should be {}; move it away if it is wanted, else remove it",
            place(is),
            place(should)
        );
        Err(DiskError::Unfit { guest: guest.clone(), path: path.to_owned(), why })
    }

    /// That no other disk of a guest's is on that block device, whether its guest runs or not.
    fn check_device_free(&self, guest: &GuestName, disk: &Disk, device: &Path) -> Result<(), DiskError> {
        let number =
            |path: &Path| path.metadata().ok().filter(|it| it.file_type().is_block_device()).map(|it| it.rdev());
        let wanted = number(device);
        for other in self.guests()? {
            // Its own folder is locked by who asks.
            let path = self.directory.join(other.as_str());
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                let (name, Ok(target)) = (entry.file_name(), fs::read_link(entry.path())) else { continue };
                let own = other == *guest && name.to_str().is_some_and(|name| folder::is_of(name, disk));
                if !own && wanted.is_some() && number(&target) == wanted {
                    return Err(DiskError::Exists { guest: other, path: path.join(name) });
                }
            }
        }
        Ok(())
    }

    /// What the destination of a guest can tell by whether its disk is this very one; see [`Elsewhere::prove`].
    ///
    /// # Errors
    /// Those of that.
    pub fn prove(&self, guest: &GuestName, disk: &Disk) -> Result<String, DiskError> {
        self.elsewhere.prove(guest, disk)
    }

    /// That this host has what disks need that come from `source`, which says what it has of each: the same storage or another device,
    /// see [`Elsewhere::check`], and the same image. All images are read at once, and waited for together.
    ///
    /// # Errors
    /// Those of that, and of [`Store::check_image`].
    pub fn check_disks(
        &self,
        guest: &GuestName,
        source: &HostName,
        disks: &[(Disk, DiskHere)],
    ) -> Result<(), DiskError> {
        let over = || disks.iter().filter(|(_, here)| !here.image_sum.is_empty());
        let now = Instant::now();
        for (disk, here) in over() {
            match self.check_image(guest, disk, &here.image_sum, now) {
                Ok(()) | Err(DiskError::ImageBeingRead { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for (disk, here) in disks {
            self.elsewhere.check(guest, disk, source, &here.place_proof)?;
        }
        over().try_for_each(|(disk, here)| self.check_image(guest, disk, &here.image_sum, now + IMAGES_PATIENCE))
    }

    /// Bytes that the disk's file takes of its file system: what a host it moves to must have room for.
    ///
    /// # Errors
    /// [`DiskError::Missing`], or the system's.
    pub fn used(&self, guest: &GuestName, disk: &Disk) -> Result<u64, DiskError> {
        let path = self.kept_path(guest, disk);
        match path.symlink_metadata() {
            Ok(metadata) => self.check_placed(guest, disk, &path).map(|_| space::allocated(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DiskError::Missing { guest: guest.clone(), disk: disk.name.clone() })
            }
            Err(error) => Err(DiskError::io("look at", &path)(error)),
        }
    }

    /// Removes all there is here of a guest's disks, kept and incoming. Nothing happens if nothing is there, nor to what is elsewhere.
    /// For a guest that has left, and whose QEMU has ended.
    ///
    /// # Errors
    /// [`DiskError::InUse`], and then all of it stays; or the system's, and then it is to be called again.
    pub fn remove(&self, guest: &GuestName) -> Result<(), DiskError> {
        self.remove_with(guest, |_| Ok(()))
    }

    /// The same of a guest that is deleted with its disks: its files on shared storage go, too. What is on a block device stays.
    ///
    /// # Errors
    /// As [`Store::remove`].
    pub fn delete(&self, guest: &GuestName) -> Result<(), DiskError> {
        self.remove_with(guest, |kept| {
            elsewhere::led_to(kept)?.map_or(Ok(()), |target| elsewhere::remove_target(guest, &target))
        })
    }

    fn remove_with(&self, guest: &GuestName, before: impl Fn(&Path) -> Result<(), DiskError>) -> Result<(), DiskError> {
        let Some(folder) = Folder::find(&self.directory, guest)? else { return Ok(()) };
        let files = folder.files()?;
        files.iter().try_for_each(|name| folder.check_unused(name))?;
        folder.files_in(State::Kept)?.iter().try_for_each(|name| before(&folder.path().join(name)))?;
        files.iter().try_for_each(|name| folder.unlink(name))?;
        folder.dissolve(&self.directory)
    }
}

/// Through no symbolic link.
fn open_to_write(path: &Path) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path).map_err(DiskError::io("open", path))
}

/// Only one has it open to write to. The lock is the open file's, whoever has a descriptor of it. A block device was opened for one alone.
/// On shared storage the lock is QEMU's, which passes from one host to another at the instant that the guest does: there it is only looked
/// at.
fn lock(guest: &GuestName, disk: &Disk, file: &File) -> Result<(), DiskError> {
    let locked = match disk.place {
        DiskPlace::Directory => take_lock(file),
        DiskPlace::Device(_) => Ok(()),
        DiskPlace::Shared(_) => match elsewhere::is_locked(file) {
            Ok(false) => Ok(()),
            Ok(true) => Err(TryLockError::WouldBlock),
            Err(error) => Err(TryLockError::Error(error)),
        },
    };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse { guest: guest.clone(), file: disk.name.to_string() }),
        Err(TryLockError::Error(error)) => Err(DiskError::io("lock", Path::new(disk.name.as_str()))(error)),
    }
}

/// The lock of an open file, taken if nobody has it.
fn take_lock(file: &File) -> Result<(), TryLockError> {
    children::outlasted(|| file.try_lock(), |tried| matches!(tried, Err(TryLockError::WouldBlock)))
}

/// That it is a file of ours, and of the disk's size.
fn check(guest: &GuestName, disk: &Disk, path: &Path, file: &File) -> Result<(), DiskError> {
    let unfit = |why: String| DiskError::Unfit { guest: guest.clone(), path: path.to_owned(), why };
    let length = check_kind(guest, disk, path, file)?;
    let found = match disk.format {
        DiskFormat::Raw => length,
        DiskFormat::Qcow2 if disk.over => qcow2::read_over(file).map_err(|why| unfit(why.to_string()))?.0,
        DiskFormat::Qcow2 => qcow2::read(file).map_err(|why| unfit(why.to_string()))?,
    };
    let wanted = disk.size.bytes();
    if found == wanted { Ok(()) } else { Err(unfit(format!("it is a disk of {found} bytes, not of {wanted}"))) }
}

/// That it is a plain file with one name, or a block device if it is to be one; its length.
fn check_kind(guest: &GuestName, disk: &Disk, path: &Path, file: &File) -> Result<u64, DiskError> {
    let metadata = file.metadata().map_err(DiskError::io("look at", path))?;
    let (fits, other) = match disk.place {
        DiskPlace::Device(_) => (metadata.file_type().is_block_device(), "it is no block device"),
        _ => (metadata.is_file() && metadata.nlink() == 1, "it is no plain file with one name"),
    };
    if fits {
        return length(file).map_err(DiskError::io("look at", path));
    }
    Err(DiskError::Unfit { guest: guest.clone(), path: path.to_owned(), why: other.to_owned() })
}

#[cfg(test)]
mod tests;
