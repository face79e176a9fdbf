//! Replicas of guests that run elsewhere: files like guests', in a store of their own beside them, each replica's under its id. When
//! one is promoted its files become its guest's, by their names alone.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    time::{SystemTime, UNIX_EPOCH},
};

use throughline_cutover::{Disk, DiskFormat, GuestName, ReplicaId};

use super::{
    DiskError, Store, check,
    folder::{Folder, kept_name},
    lock,
    make::tool_failed,
    open_to_write, space,
};

/// Where they are, in the directory of guests' disks; no guest has such a name.
const DIRECTORY: &str = ".replicas";

/// Replicas that this host keeps.
#[derive(Debug, Clone)]
pub struct Replicas(Store);

/// A guest's disks as its replica has them: whatever they were, qcow2, and not made from an image.
pub fn as_kept(disks: &[Disk]) -> Vec<Disk> {
    disks.iter().map(|disk| Disk { format: DiskFormat::Qcow2, image: String::new(), ..disk.clone() }).collect()
}

/// What its directory is called.
fn folder_name(id: &ReplicaId) -> GuestName {
    id.as_str().parse().expect("both are names of one form")
}

impl Store {
    /// The replicas kept beside these disks.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_replicas(&self) -> Result<Replicas, DiskError> {
        let store = Self { directory: self.directory.join(DIRECTORY), tools: self.tools };
        store.clear_up().map(|()| Replicas(store))
    }

    /// A file that has no name, for what a guest overwrites while a point of its replica is sent.
    ///
    /// # Errors
    /// The system's; [`DiskError::Space`].
    pub fn aside(&self, guest: &GuestName, disk: &Disk) -> Result<File, DiskError> {
        space::check(guest, disk, &self.directory, 0)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
        options.open(&self.directory).map_err(DiskError::io("make a file in", &self.directory))
    }

    /// Makes a replica's files, as they were at the point of which `is_point` says so by its name, the disks of its guest. What was here under that guest's name is put aside, and
    /// nobody but an operator removes that. To be called again if it failed, and after a crash, also with another point. No QEMU has the files.
    ///
    /// # Errors
    /// [`DiskError::Missing`] if there is no such replica, [`DiskError::InUse`], [`DiskError::Point`] if it has no such point: the guest has then
    /// what it had.
    pub fn promote(
        &self,
        replicas: &Replicas,
        id: &ReplicaId,
        guest: &GuestName,
        disks: &[Disk],
        is_point: impl Fn(&str) -> bool,
    ) -> Result<(), DiskError> {
        let disks = as_kept(disks);
        let missing = |disk: &Disk| DiskError::Missing { guest: guest.clone(), disk: disk.name.clone() };
        let folder = Folder::make(&self.directory, guest)?;
        let Some(from) = Folder::find(&replicas.0.directory, &folder_name(id))? else {
            return disks.first().map_or(Ok(()), |disk| Err(missing(disk)));
        };
        // All of them, before the first is moved: what was moved by a call that broke off goes back to the point where it is.
        for disk in &disks {
            let is_here = if from.has(disk)? { &from } else { &folder };
            if !is_here.has(disk)? {
                return Err(missing(disk));
            }
            let path = is_here.kept(disk);
            let file = open_to_write(&path)?;
            check(guest, disk, &path, &file)?;
            lock(guest, disk, &file)?;
            let failed = |error| tool_failed(guest, disk)(error);
            let points = self.tools.points(&file).map_err(failed)?;
            let no_such = || DiskError::Point { guest: guest.clone(), disk: disk.name.clone(), path: path.clone() };
            let point = points.iter().find(|name| is_point(name)).ok_or_else(no_such)?;
            self.tools.go_back(&file, point).map_err(failed)?;
            file.sync_all().map_err(DiskError::io("write down", &path))?;
        }
        for disk in &disks {
            if from.has(disk)? {
                put_aside(&folder, disk)?;
                let (kept, here) = (from.kept(disk), folder.kept(disk));
                fs::rename(&kept, &here).map_err(DiskError::io("rename", &kept))?;
            }
        }
        folder.sync()?;
        from.sync()
    }

    /// Forgets the points that promoted disks still have: they take room, and make the guest's writes slower. Its QEMU does not run.
    ///
    /// # Errors
    /// [`DiskError::InUse`], [`DiskError::Tool`].
    pub fn forget_points(&self, guest: &GuestName, disks: &[Disk]) -> Result<(), DiskError> {
        for disk in disks {
            let file = self.open_disk(guest, disk)?;
            let failed = |error| tool_failed(guest, disk)(error);
            for point in self.tools.points(&file).map_err(failed)? {
                self.tools.forget_point(&file, &point).map_err(failed)?;
            }
        }
        Ok(())
    }
}

impl Replicas {
    /// All of which there is anything, in order.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<ReplicaId>, DiskError> {
        let folders = self.0.guests()?;
        Ok(folders.iter().filter_map(|name| name.as_str().parse().ok()).collect())
    }

    /// The files of a replica's disks, for its keeper; blank ones where there are none.
    ///
    /// # Errors
    /// Those of [`Store::create`] and [`Store::open_disk`].
    pub fn open(&self, id: &ReplicaId, disks: &[Disk]) -> Result<Vec<File>, DiskError> {
        let name = folder_name(id);
        let open = |disk: &Disk| {
            self.0.create(&name, disk)?;
            self.0.open_disk(&name, disk)
        };
        as_kept(disks).iter().map(open).collect()
    }

    /// That a host with little room takes no more.
    ///
    /// # Errors
    /// [`DiskError::Space`].
    pub fn check_room(&self, id: &ReplicaId, disks: &[Disk]) -> Result<(), DiskError> {
        let name = folder_name(id);
        disks.iter().try_for_each(|disk| space::check(&name, disk, &self.0.directory, 0))
    }

    /// Removes all there is of a replica. Nothing happens if nothing is there.
    ///
    /// # Errors
    /// [`DiskError::InUse`] while its keeper runs; or the system's.
    pub fn remove(&self, id: &ReplicaId) -> Result<(), DiskError> {
        self.0.remove(&folder_name(id))
    }
}

/// What is there of a disk: kept under a name that nobody takes for the guest's; what came in part is nobody's any more.
fn put_aside(folder: &Folder, disk: &Disk) -> Result<(), DiskError> {
    for came in folder.coming(Some(disk))? {
        folder.check_unused(&came.name)?;
        folder.unlink(&came.name)?;
    }
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let before = Disk { format, ..disk.clone() };
        if folder.has(&before)? {
            let name = kept_name(&before);
            folder.check_unused(&name)?;
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            folder.rename(&name, &format!("{name}.before-failover-{at}"))?;
            tracing::warn!(folder = %folder.path().display(), file = name, at, "a disk from before the failover is put aside, as FILE.before-failover-AT");
        }
    }
    Ok(())
}
