//! The wall clock of one node's daemon, which `throughline-clock`, preloaded, reads from a file.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;

/// What is preloaded, beside this program.
const LIBRARY: &str = "libthroughline_clock.so";

/// How many of the last lines of a log are looked at.
const LINES: usize = 50;

/// Has a node's daemon read its own clock, which is right until it is set.
pub(super) fn give(lab: &Lab, node: &str, command: &mut Command) -> Result<()> {
    let library = env::current_exe()?.with_file_name(LIBRARY);
    ensure!(library.exists(), "{} is not built: run `make build`", library.display());
    let file = file(lab, node);
    if !file.exists() {
        set(lab, node, 0)?;
    }
    command.env("LD_PRELOAD", library).env("LAB_CLOCK", file);
    Ok(())
}

/// Sets it: so many seconds ahead of the machine's. It is written in place, for the daemon has it mapped.
pub(super) fn set(lab: &Lab, node: &str, seconds: i64) -> Result<()> {
    let file = file(lab, node);
    let written = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&file);
    let written = written.and_then(|clock| std::os::unix::fs::FileExt::write_all_at(&clock, &seconds.to_ne_bytes(), 0));
    written.with_context(|| format!("cannot set {}", file.display()))
}

/// Whether a node's daemon has logged anything by its clock as it was set: or nothing would have been shown.
pub(super) fn is_believed(lab: &Lab, node: &str, seconds: i64) -> Result<bool> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64 + seconds;
    let mut hours = Vec::new();
    // What was logged in the last minute may have been logged in the hour before.
    for at in [now, now - 60] {
        let date = Command::new("date").args(["-u", "-d", &format!("@{at}"), "+%Y-%m-%dT%H"]).output()?;
        ensure!(date.status.success(), "`date` ended with {}", date.status);
        hours.push(String::from_utf8_lossy(&date.stdout).trim().to_owned());
    }
    let log = fs::read(lab.log(node))?;
    let log = String::from_utf8_lossy(&log);
    Ok(log.lines().rev().take(LINES).any(|line| hours.iter().any(|hour| line.starts_with(hour))))
}

fn file(lab: &Lab, node: &str) -> PathBuf {
    lab.node_state(node).join("clock")
}
