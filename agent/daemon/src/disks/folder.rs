//! The files of one guest's disks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use throughline_confine::private_dir;
use throughline_cutover::{Disk, DiskFormat, GuestName};

use super::{CopyId, DiskError, elsewhere::led_to, open_to_write, take_lock};

/// What a disk's file is to its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its own.
    Kept,
    /// Coming from another host, not decided yet.
    Incoming,
    /// What came of one that was not finished: the next try may go on with it.
    Part,
    /// One that was coming when its host went down: what was not synced is lost. The guest's if a commit says so, else nobody's.
    Doubtful,
    /// Being made.
    Half,
}

const INCOMING: &str = "incoming";
const PART: &str = "part";
const DOUBTFUL: &str = "doubtful";
const HALF: &str = "new";

/// The file of a disk that is the guest's. The last part of a name tells the states apart, whatever dots a disk's own name has.
pub(super) fn kept_name(disk: &Disk) -> String {
    format!("{}.{}", disk.name, disk.format)
}

/// One that is being made.
fn half_name(disk: &Disk) -> String {
    format!("{}.{HALF}", kept_name(disk))
}

/// One that comes, or came in part.
pub(super) fn coming_name(disk: &Disk, copy: &CopyId, state: State) -> String {
    format!("{}.{copy}.{}", kept_name(disk), if state == State::Part { PART } else { INCOMING })
}

/// A file's name, read.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    /// What it is called when it is the guest's.
    kept: &'a str,
    state: State,
    copy: Option<CopyId>,
}

impl<'a> Name<'a> {
    /// `None`: it is not one of ours.
    fn read(name: &'a str) -> Option<Self> {
        let is_kept = |name: &str| name.rsplit_once('.').is_some_and(|(_, last)| last.parse::<DiskFormat>().is_ok());
        if is_kept(name) {
            return Some(Self { kept: name, state: State::Kept, copy: None });
        }
        let (rest, last) = name.rsplit_once('.')?;
        if last == HALF {
            return is_kept(rest).then_some(Self { kept: rest, state: State::Half, copy: None });
        }
        let (kept, copy) = rest.rsplit_once('.')?;
        let state = match last {
            INCOMING => State::Incoming,
            PART => State::Part,
            DOUBTFUL => State::Doubtful,
            _ => return None,
        };
        let copy = Some(copy.parse().ok()?);
        is_kept(kept).then_some(Self { kept, state, copy })
    }

    /// Whether it is the disk's, in whatever format that was.
    fn is_of(&self, disk: &Disk) -> bool {
        [DiskFormat::Raw, DiskFormat::Qcow2].into_iter().any(|format| {
            let disk = Disk { format, ..disk.clone() };
            self.kept == kept_name(&disk)
        })
    }
}

/// Whether a file of that name is the disk's, in whatever state and format.
pub(super) fn is_of(name: &str, disk: &Disk) -> bool {
    Name::read(name).is_some_and(|name| name.is_of(disk))
}

/// What comes, or came in part, of one disk.
#[derive(Debug)]
pub(super) struct Coming {
    /// Its file.
    pub(super) name: String,
    /// Incoming, or a part.
    pub(super) state: State,
    /// Which copying it is of.
    pub(super) copy: CopyId,
    pub(super) kept: String,
}

impl Coming {
    /// What it is called if it is not decided yet.
    pub(super) fn as_incoming(&self) -> String {
        format!("{}.{}.{INCOMING}", self.kept, self.copy)
    }

    /// After its host was down.
    pub(super) fn as_doubtful(&self) -> String {
        format!("{}.{}.{DOUBTFUL}", self.kept, self.copy)
    }

    /// And when the guest stayed where it was.
    pub(super) fn as_part(&self) -> String {
        format!("{}.{}.{PART}", self.kept, self.copy)
    }
}

/// A guest's directory, locked: nobody else changes what is in it.
#[derive(Debug)]
pub(super) struct Folder {
    guest: GuestName,
    path: PathBuf,
    directory: File,
}

impl Folder {
    /// That of a guest, made if it is not there.
    pub(super) fn make(store: &Path, guest: &GuestName) -> Result<Self, DiskError> {
        let path = store.join(guest.as_str());
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => sync(store)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(DiskError::io("make", &path)(error)),
            }
            if let Some(folder) = Self::find(store, guest)? {
                return Ok(folder);
            }
        }
    }

    /// That of a guest, if it is there. Waits for who is at it.
    pub(super) fn find(store: &Path, guest: &GuestName) -> Result<Option<Self>, DiskError> {
        let path = store.join(guest.as_str());
        loop {
            match path.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                _ => private_dir(&path)?,
            }
            let directory = File::open(&path).map_err(DiskError::io("open", &path))?;
            directory.lock().map_err(DiskError::io("lock", &path))?;
            // It may have been removed by whom this one waited for.
            let found = directory.metadata().map_err(DiskError::io("look at", &path))?;
            if path.symlink_metadata().is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino())) {
                return Ok(Some(Self { guest: guest.clone(), path, directory }));
            }
        }
    }

    /// That of a guest on storage that hosts have in common, made if it is not there. Who has the guest is alone with it; a lock on a
    /// directory is not to be had on all such storage.
    pub(super) fn of_shared(path: &Path, guest: &GuestName) -> Result<Self, DiskError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(DiskError::io("make", path)(error));
            }
            _ => private_dir(path)?,
        }
        let directory = File::open(path).map_err(DiskError::io("open", path))?;
        Ok(Self { guest: guest.clone(), path: path.to_owned(), directory })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a disk is that is the guest's.
    pub(super) fn kept(&self, disk: &Disk) -> PathBuf {
        self.path.join(kept_name(disk))
    }

    /// Also if it is a link that leads to nothing now: a disk whose storage is away is there, and no blank one takes its place.
    pub(super) fn has(&self, disk: &Disk) -> Result<bool, DiskError> {
        let path = self.kept(disk);
        match path.symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DiskError::io("look at", &path)(error)),
        }
    }

    /// What comes, or came in part, of one disk (whatever format it had) or of all.
    pub(super) fn coming(&self, only: Option<&Disk>) -> Result<Vec<Coming>, DiskError> {
        let files = self.files()?;
        let coming = files.iter().filter_map(|file| {
            let name = Name::read(file).filter(|name| only.is_none_or(|disk| name.is_of(disk)))?;
            let Name { kept, state, copy } = name;
            Some(Coming { name: file.clone(), state, copy: copy?, kept: kept.to_owned() })
        });
        Ok(coming.collect())
    }

    /// One of them that is not decided yet.
    pub(super) fn incoming(&self, disk: &Disk) -> Result<Option<Coming>, DiskError> {
        let undecided = |it: &Coming| it.state != State::Part && it.kept == kept_name(disk);
        Ok(self.coming(Some(disk))?.into_iter().find(undecided))
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let path = self.path.join(from);
        fs::rename(&path, self.path.join(to)).map_err(DiskError::io("rename", &path))
    }

    /// That no file is there which would be the same disk's: kept, in either format.
    pub(super) fn check_free(&self, disk: &Disk) -> Result<(), DiskError> {
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let disk = Disk { format, ..disk.clone() };
            if self.has(&disk)? {
                return Err(DiskError::Exists { guest: self.guest.clone(), path: self.kept(&disk) });
            }
        }
        Ok(())
    }

    /// Names of all files of ours.
    pub(super) fn files(&self) -> Result<Vec<String>, DiskError> {
        let entries = fs::read_dir(&self.path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(DiskError::io("read", &self.path))?;
        let names = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| Name::read(name).is_some()).collect())
    }

    /// Names of the files in that state.
    pub(super) fn files_in(&self, state: State) -> Result<Vec<String>, DiskError> {
        let mut files = self.files()?;
        files.retain(|name| Name::read(name).is_some_and(|name| name.state == state));
        Ok(files)
    }

    /// That no QEMU has it open. A link may go whoever has what it leads to.
    pub(super) fn check_unused(&self, name: &str) -> Result<(), DiskError> {
        let path = self.path.join(name);
        if led_to(&path)?.is_some() {
            return Ok(());
        }
        let file = open_to_write(&path)?;
        take_lock(&file).map_err(|_| DiskError::InUse { guest: self.guest.clone(), file: name.to_owned() })
    }

    pub(super) fn unlink(&self, name: &str) -> Result<(), DiskError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DiskError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Nobody will go on with them.
    pub(super) fn remove_half_made(&self) -> Result<(), DiskError> {
        self.files_in(State::Half)?.iter().try_for_each(|name| self.unlink(name))
    }

    /// What was renamed and removed in it stays so.
    pub(super) fn sync(&self) -> Result<(), DiskError> {
        self.directory.sync_all().map_err(DiskError::io("write down", &self.path))
    }

    /// Removes it if nothing is in it, for good.
    pub(super) fn dissolve(self, store: &Path) -> Result<(), DiskError> {
        self.sync()?;
        match fs::remove_dir(&self.path) {
            // What is not ours stays.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DiskError::io("remove", &self.path)(error)),
            _ => sync(store),
        }
    }

    /// A link under that name to where a disk is.
    pub(super) fn link(&self, disk: &Disk, target: &Path, name: &str) -> Result<(), DiskError> {
        let half = half_name(disk);
        self.unlink(&half)?;
        let path = self.path.join(&half);
        symlink(target, &path).map_err(DiskError::io("make", &path))?;
        self.rename(&half, name)?;
        self.sync()
    }

    /// A file to be made into the disk's, empty, in place of one that was left.
    pub(super) fn begin(&self, disk: &Disk) -> Result<Half<'_>, DiskError> {
        let name = half_name(disk);
        self.unlink(&name)?;
        let path = self.path.join(&name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(DiskError::io("make", &path))?;
        Ok(Half { folder: self, name, file, finished: false })
    }
}

/// Makes what was done in a directory last.
fn sync(directory: &Path) -> Result<(), DiskError> {
    File::open(directory).and_then(|it| it.sync_all()).map_err(DiskError::io("write down", directory))
}

/// A file being made; gone with the value, unless it was finished.
#[derive(Debug)]
pub(super) struct Half<'a> {
    folder: &'a Folder,
    name: String,
    file: File,
    finished: bool,
}

impl Half<'_> {
    /// What to write to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// It is whole: on disk, and under that name, which nothing has. Gives the same open file.
    pub(super) fn finish(mut self, name: &str) -> Result<File, DiskError> {
        let (half, whole) = (self.path(), self.folder.path.join(name));
        let file = self.file.try_clone().map_err(DiskError::io("keep open", &half))?;
        file.sync_all().map_err(DiskError::io("write down", &half))?;
        fs::rename(&half, &whole).map_err(DiskError::io("rename", &half))?;
        self.finished = true;
        self.folder.sync()?;
        Ok(file)
    }
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // One that stays is removed by who comes next.
            let _stays = self.folder.unlink(&self.name);
        }
    }
}
