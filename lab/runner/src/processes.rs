//! Processes the runner started: remembered by id *and* start time, so that none is ever mistaken for another.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a process may take to end when asked, before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// One process, for good: its id may be used again, its start time with it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    /// Clock ticks after the machine's start, proc(5) `starttime`.
    started: u64,
}

impl Process {
    /// The process that has this id now; `None` if there is none, or it has ended and only waits to be reaped.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name, in parentheses, and may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, started })
    }

    /// Whether it still runs.
    pub(crate) fn runs(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    fn signal(self, signal: Signal) -> Result<()> {
        if !self.runs() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot end process {}", self.pid)),
        }
    }

    /// Adds it to a record of processes.
    pub(crate) fn record(self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{} {}", self.pid, self.started)
    }
}

/// The processes of a record that still run; none if there is no record.
pub(crate) fn recorded(path: &Path) -> Vec<Process> {
    let parse = |line: &str| {
        let (pid, started) = line.split_once(' ')?;
        Some(Process { pid: pid.parse().ok()?, started: started.parse().ok()? })
    };
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(parse).filter(|process| process.runs()).collect()
}

/// Asks processes to end, and kills those that do not.
pub(crate) fn end(processes: &[Process]) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for process in processes {
            process.signal(signal)?;
        }
        let deadline = Instant::now() + GRACE;
        while processes.iter().any(|process| process.runs()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_ended_and_its_number_alone_is_not_enough() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(child.id() as i32).unwrap();
        assert!(process.runs());

        let another = Process { started: process.started + 1, ..process };
        end(&[another]).unwrap();
        assert!(process.runs(), "an id that was used again is left alone");

        end(&[process]).unwrap();
        assert!(!process.runs());
        child.wait().unwrap();
    }

    #[test]
    fn one_that_will_not_listen_is_killed() {
        let mut child = Command::new("sh").args(["-c", "trap '' TERM; sleep 60 & wait; sleep 60"]).spawn().unwrap();
        thread::sleep(Duration::from_millis(200));
        let process = Process::find(child.id() as i32).unwrap();
        let sleeper = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        let sleeper = Process::find(sleeper.trim().parse().unwrap()).unwrap();
        end(&[process, sleeper]).unwrap();
        assert!(!process.runs());
        child.wait().unwrap();
    }

    #[test]
    fn a_record_outlives_its_processes() {
        let path = std::env::temp_dir().join(format!("throughline-lab-record-{}", std::process::id()));
        let own = Process::find(std::process::id() as i32).unwrap();
        own.record(&path).unwrap();
        Process { started: own.started + 1, ..own }.record(&path).unwrap();
        assert_eq!(recorded(&path), [own]);
        fs::remove_file(&path).unwrap();
        assert_eq!(recorded(&path), []);
    }
}
