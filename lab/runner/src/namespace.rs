//! Named network namespaces, and processes in them.
//!
//! `ip netns exec` is not used: it remounts /sys, which hides the BPF file systems. A child enters by itself.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// A node's network namespace, `tl-LAB-NODE` to `ip netns`.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace of a node, whether it exists or not.
    pub(crate) fn of(lab: &str, node: &str) -> Self {
        Self { name: format!("tl-{lab}-{node}") }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes it, with its loopback up.
    pub(crate) fn create(&self) -> Result<()> {
        run(Command::new("ip").args(["netns", "add", &self.name]))?;
        self.ip(&["link", "set", "lo", "up"])
    }

    /// Takes its name away; it is gone with its last process.
    pub(crate) fn delete(&self) -> Result<()> {
        if self.path().exists() { run(Command::new("ip").args(["netns", "del", &self.name])) } else { Ok(()) }
    }

    /// Runs `ip` in it.
    pub(crate) fn ip(&self, arguments: &[&str]) -> Result<()> {
        run(self.command("ip")?.args(arguments))
    }

    /// A command that will run in it.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let namespace = File::open(self.path())
            .with_context(|| format!("there is no namespace {}: is the lab up? (throughline-lab up)", self.name))?;
        let mut command = Command::new(program);
        // SAFETY: the closure only makes the setns system call, on a file the closure itself keeps open.
        unsafe { command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?)) };
        Ok(command)
    }

    /// Processes that are in it now; empty if it does not exist.
    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        let Ok(own) = identity(&self.path()) else { return Ok(Vec::new()) };
        let mut inside = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process that ended meanwhile has no namespace.
            if identity(&entry.path().join("ns/net")).is_ok_and(|theirs| theirs == own) {
                inside.push(pid);
            }
        }
        Ok(inside)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Runs a command to its end; a failure carries what it printed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim());
    Ok(())
}
