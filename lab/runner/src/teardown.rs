//! Taking a lab down, whatever state it is in. Every step is tried, even if one before it failed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};

use crate::lab::Lab;
use crate::processes::{self, Process};

/// How long the last threads of processes that were ended may take to leave their control group.
const LEAVING: Duration = Duration::from_secs(5);

/// Ends the lab's processes, then removes its mounts (and the BPF objects pinned there), its namespaces (and the links in
/// them) and its directory.
///
/// Its processes are those the runner recorded, all that are inside its namespaces, and the QEMUs that outlive their agents:
/// nobody but the lab is in there.
pub(crate) fn down(lab: &Lab) -> Result<()> {
    let nodes = lab.nodes()?;
    let mut failures = Vec::new();
    let mut attempt = |result: Result<()>| failures.extend(result.err().map(|error| format!("{error:#}")));

    attempt(end_processes(lab, &nodes));
    for mount in mounts_below(lab.state())? {
        attempt(umount2(&mount, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", mount.display())));
    }
    for node in &nodes {
        attempt(lab.namespace(node).delete());
        attempt(remove_cgroups(&lab.cgroup(node)));
    }
    if failures.is_empty() {
        return lab.remove_state();
    }
    bail!("lab {} is not quite down (run `throughline-lab down` again): {}", lab.name(), failures.join("; "))
}

fn end_processes(lab: &Lab, nodes: &[String]) -> Result<()> {
    processes::end(&processes::recorded(&lab.record()))?;
    // Twice, for what an ending process may have started meanwhile.
    for _ in 0..2 {
        let mut inside = Vec::new();
        for node in nodes {
            inside.extend(lab.processes(node)?.into_iter().filter_map(Process::find));
        }
        processes::end(&inside)?;
    }
    Ok(())
}

/// Removes the control groups an agent made below `path`, and those above it as far as they are empty.
fn remove_cgroups(path: &Path) -> Result<()> {
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new) {
        let top = root.join(path);
        let guests = fs::read_dir(&top).into_iter().flatten().flatten();
        let groups = guests.map(|entry| entry.path()).filter(|entry| entry.is_dir());
        for group in groups.collect::<Vec<_>>() {
            remove_cgroup(&group).with_context(|| format!("cannot remove {}", group.display()))?;
        }
        // Another lab's, or not there.
        top.ancestors().take(path.components().count()).take_while(|it| fs::remove_dir(it).is_ok()).for_each(drop);
    }
    Ok(())
}

/// Removes one group. Of a process that has just ended, threads may still be on their way out of it.
fn remove_cgroup(group: &Path) -> io::Result<()> {
    // Not there before Linux 5.14.
    let _ended = fs::write(group.join("cgroup.kill"), "1");
    let deadline = Instant::now() + LEAVING;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// Mount points below a directory, the deepest first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(directory))
        .collect();
    mounts.reverse();
    Ok(mounts)
}

/// Takes the lab down when dropped: at the end, on an error, in a panic, after Ctrl-C.
#[derive(Debug)]
pub(crate) struct Guard {
    lab: Lab,
    keep: bool,
}

impl Guard {
    /// Guards a lab that is about to come up.
    pub(crate) fn new(lab: Lab) -> Self {
        Self { lab, keep: false }
    }

    /// Lets it stay.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }

    /// Takes it down now, and says whether that worked.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.keep = true;
        down(&self.lab)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = down(&self.lab)
        {
            eprintln!("{error:#}");
        }
    }
}
