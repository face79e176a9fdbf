//! The files of one guest's QEMU. The directory is QEMU's user's, and so may be whatever is in it: nothing here follows a link
//! or waits for a file that is none.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid, fchown};
use tokio::net::UnixStream;

use crate::command_line::own;

/// Longest path of a UNIX socket: `sun_path` less its end.
const SOCKET_PATH_MAX: usize = 107;
/// Most of QEMU's log that is read to explain its end, bytes.
const LAST_WORDS: u64 = 1024;
/// Never through a link, and not to wait for who opens the other end of a pipe.
const PLAINLY: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;

/// The directory with one guest's sockets, logs and pid file; nobody but root and its QEMU may look inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// QMP socket, as QEMU names it.
    pub(crate) const QMP_SOCKET: &str = "qmp.sock";
    /// Socket of the server for incoming disks, as QEMU names it.
    pub(crate) const DISKS_SOCKET: &str = "disks.sock";
    /// Socket of the channel to the guest's agent, as QEMU names it.
    pub(crate) const AGENT_SOCKET: &str = "agent.sock";
    /// Pid file, as QEMU names it.
    pub(crate) const PID_FILE: &str = "qemu.pid";

    /// The directory at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where a destination's QEMU takes what comes for its disks.
    pub fn disks_socket(&self) -> PathBuf {
        self.0.join(Self::DISKS_SOCKET)
    }

    /// Where the guest's agent is spoken to, if there is a channel to it.
    pub fn agent_socket(&self) -> PathBuf {
        self.0.join(Self::AGENT_SOCKET)
    }

    /// QMP socket.
    pub fn qmp_socket(&self) -> PathBuf {
        self.0.join(Self::QMP_SOCKET)
    }

    /// File with QEMU's pid, which QEMU writes.
    pub fn pid_file(&self) -> PathBuf {
        self.0.join(Self::PID_FILE)
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
        let sockets = [self.qmp_socket(), self.disks_socket(), self.agent_socket()];
        for file in sockets.into_iter().chain([self.pid_file(), self.serial_log(), self.qemu_log()]) {
            remove(&file)?;
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

    /// Makes the directory, gives it to `owner`, and takes away a dead QEMU's socket and pid file.
    pub(crate) fn prepare(&self, owner: (Uid, Gid)) -> io::Result<()> {
        // What is above must let that user through to what is its own, and show it nothing.
        if let Some(above) = self.0.parent().filter(|above| !above.exists()) {
            fs::create_dir_all(above)?;
            // Whatever the umask is.
            fs::set_permissions(above, fs::Permissions::from_mode(0o711))?;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let directory = OpenOptions::new().read(true).custom_flags(PLAINLY | libc::O_DIRECTORY).open(&self.0)?;
        fchown(&directory, Some(owner.0), Some(owner.1))?;
        remove(&self.qmp_socket())?;
        remove(&self.disks_socket())?;
        remove(&self.agent_socket())?;
        remove(&self.pid_file())
    }

    /// A log in here to write to: the one that is there, if it is a plain file that has no other name.
    pub(crate) fn open_log(&self, path: &Path) -> io::Result<File> {
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(PLAINLY).open(path);
        match open() {
            Ok(log) if is_plain(&log)? => Ok(log),
            _ => {
                remove(path)?;
                open()
            }
        }
    }

    /// The process that has the pid file locked, as QEMU does for as long as it lives. What the file says is not looked at, and
    /// whose process it is remains to be checked.
    pub(crate) fn owner(&self) -> io::Result<Option<i32>> {
        let file = match OpenOptions::new().read(true).custom_flags(PLAINLY).open(self.pid_file()) {
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

    /// Connects to the monitor; also tells the pid of the process that serves it.
    pub(crate) async fn connect(&self) -> io::Result<(UnixStream, Option<i32>)> {
        self.connect_to(Self::QMP_SOCKET).await
    }

    /// The same of a socket in here. What is no socket is not connected to, wherever it leads.
    pub(crate) async fn connect_to(&self, name: &str) -> io::Result<(UnixStream, Option<i32>)> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let path = self.0.join(name);
        let socket = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
        if !socket.metadata()?.file_type().is_socket() {
            return Err(io::Error::other(format!("{} is no socket", path.display())));
        }
        let stream = UnixStream::connect(own(socket.as_raw_fd())).await?;
        let pid = stream.peer_cred()?.pid();
        Ok((stream, pid))
    }

    /// The end of QEMU's log; empty where there is none.
    pub(crate) fn last_words(&self) -> String {
        let tail = || {
            let mut log = OpenOptions::new().read(true).custom_flags(PLAINLY).open(self.qemu_log())?;
            let mut tail = Vec::new();
            if is_plain(&log)? {
                log.seek(SeekFrom::Start(log.metadata()?.len().saturating_sub(LAST_WORDS)))?;
                log.take(LAST_WORDS).read_to_end(&mut tail)?;
            }
            Ok::<_, io::Error>(tail)
        };
        String::from_utf8_lossy(&tail().unwrap_or_default()).trim().to_owned()
    }
}

/// A file, and not another file's second name.
fn is_plain(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    Ok(metadata.is_file() && metadata.nlink() == 1)
}

/// Removes what is there, a link itself and not where it leads; a QEMU may have made a directory of its own.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => absent_is_fine(fs::remove_dir_all(path)),
        _ => absent_is_fine(fs::remove_file(path)),
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
        dir.prepare((Uid::from_raw(61_003), Gid::from_raw(61_003))).unwrap();
        let made = fs::metadata(dir.path()).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o7777), (61_003, 0o700));
        fs::write(dir.pid_file(), "42\n").unwrap();
        fs::write(dir.qemu_log(), format!("{}\nthe end\n", "x".repeat(4096))).unwrap();
        assert_eq!(dir.owner().unwrap(), None, "a pid file nobody has locked is a dead QEMU's");
        assert!(dir.last_words().len() as u64 <= LAST_WORDS && dir.last_words().ends_with("the end"));
        dir.remove().unwrap();
        assert!(!dir.path().exists());
        dir.remove().unwrap();
        fs::remove_dir(root).unwrap();
    }

    /// A QEMU that its guest has taken over leaves traps for the agent, which is root.
    #[tokio::test]
    async fn what_a_hostile_qemu_leaves_leads_nowhere() {
        use std::os::unix::fs::symlink;
        let root = std::env::temp_dir().join(format!("tl-rundir-hostile-{}", std::process::id()));
        let dir = RunDir::new(root.join("guest"));
        let owner = (Uid::from_raw(61_003), Gid::from_raw(61_003));
        dir.prepare(owner).unwrap();
        let secret = root.join("secret");
        fs::write(&secret, "root's own").unwrap();
        let listener = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let monitor = std::os::unix::net::UnixListener::bind(dir.qmp_socket()).unwrap();
        assert_eq!(dir.connect().await.unwrap().1, Some(std::process::id().cast_signed()));
        drop(monitor);
        fs::remove_file(dir.qmp_socket()).unwrap();

        symlink(&secret, dir.qemu_log()).unwrap();
        assert_eq!(dir.last_words(), "", "a link is not read");
        io::Write::write_all(&mut dir.open_log(&dir.qemu_log()).unwrap(), b"log").unwrap();
        fs::remove_file(dir.qemu_log()).unwrap();
        fs::hard_link(&secret, dir.qemu_log()).unwrap();
        assert_eq!(dir.last_words(), "", "nor a second name");
        io::Write::write_all(&mut dir.open_log(&dir.qemu_log()).unwrap(), b"log").unwrap();
        assert_eq!((fs::read_to_string(&secret).unwrap().as_str(), dir.last_words().as_str()), ("root's own", "log"));

        symlink(&secret, dir.pid_file()).unwrap();
        assert!(dir.owner().is_err(), "whose lock is asked for is not QEMU's to choose");
        symlink(root.join("socket"), dir.qmp_socket()).unwrap();
        assert!(dir.connect().await.is_err(), "nor whom the agent talks to");
        dir.prepare(owner).unwrap();
        nix::unistd::mkfifo(&dir.pid_file(), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(dir.owner().unwrap(), None, "a pipe is not waited for");
        fs::create_dir_all(dir.qmp_socket().join("deep")).unwrap();
        symlink(&root, dir.qmp_socket().join("deep/out")).unwrap();

        dir.remove().unwrap();
        assert!(!dir.path().exists());
        assert!(secret.exists(), "what a link led to is not removed with it");
        drop(listener);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn knows_how_long_a_socket_path_may_be() {
        assert!(RunDir::new("/run/throughline/guests/web-1").fits_socket());
        assert!(!RunDir::new(format!("/run/{}", "g".repeat(100))).fits_socket());
    }
}
