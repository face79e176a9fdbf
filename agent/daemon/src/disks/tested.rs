//! What the guest of a test has for disks: a point of a replica, which is read, and files for what it writes, which have no names and are
//! gone with who has them open.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::OpenOptionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use throughline_cutover::{Disk, ReplicaId};

use super::{
    DiskError, Replicas, as_kept, check,
    folder::Folder,
    make::tool_failed,
    replicas::folder_name,
    tools::{Form, PointServer},
};

/// One of its disks.
#[derive(Debug)]
pub struct TestDisk {
    /// As the file that is written has it.
    pub disk: Disk,
    /// What it writes; blank.
    pub file: File,
    /// What it finds where it has not written: the client's end of a connection to the server.
    pub below: UnixStream,
    /// Who serves that.
    pub server: PointServer,
}

impl Replicas {
    /// A replica's disks as they were at the snapshot `point`, to be written without a change of theirs. Its keeper may have them open,
    /// but makes and deletes no snapshot meanwhile; afterwards all but this one.
    ///
    /// # Errors
    /// [`DiskError::Missing`], [`DiskError::Unfit`], [`DiskError::Space`], and [`DiskError::Tool`] if there is no such snapshot.
    pub fn test_disks(&self, id: &ReplicaId, disks: &[Disk], point: &str) -> Result<Vec<TestDisk>, DiskError> {
        let name = folder_name(id);
        let missing = |disk: &Disk| DiskError::Missing { guest: name.clone(), disk: disk.name.clone() };
        let folder = Folder::find(&self.0.directory, &name)?;
        let one = |disk: Disk| {
            let folder = folder.as_ref().ok_or_else(|| missing(&disk))?;
            if !folder.has(&disk)? {
                return Err(missing(&disk));
            }
            let path = folder.kept(&disk);
            let kept = open_to_read(&path)?;
            check(&name, &disk, &path, &kept)?;
            let file = self.0.aside(&name, &disk)?;
            let failed = |error| tool_failed(&name, &disk)(error);
            self.0.tools.create(&file, disk.size.bytes(), Form::Disk).map_err(failed)?;
            let (_directory, socket) = self.socket(id)?;
            let (server, below) = self.0.tools.serve(&kept, point, &socket).map_err(failed)?;
            Ok(TestDisk { disk, file, below, server })
        };
        as_kept(disks).into_iter().map(one).collect()
    }

    /// Where a server's socket is for a moment, by a path that is short enough for one; free, for the replica's folder is locked.
    fn socket(&self, id: &ReplicaId) -> Result<(File, PathBuf), DiskError> {
        let failed = |error| DiskError::io("make a socket in", &self.0.directory)(error);
        let directory = File::open(&self.0.directory).map_err(failed)?;
        let socket = PathBuf::from(format!("/proc/self/fd/{}/.point-{id}", directory.as_raw_fd()));
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok((directory, socket)),
        }
    }
}

/// Through no symbolic link.
fn open_to_read(path: &Path) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path).map_err(DiskError::io("open", path))
}
