//! Disks that are not files of the guest's directory: block devices, and files on storage that hosts have in common. Each is a link
//! there, which comes, is kept and goes by the same names as a file would; what it leads to is never moved, and is removed only with a
//! guest that is deleted with its disks, and then only a file.
//!
//! Whether two hosts have the same storage under one name is seen by what one has written there for the other to find; whether that
//! storage tells one host of another's locks, by the lock that the source's QEMU has on its image; and that a block device is not the
//! very one it is to be copied from, by what the kernel knows it by.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, openat2},
    sys::stat::{major, minor},
};
use throughline_cutover::{Disk, DiskPlace, GuestName, HostName, PlaceName};

use super::{DiskError, children, folder::kept_name};

/// What a host leaves on shared storage for another to find is called this, and its name and the disk's after it.
const PROOF: &str = ".throughline-";
/// Longest that is read of one, and of what a kernel knows a device by, bytes.
const LONGEST: u64 = 256;
/// Where that is, below a device's directory in sysfs: the World Wide Identifier of a disk (NVMe's, SCSI's), and the device mapper's
/// UUID, which of a logical volume is the same wherever its group is seen.
const KNOWN_BY: [&str; 3] = ["wwid", "device/wwid", "dm/uuid"];
/// Bytes of an image by which QEMU locks it (block/file-posix.c, `RAW_LOCK_PERM_BASE` and on): those of what it does, and of what it lets
/// others do.
const LOCKED: (i64, i64) = (100, 200);

/// What this host has under the names by which hosts know devices and storage.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    host: HostName,
    devices: Option<PathBuf>,
    shared: BTreeMap<PlaceName, PathBuf>,
}

impl Elsewhere {
    /// Of a host: where its block devices are, by name, and where its shared storage is mounted.
    pub fn new(host: HostName, devices: Option<PathBuf>, shared: BTreeMap<PlaceName, PathBuf>) -> Self {
        Self { host, devices, shared }
    }

    /// Where a disk is that is not in the guest's directory, or is to be; `None`: it is in there.
    ///
    /// # Errors
    /// [`DiskError::Place`] if this host has nothing under that name.
    pub(super) fn of(&self, guest: &GuestName, disk: &Disk) -> Result<Option<PathBuf>, DiskError> {
        match &disk.place {
            DiskPlace::Directory => Ok(None),
            DiskPlace::Device(name) => {
                let devices = self.devices.as_ref();
                let path = devices.ok_or_else(|| not_here(guest, disk, "no --device-dir"))?.join(name.as_str());
                let is_device = path.metadata().is_ok_and(|found| found.file_type().is_block_device());
                if is_device {
                    Ok(Some(path))
                } else {
                    Err(not_here(guest, disk, &format!("no block device {}", path.display())))
                }
            }
            DiskPlace::Shared(name) => {
                Ok(Some(self.mount(guest, disk, name)?.join(guest.as_str()).join(kept_name(disk))))
            }
        }
    }

    /// Where shared storage is.
    fn mount(&self, guest: &GuestName, disk: &Disk, name: &PlaceName) -> Result<&Path, DiskError> {
        let unknown = || not_here(guest, disk, &format!("no --shared {name}=DIR"));
        self.shared.get(name).map(PathBuf::as_path).ok_or_else(unknown)
    }

    /// What another host can tell by whether a disk of its own is this very one: of a shared disk, what is written beside it, anew each
    /// time, so that no copy of that storage has it; of a block device, what the kernel knows it by.
    ///
    /// # Errors
    /// [`DiskError::Place`]; the system's.
    pub(super) fn prove(&self, guest: &GuestName, disk: &Disk) -> Result<String, DiskError> {
        let path = match &disk.place {
            DiskPlace::Directory => return Ok(String::new()),
            DiskPlace::Device(_) => {
                return Ok(self.of(guest, disk)?.map_or_else(String::new, |device| known_by(&device)));
            }
            DiskPlace::Shared(name) => self.proof(guest, disk, name, &self.host)?,
        };
        let (token, half) = (uuid::Uuid::new_v4().to_string(), path.with_extension("new"));
        let mut options = OpenOptions::new();
        let made =
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&half);
        let mut file = made.map_err(DiskError::io("make", &half))?;
        let written = file.write_all(token.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(DiskError::io("write", &half))?;
        fs::rename(&half, &path).map_err(DiskError::io("rename", &half))?;
        Ok(token)
    }

    /// That a shared disk is the same one here as where `source` proves it, and a block device another one.
    ///
    /// # Errors
    /// [`DiskError::OtherStorage`], [`DiskError::SameDevice`]; as [`Elsewhere::prove`].
    pub(super) fn check(
        &self,
        guest: &GuestName,
        disk: &Disk,
        source: &HostName,
        proof: &str,
    ) -> Result<(), DiskError> {
        let (guest, name) = (guest.clone(), disk.name.clone());
        match &disk.place {
            DiskPlace::Directory => Ok(()),
            DiskPlace::Device(_) => {
                let path = self.of(&guest, disk)?.unwrap_or_default();
                let same = !proof.is_empty() && known_by(&path) == proof;
                if same { Err(DiskError::SameDevice { guest, disk: name, path }) } else { Ok(()) }
            }
            DiskPlace::Shared(storage) => {
                let path = self.proof(&guest, disk, storage, source)?;
                let same = !proof.is_empty() && read(&path)?.as_deref() == Some(proof);
                if same {
                    Ok(())
                } else {
                    Err(DiskError::OtherStorage { guest, disk: name, writer: source.clone(), path })
                }
            }
        }
    }

    fn proof(&self, guest: &GuestName, disk: &Disk, name: &PlaceName, of: &HostName) -> Result<PathBuf, DiskError> {
        Ok(self.mount(guest, disk, name)?.join(guest.as_str()).join(format!("{PROOF}{of}-{}", disk.name)))
    }
}

fn not_here(guest: &GuestName, disk: &Disk, what: &str) -> DiskError {
    DiskError::Place { guest: guest.clone(), disk: disk.name.clone(), what: what.to_owned() }
}

/// What the kernel knows a block device by, whichever host sees it; empty: by nothing.
fn known_by(device: &Path) -> String {
    let Ok(found) = device.metadata() else { return String::new() };
    let (major, minor) = (major(found.rdev()), minor(found.rdev()));
    said_in(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))
}

fn said_in(sysfs: &Path) -> String {
    let known = KNOWN_BY.iter().find_map(|name| read(&sysfs.join(name)).ok().flatten());
    known.map(|known| known.trim().to_owned()).unwrap_or_default()
}

/// The beginning of a small file; `None`: there is none, or nothing in it.
fn read(path: &Path) -> Result<Option<String>, DiskError> {
    let mut options = OpenOptions::new();
    let file = match options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(DiskError::io("open", path))?,
    };
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(DiskError::io("read", path))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// What a file in a guest's directory leads to; `None`: to nothing, it is the disk itself, or not there.
pub(super) fn led_to(path: &Path) -> Result<Option<PathBuf>, DiskError> {
    match fs::read_link(path) {
        Ok(target) => Ok(Some(target)),
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(DiskError::io("look at", path)(error)),
    }
}

/// Opens where a disk is that is elsewhere.
///
/// A block device is then this process's alone, and that of whoever it gives the descriptor, as far as all who have it open so, the
/// kernel's mounts among them, keep to that (open(2), `O_EXCL`). On shared storage no link is followed: who may write there is not to say
/// which file of this host's is a disk.
pub(super) fn open_target(guest: &GuestName, disk: &Disk, target: &Path) -> Result<File, DiskError> {
    let open = || match disk.place {
        DiskPlace::Device(_) => {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(target)
        }
        _ => open_beneath(target),
    };
    let is_busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
    match children::outlasted(open, |opened| opened.as_ref().is_err_and(is_busy)) {
        Err(error) if is_busy(&error) => {
            Err(DiskError::InUse { guest: guest.clone(), file: target.display().to_string() })
        }
        result => result.map_err(DiskError::io("open", target)),
    }
}

/// Opens a file of a guest's directory on shared storage: the last two names of its path are taken as they are.
fn open_beneath(target: &Path) -> io::Result<File> {
    let mount = target.ancestors().nth(2).ok_or(io::ErrorKind::InvalidInput)?;
    let beneath = target.strip_prefix(mount).map_err(io::Error::other)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(&File::open(mount)?, beneath, how)?.into())
}

/// Removes the file that a link leads to, and its directory if nothing else of the guest's is in it. Nothing happens to a block device.
///
/// # Errors
/// [`DiskError::InUse`] if a QEMU has it, on whatever host: a guest of that name may have come into being there since.
pub(super) fn remove_target(guest: &GuestName, target: &Path) -> Result<(), DiskError> {
    match target.symlink_metadata() {
        Ok(found) if found.is_file() => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(DiskError::io("look at", target)(error)),
        _ => return Ok(()),
    }
    let file = open_beneath(target).map_err(DiskError::io("open", target))?;
    if is_locked(&file).map_err(DiskError::io("look for locks of", target))? {
        return Err(DiskError::InUse { guest: guest.clone(), file: target.display().to_string() });
    }
    fs::remove_file(target).map_err(DiskError::io("remove", target))?;
    let Some(folder) = target.parent() else { return Ok(()) };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(PROOF)) {
            let _stays = fs::remove_file(entry.path());
        }
    }
    // Others of the guest's may be in it.
    let _stays = fs::remove_dir(folder);
    Ok(())
}

/// Whether some QEMU, on whatever host, has that image open to write, as far as the storage tells.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: LOCKED.0,
        l_len: LOCKED.1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Bytes that a file or a block device has.
pub fn length(file: &File) -> io::Result<u64> {
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Whether it is a block device.
pub fn is_device(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_what_all_hosts_know_it_by() {
        let sysfs = std::env::temp_dir().join(format!("throughline-sysfs-{}", std::process::id()));
        fs::create_dir_all(sysfs.join("dm")).unwrap();
        assert_eq!(said_in(&sysfs), "", "a loop device, say");
        fs::write(sysfs.join("dm/uuid"), "LVM-abc\n").unwrap();
        assert_eq!(said_in(&sysfs), "LVM-abc");
        fs::write(sysfs.join("wwid"), "naa.5000c500\n").unwrap();
        assert_eq!(said_in(&sysfs), "naa.5000c500");
        fs::remove_dir_all(&sysfs).unwrap();
    }
}
