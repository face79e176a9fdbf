//! Listens to a daemon's log, so closely that the daemon can be struck at a line of its own.
//!
//! The log is a pipe. While a trap is set the pipe holds one line only: a daemon that has written the line in question gets
//! no further than to its next but one before that line is read and the trap has closed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::phase::Phase;

/// Bytes of a pipe that takes one line, and of one that takes many.
const ONE_LINE: i32 = 4096;
const MANY_LINES: i32 = 1 << 16;

/// How long the last words of a daemon may take to be read.
const HEARD: Duration = Duration::from_millis(200);

type Action = Box<dyn FnOnce() + Send>;

/// One daemon's log, being listened to.
#[derive(Debug)]
pub(super) struct Ear {
    shared: Arc<Shared>,
    pipe: File,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Heard {
    latest: Option<Phase>,
    trap: Option<(Phase, Action)>,
}

#[derive(Default)]
struct Shared(Mutex<Heard>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a line. What was set to happen at it happens before the next is read.
    fn hear(&self, line: &str) -> bool {
        let Some(phase) = Phase::begun_by(line) else { return false };
        let mut heard = self.lock();
        heard.latest = heard.latest.max(Some(phase));
        let due = heard.trap.take_if(|(at, _)| *at == phase);
        drop(heard);
        let closed = due.is_some();
        if let Some((_, action)) = due {
            action();
        }
        closed
    }
}

impl Ear {
    /// Listens; what it hears also goes to the end of the file. The other end is for the daemon.
    pub(super) fn open(log: &Path) -> Result<(Self, OwnedFd)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT)?;
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let file = file.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        let shared = Arc::new(Shared::default());
        let pipe = File::from(read);
        let (heard, reader) = (shared.clone(), pipe.try_clone()?);
        let listener = thread::spawn(move || listen(reader, file, &heard));
        Ok((Self { shared, pipe, listener: Some(listener) }, write))
    }

    /// Forgets what was heard before: another move begins.
    pub(super) fn begin(&self) {
        *self.shared.lock() = Heard::default();
    }

    /// Has something done at the first line that begins a phase.
    pub(super) fn set(&self, phase: Phase, action: Action) -> Result<()> {
        self.shared.lock().trap = Some((phase, action));
        resize(&self.pipe, ONE_LINE)
    }

    /// Takes the trap away; true if it had not closed.
    pub(super) fn unset(&self) -> Result<bool> {
        let was_open = self.shared.lock().trap.take().is_some();
        resize(&self.pipe, MANY_LINES)?;
        Ok(was_open)
    }

    /// The latest phase heard of.
    pub(super) fn latest(&self) -> Option<Phase> {
        self.shared.lock().latest
    }

    /// Waits until all that an ended daemon wrote has been heard. What it began and what outlives it, a guest's streams above all,
    /// has its log open too and says nothing more.
    pub(super) fn finish(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        let deadline = Instant::now() + HEARD;
        while !listener.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn listen(mut pipe: File, mut log: File, shared: &Shared) {
    let mut buffer = vec![0; MANY_LINES as usize];
    let mut line = Vec::new();
    loop {
        let length = match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        line.extend_from_slice(&buffer[..length]);
        while let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            let rest = line.split_off(end + 1);
            if shared.hear(&String::from_utf8_lossy(&line)) {
                // If it cannot be widened now, it is when the trap is taken away.
                let _ = resize(&pipe, MANY_LINES);
            }
            // A log that cannot be kept is no reason to be deaf.
            let _ = log.write_all(&line);
            line = rest;
        }
    }
}

/// A pipe that holds more than it is to hold from now on refuses, for the moment.
fn resize(pipe: &File, bytes: i32) -> Result<()> {
    for _ in 0..200 {
        match fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes)) {
            Ok(_) => return Ok(()),
            Err(Errno::EBUSY) => thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error).with_context(|| format!("cannot size pipe {}", pipe.as_raw_fd())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_daemon_is_caught_at_its_line() {
        let path = std::env::temp_dir().join(format!("throughline-ear-{}", std::process::id()));
        let (mut ear, write) = Ear::open(&path).unwrap();
        let (tell, told) = channel();
        let written = Arc::new(Mutex::new(0));
        let seen = written.clone();
        ear.set(
            Phase::Arm,
            Box::new(move || {
                thread::sleep(Duration::from_millis(100));
                tell.send(*seen.lock().unwrap()).unwrap();
            }),
        )
        .unwrap();
        let daemon = thread::spawn(move || {
            let mut log = File::from(write);
            log.write_all(b" source{}: execute effect=RecordGiveUp\n").unwrap();
            log.write_all(b" source{}: execute effect=Arm\n").unwrap();
            for _ in 0..9 {
                log.write_all(b" source{}: execute effect=Pause\n").unwrap();
                *written.lock().unwrap() += 1;
            }
        });
        let past = told.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(past <= 1, "{past} lines past the trap");
        assert!(!ear.unset().unwrap(), "it has closed");
        daemon.join().unwrap();
        ear.finish();
        assert_eq!(ear.latest(), Some(Phase::Pause));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 11);
        std::fs::remove_file(&path).unwrap();
    }
}
