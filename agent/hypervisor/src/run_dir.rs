//! The files of one guest's QEMU.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Longest path of a UNIX socket: `sun_path` less its end.
const SOCKET_PATH_MAX: usize = 107;
/// Most of QEMU's log that is read to explain its end, bytes.
const LAST_WORDS: usize = 1024;

/// The directory with one guest's sockets, logs and pid file; nobody but root may look inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The directory at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// QMP socket.
    pub fn qmp_socket(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }

    /// File with QEMU's pid, which QEMU writes.
    pub fn pid_file(&self) -> PathBuf {
        self.0.join("qemu.pid")
    }

    /// What the guest wrote to its first serial line.
    pub fn serial_log(&self) -> PathBuf {
        self.0.join("serial.log")
    }

    /// What QEMU itself wrote.
    pub fn qemu_log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    /// Removes what a guest's QEMU left, and the directory if nothing else is in it. Only for a guest whose QEMU has
    /// ended: a running one could not be found again.
    ///
    /// # Errors
    /// The first file that exists and could not be removed.
    pub fn remove(&self) -> io::Result<()> {
        for file in [self.qmp_socket(), self.pid_file(), self.serial_log(), self.qemu_log()] {
            absent_is_fine(fs::remove_file(file))?;
        }
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => absent_is_fine(result),
        }
    }

    /// Whether the socket's path is one the kernel can bind.
    pub(crate) fn fits_socket(&self) -> bool {
        self.qmp_socket().as_os_str().len() <= SOCKET_PATH_MAX
    }

    /// Makes the directory, and takes away a dead QEMU's socket and pid file.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        absent_is_fine(fs::remove_file(self.qmp_socket()))?;
        absent_is_fine(fs::remove_file(self.pid_file()))
    }

    /// The process that runs here: the one that has the pid file locked, as QEMU does for as long as it lives.
    pub(crate) fn owner(&self) -> io::Result<Option<i32>> {
        let file = match fs::File::open(self.pid_file()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETLK(&mut lock))?;
        Ok((libc::c_int::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
    }

    /// The end of QEMU's log; empty where there is none.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read(self.qemu_log()).unwrap_or_default();
        let tail = log.get(log.len().saturating_sub(LAST_WORDS)..).unwrap_or_default();
        String::from_utf8_lossy(tail).trim().to_owned()
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepares_reads_and_removes() {
        let root = std::env::temp_dir().join(format!("tl-rundir-{}", std::process::id()));
        let dir = RunDir::new(root.join("guest"));
        assert_eq!(dir.owner().unwrap(), None);
        assert_eq!(dir.last_words(), "");
        dir.prepare().unwrap();
        fs::write(dir.pid_file(), "42\n").unwrap();
        fs::write(dir.qemu_log(), format!("{}\nthe end\n", "x".repeat(4096))).unwrap();
        assert_eq!(dir.owner().unwrap(), None, "a pid file nobody has locked is a dead QEMU's");
        assert!(dir.last_words().len() <= LAST_WORDS && dir.last_words().ends_with("the end"));
        dir.remove().unwrap();
        assert!(!dir.path().exists());
        dir.remove().unwrap();
        fs::remove_dir(root).unwrap();
    }

    #[test]
    fn knows_how_long_a_socket_path_may_be() {
        assert!(RunDir::new("/run/throughline/guests/web-1").fits_socket());
        assert!(!RunDir::new(format!("/run/{}", "g".repeat(100))).fits_socket());
    }
}
