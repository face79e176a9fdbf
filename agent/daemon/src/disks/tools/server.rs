//! A restore point, served: QEMU itself opens no internal snapshot of a file, `qemu-nbd` does. One client reads it, by a connection that
//! is there before the server, whose socket has no name any more by then: nobody else can ever reach it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{MsgFlags, recv},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use serde_json::json;

use super::{
    ToolError, ToolUser, path,
    process::{Words, confine},
};

const NBD: &str = "qemu-nbd";
/// How systemd's sockets are handed over, which is how it takes one: as this descriptor, with the number of the process in its environment,
/// which only the process itself knows in time.
const FIRST_SOCKET: i32 = 3;
const AS_ITSELF: &str = r#"LISTEN_PID=$$ exec "$@""#;
/// Descriptors that are handed over by other numbers are above.
const ABOVE: i32 = 10;
/// What a server says first (NBD's "newstyle" negotiation): it has opened what it serves.
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT";
/// How long it may take to.
const UP_DEADLINE: Duration = Duration::from_secs(30);

/// One that serves, until its client has let go, this value is dropped, or the agent ends.
#[derive(Debug)]
pub struct PointServer {
    child: Arc<Mutex<Option<Child>>>,
}

impl PointServer {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

impl Drop for PointServer {
    fn drop(&mut self) {
        if let Some(child) = &mut *self.child.lock().unwrap_or_else(PoisonError::into_inner) {
            // Its thread sees to what is left.
            let _gone = child.kill();
        }
    }
}

/// Serves `file`, a qcow2 that others write, as it was at its snapshot. `socket` is where the server's is for a moment; the agent alone
/// gets there. Gives the client's end, from which nothing was read.
pub(super) fn serve(
    user: ToolUser,
    file: &File,
    snapshot: &str,
    socket: &Path,
) -> Result<(PointServer, UnixStream), ToolError> {
    let failed = ToolError::Lend;
    let (listener, client) = connected(socket).map_err(failed)?;
    let file = File::from(above(file.as_fd()).map_err(failed)?);
    let image = json!({
        "driver": "qcow2", "backing": null, "read-only": true, "force-share": true,
        "file": { "driver": "file", "filename": path(&file), "read-only": true },
    });
    let errors = Words::new()?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", AS_ITSELF, "sh", NBD, "--read-only", &format!("--load-snapshot=snapshot.name={snapshot}")]);
    command.arg(format!("json:{image}")).env("LC_ALL", "C").env("LISTEN_FDS", "1").current_dir("/");
    command.stdin(Stdio::null()).stdout(errors.pen()?).stderr(errors.pen()?);
    confine(&mut command, user, &[file.as_fd()]);
    let number = listener.as_raw_fd();
    let hand_over = move || {
        // SAFETY: dup2 on numbers. The parent has the first open past the spawn; what had the second is needed no more.
        if unsafe { libc::dup2(number, FIRST_SOCKET) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure runs between fork and exec, makes one system call, allocates nothing and takes no lock.
    unsafe { command.pre_exec(hand_over) };
    let server = start(command)?;
    // Its client is to hear of it if it ends.
    drop((listener, file));
    match is_greeted(&client) {
        Ok(true) => Ok((server, client)),
        Ok(false) => Err(ToolError::NotUp { program: NBD, said: errors.read()?.trim().to_owned() }),
        Err(error) => Err(ToolError::Lend(error)),
    }
}

/// A socket that is listened on, and whoever is first to be served there; nobody else finds it.
fn connected(socket: &Path) -> io::Result<(OwnedFd, UnixStream)> {
    let listener = UnixListener::bind(socket)?;
    let client = UnixStream::connect(socket);
    fs::remove_file(socket)?;
    Ok((above(listener.as_fd())?, client?))
}

/// A duplicate whose number is not one that a child is to have something else by.
fn above(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a descriptor that is open; it touches no memory of ours.
    let number = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts it by a thread of its own, which waits for its end: a child is killed when the thread that started it ends, and others of the
/// agent's come and go.
fn start(mut command: Command) -> Result<PointServer, ToolError> {
    let failed = |source| ToolError::Spawn { program: NBD, source };
    let child: Arc<Mutex<Option<Child>>> = Arc::default();
    let shared = child.clone();
    let (tell, told) = mpsc::channel();
    let see_to_it = move || {
        let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let spawned = command.spawn().map(|child| {
            let pid = Pid::from_raw(child.id().cast_signed());
            *lock() = Some(child);
            pid
        });
        // What it has of the agent's is its own now.
        drop(command);
        let _ = tell.send(spawned.as_ref().map(drop).map_err(|error| io::Error::from(error.kind())));
        if let Ok(pid) = spawned {
            // Not reaped yet: whoever kills it meanwhile kills no other.
            let _ended = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            if let Some(mut child) = lock().take() {
                let _reaped = child.wait();
            }
        }
    };
    thread::Builder::new().name("point-server".to_owned()).spawn(see_to_it).map_err(failed)?;
    match told.recv() {
        Ok(Ok(())) => Ok(PointServer { child }),
        Ok(Err(source)) => Err(failed(source)),
        Err(_) => Err(failed(io::Error::other("the thread that was to start it has ended"))),
    }
}

/// Whether the server has said its first word; it may have ended instead. The word is still the client's to read.
fn is_greeted(client: &UnixStream) -> io::Result<bool> {
    client.set_read_timeout(Some(UP_DEADLINE))?;
    let mut word = [0; GREETING.len()];
    let heard = match recv(client.as_raw_fd(), &mut word, MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL) {
        Err(Errno::ECONNRESET) => 0,
        heard => heard?,
    };
    client.set_read_timeout(None)?;
    Ok(heard == word.len() && word == GREETING)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, path::PathBuf, time::Instant};

    use super::*;

    fn user() -> ToolUser {
        ToolUser::of(&"61000".parse().unwrap()).unwrap()
    }

    /// A qcow2 of the tools' user with one snapshot, `p1`, in a directory of its own.
    fn image(name: &str) -> (PathBuf, File) {
        let dir = std::env::temp_dir().join(format!("tl-server-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let image = dir.join("image");
        for arguments in [&["create", "-q", "-f", "qcow2"][..], &["snapshot", "-c", "p1"]] {
            let size = (arguments[0] == "create").then_some("1M");
            let done = Command::new("qemu-img").args(arguments).arg(&image).args(size).status().unwrap();
            assert!(done.success());
        }
        std::os::unix::fs::chown(&image, Some(61_000), Some(61_000)).unwrap();
        let file = File::open(&image).unwrap();
        (dir, file)
    }

    fn wait_until_over(server: &PointServer) {
        let began = Instant::now();
        while !server.is_over() {
            assert!(began.elapsed() < Duration::from_secs(10), "it serves on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_point_is_served_to_one_client_and_no_longer_than_it_listens() {
        let (dir, file) = image("one");
        let socket = dir.join("socket");
        let (server, mut client) = serve(user(), &file, "p1", &socket).unwrap();
        assert!(!socket.exists(), "nobody else finds it");
        let mut word = [0; 18];
        client.read_exact(&mut word).unwrap();
        assert!(word.starts_with(GREETING) && !server.is_over(), "the word is the client's");
        let child = server.child.clone();
        drop(server);
        wait_until_over(&PointServer { child });
        assert_eq!(client.read(&mut word).unwrap_or_default(), 0, "it ends with its owner");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_point_that_is_not_there_is_told_in_words() {
        let (dir, file) = image("none");
        let error = serve(user(), &file, "p2", &dir.join("socket")).unwrap_err();
        assert!(matches!(&error, ToolError::NotUp { said, .. } if said.contains("snapshot")), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }
}
