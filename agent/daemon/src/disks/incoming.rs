//! A disk that comes from another host: beside what is the guest's until it is decided whose the guest is.

use std::fs::{self, File};

use throughline_cutover::{Disk, GuestName};

use super::{
    DiskError, Store,
    folder::{self, Folder, State},
    lock, space,
};

impl Store {
    /// Makes the blank file that a guest's disk is copied to, in place of one that an earlier attempt left, and opens it for the
    /// guest's QEMU; see [`Store::open_disk`]. `used`: bytes that the disk takes where it is, see [`Store::used`].
    ///
    /// # Errors
    /// [`DiskError::Space`], [`DiskError::Tool`]; [`DiskError::Exists`] if a disk is kept here for a guest of that name; [`DiskError::InUse`] if
    /// a QEMU of an earlier attempt has not ended.
    pub fn receive(&self, guest: &GuestName, disk: &Disk, used: u64) -> Result<File, DiskError> {
        let folder = Folder::make(&self.directory, guest)?;
        folder.check_free(disk)?;
        discard(&folder, Some(disk))?;
        space::check(guest, disk, folder.path(), used)?;
        let half = folder.begin(disk)?;
        self.blank(guest, disk, &half)?;
        lock(guest, disk, half.file())?;
        half.finish(disk, State::Incoming)
    }

    /// The guest is this host's: what came is kept. `disks` are all of it. To be called again if it failed, and after a crash.
    ///
    /// # Errors
    /// [`DiskError::Missing`] if one neither came nor is kept: nothing is changed then.
    pub fn keep(&self, guest: &GuestName, disks: &[Disk]) -> Result<(), DiskError> {
        let missing = |disk: &Disk| DiskError::Missing { guest: guest.clone(), disk: disk.name.clone() };
        let Some(folder) = Folder::find(&self.directory, guest)? else {
            return disks.first().map_or(Ok(()), |disk| Err(missing(disk)));
        };
        for disk in disks {
            match (folder.has(disk, State::Kept)?, folder.has(disk, State::Incoming)?) {
                (true, false) | (false, true) => {}
                (true, true) => folder.check_free(disk)?,
                (false, false) => return Err(missing(disk)),
            }
        }
        for disk in disks {
            let incoming = folder.path_of(disk, State::Incoming);
            if incoming.exists() {
                fs::rename(&incoming, folder.path_of(disk, State::Kept)).map_err(DiskError::io("keep", &incoming))?;
            }
        }
        folder.sync()
    }

    /// The guest is not this host's: nothing of what came stays. Nothing happens if nothing came. Its QEMU has ended.
    ///
    /// # Errors
    /// [`DiskError::InUse`], and then all of it stays; or the system's, and then it is to be called again.
    pub fn discard_incoming(&self, guest: &GuestName) -> Result<(), DiskError> {
        let Some(folder) = Folder::find(&self.directory, guest)? else { return Ok(()) };
        discard(&folder, None)?;
        folder.remove_half_made()?;
        folder.dissolve(&self.directory)
    }
}

/// Removes what came, of one disk (whatever format it had) or of all.
fn discard(folder: &Folder, only: Option<&Disk>) -> Result<(), DiskError> {
    let mut files = folder.files_in(State::Incoming)?;
    if let Some(disk) = only {
        files.retain(|name| folder::is_of(name, disk));
    }
    files.iter().try_for_each(|name| folder.check_unused(name))?;
    files.iter().try_for_each(|name| folder.unlink(name))
}
