//! Replicas of guests that run elsewhere: files like guests', in a store of their own beside them, each replica's under its id. When
//! one is promoted its files become its guest's, by their names alone.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    time::{SystemTime, UNIX_EPOCH},
};

use throughline_confine::private_dir;
use throughline_cutover::{Disk, DiskFormat, DiskPlace, GuestName, ReplicaId};

use super::{
    DiskError, Store,
    folder::{Folder, kept_name},
    make::tool_failed,
    space,
};

/// Where they are, in the directory of guests' disks; no guest has such a name.
const DIRECTORY: &str = ".replicas";

/// Replicas that this host keeps.
#[derive(Debug, Clone)]
pub struct Replicas(pub(super) Store);

/// A guest's disks as its replica has them: whatever and wherever they were, qcow2, and not made from an image.
pub fn as_kept(disks: &[Disk]) -> Vec<Disk> {
    let as_kept = |disk: &Disk| Disk {
        format: DiskFormat::Qcow2,
        image: String::new(),
        place: DiskPlace::Directory,
        over: false,
        ..disk.clone()
    };
    disks.iter().map(as_kept).collect()
}

/// What its directory is called.
pub(super) fn folder_name(id: &ReplicaId) -> GuestName {
    id.as_str().parse().expect("both are names of one form")
}

impl Store {
    /// The replicas kept beside these disks.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_replicas(&self) -> Result<Replicas, DiskError> {
        let store = Self { directory: self.directory.join(DIRECTORY), ..self.clone() };
        private_dir(&store.directory)?;
        store.clear_up().map(|()| Replicas(store))
    }

    /// That there is room for what a guest overwrites while a point of its replica is sent: guests' own disks come first.
    ///
    /// # Errors
    /// [`DiskError::Space`].
    pub fn check_aside(&self, guest: &GuestName, disk: &Disk) -> Result<(), DiskError> {
        space::check(guest, disk, &self.directory, 0)
    }

    /// A file that has no name, for what a guest overwrites while a point of its replica is sent, or writes in a test of one.
    ///
    /// # Errors
    /// The system's; [`DiskError::Space`].
    pub fn aside(&self, guest: &GuestName, disk: &Disk) -> Result<File, DiskError> {
        self.check_aside(guest, disk)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
        options.open(&self.directory).map_err(DiskError::io("make a file in", &self.directory))
    }

    /// Makes a replica's files, as they were at a point that `is_point` knows by its name, the disks of its guest. What was here under that
    /// guest's name is put aside, and nobody but an operator removes that. To be called again if it failed, and after a crash, also with
    /// another point. No QEMU has the files.
    ///
    /// # Errors
    /// [`DiskError::Missing`] if there is no such replica, [`DiskError::InUse`], [`DiskError::Point`] if not all disks have it: nothing is
    /// changed then. [`DiskError::Tool`].
    pub fn promote(
        &self,
        replicas: &Replicas,
        id: &ReplicaId,
        guest: &GuestName,
        disks: &[Disk],
        is_point: impl Fn(&str) -> bool,
    ) -> Result<(), DiskError> {
        let disks = as_kept(disks);
        let places = Places::find(self, replicas, id, guest)?;
        // Until they are the guest's nobody else opens them.
        let files = disks.iter().map(|disk| places.open(self, guest, disk)).collect::<Result<Vec<_>, _>>()?;
        let points = self.points_of(guest, &disks, &files)?;
        let point =
            points.into_iter().rfind(|name| is_point(name)).ok_or_else(|| DiskError::Point { guest: guest.clone() })?;
        for (disk, file) in disks.iter().zip(&files) {
            self.tools.go_back(file, &point).map_err(tool_failed(guest, disk))?;
            file.sync_all().map_err(DiskError::io("write down", &places.folder.kept(disk)))?;
        }
        disks.iter().try_for_each(|disk| places.move_in(disk))?;
        places.sync()
    }

    /// Names of the points that a replica's disks have, all of them, wherever a promotion that broke off has left each. No QEMU has the files.
    ///
    /// # Errors
    /// As [`Store::promote`].
    pub fn points_left(
        &self,
        replicas: &Replicas,
        id: &ReplicaId,
        guest: &GuestName,
        disks: &[Disk],
    ) -> Result<Vec<String>, DiskError> {
        let disks = as_kept(disks);
        let places = Places::find(self, replicas, id, guest)?;
        let files = disks.iter().map(|disk| places.open(self, guest, disk)).collect::<Result<Vec<_>, _>>()?;
        self.points_of(guest, &disks, &files)
    }

    /// Names of the snapshots that all of these files have.
    fn points_of(&self, guest: &GuestName, disks: &[Disk], files: &[File]) -> Result<Vec<String>, DiskError> {
        let mut common: Option<Vec<String>> = None;
        for (disk, file) in disks.iter().zip(files) {
            let points = self.tools.points(file).map_err(tool_failed(guest, disk))?;
            common = Some(match common {
                None => points,
                Some(before) => before.into_iter().filter(|name| points.contains(name)).collect(),
            });
        }
        Ok(common.unwrap_or_default())
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

    /// The files of a replica's disks, for its keeper: blank ones if there are none of it at all; else as they were at its newest point, by
    /// `number` of the points' names, whatever came or was gone back to since.
    ///
    /// # Errors
    /// Those of [`Store::create`] and [`Store::open_disk`]; [`DiskError::Tool`].
    pub fn open(
        &self,
        id: &ReplicaId,
        disks: &[Disk],
        number: impl Fn(&str) -> Option<u64>,
    ) -> Result<Vec<File>, DiskError> {
        let (name, disks) = (folder_name(id), as_kept(disks));
        let have = match Folder::find(&self.0.directory, &name)? {
            Some(folder) => disks.iter().map(|disk| folder.has(disk)).collect::<Result<Vec<_>, _>>()?,
            None => vec![false; disks.len()],
        };
        let only =
            |is_there| disks.iter().zip(&have).filter(move |(_, has)| **has == is_there).map(|(disk, _)| disk.clone());
        let (there, missing): (Vec<_>, Vec<_>) = (only(true).collect(), only(false).collect());
        let open = |disk: &Disk| self.0.open_disk(&name, disk);
        let begun = there.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        // Blank ones beside others that have a point would be the loss of a disk.
        if let (Some(lost), false) = (missing.first(), self.0.points_of(&name, &there, &begun)?.is_empty()) {
            return Err(DiskError::Missing { guest: name, disk: lost.name.clone() });
        }
        // Not closed and opened again for nothing: a process that is just being started may still have the lock of what was closed.
        let files = if missing.is_empty() {
            begun
        } else {
            drop(begun);
            missing.iter().try_for_each(|disk| self.0.create(&name, disk).map(drop))?;
            disks.iter().map(open).collect::<Result<_, _>>()?
        };
        let points = self.0.points_of(&name, &disks, &files)?;
        if let Some(newest) = points.iter().filter(|name| number(name).is_some()).max_by_key(|name| number(name)) {
            for (disk, file) in disks.iter().zip(&files) {
                self.0.tools.go_back(file, newest).map_err(tool_failed(&name, disk))?;
            }
        }
        Ok(files)
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

/// Where the files of a replica are that is becoming its guest's disks.
struct Places {
    /// The guest's.
    folder: Folder,
    /// The replica's; it is not there any more when all of its files have been moved.
    from: Option<Folder>,
}

impl Places {
    fn find(store: &Store, replicas: &Replicas, id: &ReplicaId, guest: &GuestName) -> Result<Self, DiskError> {
        let from = Folder::find(&replicas.0.directory, &folder_name(id))?;
        Ok(Self { folder: Folder::make(&store.directory, guest)?, from })
    }

    /// The replica's folder, if it still has that disk.
    fn not_moved(&self, disk: &Disk) -> Result<Option<&Folder>, DiskError> {
        match &self.from {
            Some(from) => Ok(from.has(disk)?.then_some(from)),
            None => Ok(None),
        }
    }

    /// A disk, where it is. One that is the guest's and was never the replica's has none of its points.
    fn open(&self, store: &Store, guest: &GuestName, disk: &Disk) -> Result<File, DiskError> {
        let place = self.not_moved(disk)?.unwrap_or(&self.folder);
        if !place.has(disk)? {
            return Err(DiskError::Missing { guest: guest.clone(), disk: disk.name.clone() });
        }
        store.open_alone(guest, disk, &place.kept(disk))
    }

    fn move_in(&self, disk: &Disk) -> Result<(), DiskError> {
        let Some(from) = self.not_moved(disk)? else { return Ok(()) };
        put_aside(&self.folder, disk)?;
        let kept = from.kept(disk);
        fs::rename(&kept, self.folder.kept(disk)).map_err(DiskError::io("rename", &kept))
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.folder.sync()?;
        self.from.as_ref().map_or(Ok(()), Folder::sync)
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
