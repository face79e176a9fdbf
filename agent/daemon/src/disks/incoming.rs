//! A disk that comes from another host: beside what is the guest's until it is decided whose the guest is. If the guest stays
//! where it is, what came may be put aside, and a next try goes on from there.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use throughline_cutover::{Disk, DiskFormat, DiskPlace, GuestName};

use super::{
    CopyId, DiskError, Store, check, check_kind, elsewhere,
    folder::{Coming, Folder, State, coming_name, kept_name},
    lock, open_to_write, qcow2, space,
};

/// How long a part waits for the next try.
const PART_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// A file that a disk is copied to.
#[derive(Debug)]
pub struct Received {
    /// It, for the guest's QEMU; see [`Store::open_disk`].
    pub file: File,
    /// What the disk is over.
    pub image: Option<File>,
    /// The copying it is of: the one that was asked for, or the one that it goes on with.
    pub continued: bool,
}

impl Store {
    /// Has a file for a guest's disk to be copied to: that of the copying `begun_by`, if there is one, else a blank one, of the
    /// copying `copy`; all others of that disk are removed. `used`: bytes that the disk takes where it is, see [`Store::used`]. A block
    /// device is this host's, and to be written over, from its beginning each time; a disk that is `over` its image is made so here; a
    /// shared disk is the guest's very one, which its QEMU at the source has locked, and is written by nobody but it.
    ///
    /// # Errors
    /// [`DiskError::Space`], [`DiskError::Tool`], [`DiskError::Place`], [`DiskError::NoLock`]; [`DiskError::Exists`] if a disk is kept here for a
    /// guest of that name; [`DiskError::InUse`] if a QEMU of an earlier attempt has not ended; those of [`Store::open_image`].
    pub fn receive(
        &self,
        guest: &GuestName,
        disk: &Disk,
        used: u64,
        copy: &CopyId,
        begun_by: Option<&CopyId>,
    ) -> Result<Received, DiskError> {
        let folder = Folder::make(&self.directory, guest)?;
        folder.check_free(disk)?;
        let mut part = None;
        for came in folder.coming(Some(disk))? {
            folder.check_unused(&came.name)?;
            let whole = came.state != State::Doubtful && may_go_on(disk, &folder, &came)?;
            let wanted = begun_by == Some(&came.copy) && whole && part.is_none();
            if wanted { part = Some(came) } else { folder.unlink(&came.name)? }
        }
        if let Some(part) = part
            && let Some(file) = go_on(guest, disk, &folder, &part, used)?
        {
            return Ok(Received { image: self.open_image(guest, disk, &file)?, file, continued: true });
        }
        let name = coming_name(disk, copy, State::Incoming);
        let file = match self.elsewhere.of(guest, disk)? {
            Some(target) => self.receive_elsewhere(guest, disk, &folder, &target, &name)?,
            None => {
                space::check(guest, disk, folder.path(), used)?;
                let half = folder.begin(disk)?;
                self.blank(guest, disk, &half)?;
                lock(guest, disk, half.file())?;
                half.finish(&name)?
            }
        };
        if !disk.goes_along()
            && !elsewhere::is_locked(&file).map_err(DiskError::io("look for locks of", folder.path()))?
        {
            return Err(DiskError::NoLock {
                guest: guest.clone(),
                disk: disk.name.clone(),
                path: folder.path().join(name),
            });
        }
        Ok(Received { image: self.open_image(guest, disk, &file)?, file, continued: false })
    }

    /// Has a file for the file of a stopped guest's disk to be copied to, byte for byte: what came of it before, if anything did, for
    /// the two are compared all the same; all others of that disk are removed. It is of the copying `copy` from now on, and of no other:
    /// what a mirror that is gone on with relies on is not there any more.
    ///
    /// # Errors
    /// As [`Store::receive`].
    pub fn receive_file(&self, guest: &GuestName, disk: &Disk, used: u64, copy: &CopyId) -> Result<File, DiskError> {
        let folder = Folder::make(&self.directory, guest)?;
        folder.check_free(disk)?;
        let mut part = None;
        for came in folder.coming(Some(disk))? {
            folder.check_unused(&came.name)?;
            let wanted = part.is_none() && may_go_on(disk, &folder, &came)?;
            if wanted { part = Some(came) } else { folder.unlink(&came.name)? }
        }
        let name = coming_name(disk, copy, State::Incoming);
        let Some(part) = part else {
            if let Some(target) = self.elsewhere.of(guest, disk)? {
                return self.receive_elsewhere(guest, disk, &folder, &target, &name);
            }
            space::check(guest, disk, folder.path(), used)?;
            let half = folder.begin(disk)?;
            lock(guest, disk, half.file())?;
            return half.finish(&name);
        };
        let path = folder.path().join(&part.name);
        let file = open_to_write(&path)?;
        check_kind(guest, disk, &path, &file)?;
        let there = space::allocated(&file.metadata().map_err(DiskError::io("look at", &path))?);
        space::check(guest, disk, folder.path(), used.saturating_sub(there))?;
        lock(guest, disk, &file)?;
        folder.rename(&part.name, &name)?;
        folder.sync()?;
        Ok(file)
    }

    /// That a file which was copied byte for byte is the disk's.
    ///
    /// # Errors
    /// [`DiskError::Unfit`].
    pub fn check_received(&self, guest: &GuestName, disk: &Disk, copy: &CopyId, file: &File) -> Result<(), DiskError> {
        let name = coming_name(disk, copy, State::Incoming);
        check(guest, disk, &self.directory.join(guest.as_str()).join(name), file)
    }

    /// A link to where a disk is here, which is what it should be and nobody else's; it, open.
    fn receive_elsewhere(
        &self,
        guest: &GuestName,
        disk: &Disk,
        folder: &Folder,
        target: &Path,
        name: &str,
    ) -> Result<File, DiskError> {
        self.check_device_free(guest, disk, target)?;
        let file = elsewhere::open_target(guest, disk, target)?;
        check(guest, disk, target, &file)?;
        folder.link(disk, target, name)?;
        Ok(file)
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
        let mut came = Vec::new();
        for disk in disks {
            match (folder.has(disk)?, folder.incoming(disk)?) {
                (true, None) => {}
                (false, Some(incoming)) => came.push((incoming, disk)),
                (true, Some(_)) => folder.check_free(disk)?,
                (false, None) => return Err(missing(disk)),
            }
        }
        for (incoming, disk) in came {
            folder.rename(&incoming.name, &kept_name(disk))?;
        }
        folder.sync()
    }

    /// The guest is not this host's, and its QEMU here has ended. What came is put aside for the next try; of one that `ended_badly`
    /// only what needs no QEMU to be whole: raw disks. Nothing happens if nothing came.
    ///
    /// # Errors
    /// [`DiskError::InUse`], and then all of it stays; or the system's, and then it is to be called again.
    pub fn put_aside(&self, guest: &GuestName, ended_badly: bool) -> Result<(), DiskError> {
        self.decide_against(guest, |folder, came| match came.state {
            State::Incoming if !ended_badly || came.needs_no_qemu() => folder.rename(&came.name, &came.as_part()),
            State::Incoming | State::Doubtful => folder.unlink(&came.name),
            _ => Ok(()),
        })
    }

    /// The same, and nothing of what came stays, now or in an earlier try.
    ///
    /// # Errors
    /// As [`Store::put_aside`].
    pub fn discard_incoming(&self, guest: &GuestName) -> Result<(), DiskError> {
        self.decide_against(guest, |folder, came| folder.unlink(&came.name))
    }

    fn decide_against(
        &self,
        guest: &GuestName,
        mut fate: impl FnMut(&Folder, &Coming) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let Some(folder) = Folder::find(&self.directory, guest)? else { return Ok(()) };
        let came = folder.coming(None)?;
        came.iter().try_for_each(|it| folder.check_unused(&it.name))?;
        came.iter().try_for_each(|it| fate(&folder, it))?;
        folder.remove_half_made()?;
        folder.dissolve(&self.directory)
    }

    /// Removes parts that no try came back for within a day.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_old_parts(&self) -> Result<(), DiskError> {
        self.remove_parts(SystemTime::now().checked_sub(PART_KEPT))
    }

    /// The host was down: what was coming may have lost what was not synced.
    pub(super) fn doubt_what_was_coming(&self) -> Result<(), DiskError> {
        for guest in self.guests()? {
            let Some(folder) = self.folder_of(&guest) else { continue };
            for came in folder.coming(None)?.into_iter().filter(|it| it.state == State::Incoming) {
                folder.rename(&came.name, &came.as_doubtful())?;
            }
            folder.sync()?;
        }
        Ok(())
    }

    /// Removes parts that were last written before that, or all.
    pub(super) fn remove_parts(&self, before: Option<SystemTime>) -> Result<(), DiskError> {
        for guest in self.guests()? {
            let Some(folder) = self.folder_of(&guest) else { continue };
            for part in folder.coming(None)?.into_iter().filter(|it| it.state == State::Part) {
                let path = folder.path().join(&part.name);
                let written = path.symlink_metadata().and_then(|found| found.modified());
                let written = written.map_err(DiskError::io("look at", &path))?;
                if before.is_none_or(|before| written < before) {
                    folder.unlink(&part.name)?;
                }
            }
            folder.dissolve(&self.directory)?;
        }
        Ok(())
    }
}

impl Coming {
    fn is_of(&self, disk: &Disk) -> bool {
        self.kept == kept_name(disk)
    }

    /// What was written to a raw disk is in its file; of a qcow2 one its QEMU may have had in its memory where.
    fn needs_no_qemu(&self) -> bool {
        self.kept.ends_with(DiskFormat::Raw.as_str())
    }
}

/// Whether what came of a disk is of use to a next try: not what is elsewhere, which another may have written since, or which is the
/// guest's own.
fn may_go_on(disk: &Disk, folder: &Folder, came: &Coming) -> Result<bool, DiskError> {
    let is_here = elsewhere::led_to(&folder.path().join(&came.name))?.is_none();
    Ok(came.is_of(disk) && disk.place == DiskPlace::Directory && is_here)
}

/// Opens a part to go on with it; `None`: it cannot be, and is gone.
fn go_on(guest: &GuestName, disk: &Disk, folder: &Folder, part: &Coming, used: u64) -> Result<Option<File>, DiskError> {
    let path = folder.path().join(&part.name);
    let file = open_to_write(&path)?;
    let over_none = || qcow2::read_over(&file).is_ok_and(|(_, sum)| sum.is_none());
    if check(guest, disk, &path, &file).is_err() || (disk.over && over_none()) {
        folder.unlink(&part.name)?;
        return Ok(None);
    }
    let there = file.metadata().map_err(DiskError::io("look at", &path))?.blocks() * space::BLOCK;
    space::check(guest, disk, folder.path(), used.saturating_sub(there))?;
    lock(guest, disk, &file)?;
    folder.rename(&part.name, &part.as_incoming())?;
    folder.sync()?;
    Ok(Some(file))
}
