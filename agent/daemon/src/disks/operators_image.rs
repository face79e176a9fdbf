//! The image that a disk begins as: a file that an operator names, under the rule that a guest's kernel is under. The agent may read
//! everything, and a guest sees its disk; so only what everybody may read becomes one.

use std::{fs::File, path::Path};

use throughline_cutover::{Disk, DiskFormat};
use throughline_hypervisor::open_public;

use super::qcow2;

/// What lengths of disks are counted in, bytes.
const SECTOR: u64 = 512;

/// Opens the disk's image, which is a disk on its own and no longer than it. The error is in words for the operator.
pub(super) fn open(disk: &Disk) -> Result<File, String> {
    let file = open_public(Path::new(&disk.image)).map_err(|error| error.to_string())?;
    let size = match disk.format {
        DiskFormat::Raw => file.metadata().map_err(|error| error.to_string())?.len().next_multiple_of(SECTOR),
        DiskFormat::Qcow2 => qcow2::read(&file).map_err(|error| error.to_string())?,
    };
    if size > disk.size.bytes() {
        return Err(format!("it is a disk of {size} bytes, this one has {}; give it at least that", disk.size.bytes()));
    }
    Ok(file)
}
