//! A control group for each guest: what its QEMU may use, and a place only its processes are in.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    thread,
    time::Duration,
};

use throughline_cutover::GuestName;
use tracing::{info, warn};

use crate::Accelerator;

/// Processes and threads besides one for each virtual processor: QEMU's own, and those that seal a memory stream.
const THREADS: u32 = 256;
/// What QEMU may use besides the guest's RAM, bytes: devices, buffers of a migration.
const HEADROOM: u64 = 512 << 20;
/// And what its translator keeps of translated code (tcg/region.c, at most 1 GiB).
const TRANSLATED: u64 = 1 << 30;
/// How often a group whose last process is just ending is tried to be removed.
const REMOVALS: u32 = 100;
const REMOVE_AGAIN: Duration = Duration::from_millis(5);

/// Where guests' groups are made.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    /// The file system's mount point.
    root: PathBuf,
    /// Below it, with a slash at its front, as /proc/PID/cgroup has it.
    parent: String,
}

impl Cgroups {
    /// Makes `parent`, a path below the mount point of cgroup2. `None`, and a word in the log, where that cannot be.
    pub(super) fn open(parent: &Path) -> Option<Self> {
        let made = Self::make(parent).inspect_err(|error| {
            warn!(%error, "guests get no control groups: their QEMUs' memory and processes are not limited");
        });
        made.ok()
    }

    fn make(parent: &Path) -> io::Result<Self> {
        let plain = parent.components().all(|part| matches!(part, Component::Normal(_)));
        let parent = parent.to_str().filter(|text| plain && !text.is_empty());
        let parent = parent.ok_or_else(|| io::Error::other("its path is not one below the mount point"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let root = mount_point(&mounts).ok_or_else(|| io::Error::other("cgroup2 is not mounted"))?;
        let mut group = root.clone();
        for part in Path::new(parent) {
            delegate(&group);
            group.push(part);
            match fs::create_dir(&group) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        delegate(&group);
        let controllers = fs::read_to_string(group.join("cgroup.subtree_control"))?;
        if controllers.trim().is_empty() {
            info!("cgroup2 controls neither memory nor processes here: guests' QEMUs have groups without limits");
        }
        Ok(Self { root, parent: format!("/{parent}") })
    }

    /// The group of a guest, which need not exist.
    pub(super) fn of(&self, guest: &GuestName) -> GuestGroup {
        let path = format!("{}/guest-{guest}", self.parent);
        GuestGroup { directory: self.root.join(path.trim_start_matches('/')), path }
    }
}

/// Children of `group` may be limited, as far as the host has the controllers for it.
fn delegate(group: &Path) {
    for controller in ["+memory", "+pids"] {
        // One that is not there, or belongs to cgroup v1, is the host's choice.
        let _refused = fs::write(group.join("cgroup.subtree_control"), controller);
    }
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// What a guest's QEMU may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    pub(crate) vcpus: u32,
    pub(crate) memory_kib: u64,
    pub(crate) accelerator: Accelerator,
}

impl Allowance {
    fn memory(self) -> u64 {
        let translated = if self.accelerator == Accelerator::Tcg { TRANSLATED } else { 0 };
        self.memory_kib.saturating_mul(1024).saturating_add(HEADROOM + translated)
    }
}

/// One guest's group.
#[derive(Debug, Clone)]
pub(crate) struct GuestGroup {
    directory: PathBuf,
    path: String,
}

impl GuestGroup {
    /// Makes it, or takes the one that is there, and limits it. Gives the file a process enters by.
    pub(crate) fn make(&self, allowance: Allowance) -> io::Result<OwnedFd> {
        match fs::create_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let limits = [
            ("memory.max", allowance.memory().to_string()),
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", allowance.vcpus.saturating_add(THREADS).to_string()),
        ];
        for (file, limit) in limits {
            let file = self.directory.join(file);
            if file.exists() {
                fs::write(file, limit)?;
            }
        }
        self.entrance()
    }

    /// The file a process enters by.
    pub(crate) fn entrance(&self) -> io::Result<OwnedFd> {
        fs::OpenOptions::new().write(true).open(self.directory.join("cgroup.procs")).map(OwnedFd::from)
    }

    /// Whether it is there.
    pub(crate) fn exists(&self) -> bool {
        self.directory.exists()
    }

    /// Whether a process with these lines in /proc/PID/cgroup is in it.
    pub(crate) fn has(&self, lines: &str) -> bool {
        lines.lines().any(|line| line.strip_prefix("0::") == Some(&self.path))
    }

    /// Ends what is left in it, and removes it. A group that stays costs nothing but its name.
    pub(crate) fn remove(&self) {
        // The kernel has it from 5.14 on; without, nothing but a QEMU that has ended was in there.
        let _ended = fs::write(self.directory.join("cgroup.kill"), "1");
        for _ in 0..REMOVALS {
            match fs::remove_dir(&self.directory) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(REMOVE_AGAIN),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!(%error, group = %self.directory.display(), "a control group stays");
                    return;
                }
                _ => return,
            }
        }
        warn!(group = %self.directory.display(), "a control group stays: something is still in it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_also_beside_the_old_kind() {
        let hybrid = "25 24 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      33 24 0:30 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("25 24 0:22 / /cgroup2 rw - tmpfs cgroup2 rw\n"), None);
    }

    #[test]
    fn a_group_is_known_by_its_whole_path() {
        let cgroups = Cgroups { root: "/nowhere".into(), parent: "/throughline".to_owned() };
        let group = cgroups.of(&"web-1".parse().unwrap());
        assert!(group.has("4:memory:/x\n0::/throughline/guest-web-1\n"));
        for other in
            ["0::/throughline/guest-web-10", "0::/guest-web-1", "1:name=systemd:/throughline/guest-web-1", "0::/"]
        {
            assert!(!group.has(other), "{other}");
        }
        assert!(Cgroups::open(Path::new("../elsewhere")).is_none());
        assert!(Cgroups::open(Path::new("/absolute")).is_none());
    }
}
