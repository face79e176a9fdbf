//! A QEMU process, held by pidfd so that a recycled pid is never signalled.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    process::{Child, ExitStatus},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use tokio::io::{Interest, unix::AsyncFd};

/// How a QEMU ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its status; `None` for an adopted QEMU, which is not this agent's child.
    pub status: Option<ExitStatus>,
    /// It closed what it had open: its disks are whole. Known only of this agent's child, which ended with status 0.
    pub orderly: bool,
    /// The end of what it wrote to its log.
    pub last_words: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => f.write_str("exit status unknown")?,
        }
        if self.last_words.is_empty() { Ok(()) } else { write!(f, "; it said: {}", self.last_words) }
    }
}

/// A process that stays the same one for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    pidfd: OwnedFd,
}

impl Process {
    /// The process that has `pid` now. The caller makes sure that it is the one meant: it is the agent's own child not
    /// yet reaped, or it answers on its socket after this call.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes a pid and flags and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        Ok(Self { pid, pidfd: owned(fd)? })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends `signal`; a process that has ended is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and a null siginfo asks the kernel to fill it in as kill(2) does.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal as libc::c_int, no_info, 0)
        };
        match result {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Whether it has not ended.
    pub(crate) fn lives(&self) -> bool {
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        // A pidfd is readable from the moment the process has ended.
        poll(&mut ended, PollTimeout::ZERO) == Ok(0)
    }

    /// A duplicate of the process's descriptor `number`, close-on-exec.
    pub(crate) fn duplicate_fd(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes a descriptor, a number and flags and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), number, 0) };
        owned(fd)
    }

    /// Something that waits for the end, and reaps `child` if the process is ours.
    pub(crate) fn watch(&self, child: Option<Child>) -> io::Result<Watch> {
        let pidfd = self.pidfd.try_clone()?;
        // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same until the AsyncFd is dropped.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Watch { pidfd, child })
    }
}

/// Waits for a process to end.
#[derive(Debug)]
pub(crate) struct Watch {
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

impl Watch {
    /// Its status, if it was our child.
    pub(crate) async fn ended(mut self) -> io::Result<Option<ExitStatus>> {
        // A pidfd is readable from the moment the process has ended.
        let _ended = self.pidfd.readable().await?;
        self.child.as_mut().map(Child::wait).transpose()
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::{net::UnixStream, process::ExitStatusExt},
        process::Command,
    };

    use super::*;

    #[tokio::test]
    async fn signals_reaps_and_tells_how_it_ended() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::open(pid).unwrap();
        let watch = process.watch(Some(child)).unwrap();
        assert!(process.lives());
        process.signal(Signal::SIGTERM).unwrap();
        let status = watch.ended().await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGTERM));
        process.signal(Signal::SIGTERM).unwrap();
        assert!(!process.lives());
        assert!(Process::open(pid).is_err(), "reaped");
    }

    #[test]
    fn takes_a_descriptor_of_another_process() {
        let own = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut taken = std::fs::File::from(own.duplicate_fd(far.as_raw_fd()).unwrap());
        taken.write_all(b"x").unwrap();
        let mut byte = [0];
        near.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(own.duplicate_fd(1 << 20).is_err());
    }
}
