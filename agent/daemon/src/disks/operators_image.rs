//! The image that a disk begins as: a file that an operator names, under the rule that a guest's kernel is under. The agent may read
//! everything, and a guest sees its disk; so only what everybody may read becomes one.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Component, Path},
};

use throughline_cutover::{Disk, DiskFormat};

use super::qcow2;

/// May be read by others than owner and group.
const BY_ALL: u32 = 0o004;
/// What lengths of disks are counted in, bytes.
const SECTOR: u64 = 512;

/// Opens the disk's image, which is a disk on its own and no longer than it. The error is in words for the operator.
pub(super) fn open(disk: &Disk) -> Result<File, String> {
    let file = open_public(Path::new(&disk.image)).map_err(|error| error.to_string())?;
    let size = match disk.format {
        DiskFormat::Raw => file.metadata().map_err(|error| error.to_string())?.len().next_multiple_of(SECTOR),
        DiskFormat::Qcow2 => qcow2::read(&file).map_err(|error| error.to_string())?.size,
    };
    if size > disk.size.bytes() {
        return Err(format!("it is a disk of {size} bytes, this one has {}; give it at least that", disk.size.bytes()));
    }
    Ok(file)
}

fn open_public(path: &Path) -> io::Result<File> {
    let leads_down = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !leads_down {
        return Err(io::Error::other("give an absolute path without `..`"));
    }
    // Looked at before it is opened: to open a device may do something.
    let found = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let metadata = found.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if metadata.mode() & BY_ALL == 0 {
        return Err(io::Error::other(
            "not everybody may read it, so no guest gets it; if it is no secret, chmod o+r it",
        ));
    }
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}
