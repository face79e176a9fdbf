//! What keeps a QEMU that its guest has taken over from everything else.
//!
//! A guest's QEMU is a user of its own (or shares one with other guests, if the host has no more to give), without capabilities
//! and without a way to get any, in an empty network namespace (its taps are descriptors and need none), in a control group of
//! its own, under QEMU's own filter of system calls. It owns its run directory and can reach no other file by a path the agent
//! takes from it; what it needs besides is passed to it as descriptors.
//!
//! What such a QEMU says is not believed: which process runs in a run directory is checked against what it cannot choose
//! (`Cell::has`), and its files are opened without following links.

mod cgroup;
mod child;
mod user;

use std::{
    fs, io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use nix::unistd::{Gid, Uid};
use throughline_cutover::GuestName;
use tracing::info;

use self::{
    cgroup::Cgroups,
    child::{Identity, confine},
    user::Users,
};
use crate::{RunDir, launch::PROGRAM};

pub(crate) use self::cgroup::{Allowance, GuestGroup};
pub use self::user::{InvalidQemuUser, QemuUser};

const KVM: &str = "/dev/kvm";

/// Guests cannot be confined as asked.
#[derive(Debug, thiserror::Error)]
#[error(
    "QEMU cannot run as {user:?}: {source}; make that user (useradd --system --no-create-home {}), or name another with --qemu-user",
    name(user)
)]
pub struct ConfinementError {
    user: QemuUser,
    source: io::Error,
}

fn name(user: &QemuUser) -> &str {
    if let QemuUser::Named(name) = user { name } else { "NAME" }
}

/// How the QEMUs of one agent are kept apart. Made once.
#[derive(Debug)]
pub struct Confinement {
    users: Users,
    cgroups: Option<Cgroups>,
    /// Further groups a QEMU needs: that of /dev/kvm.
    groups: Vec<Gid>,
    /// Held from the choice of a user until its run directory shows it.
    choosing: Mutex<()>,
}

/// One guest's, from its launch on.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    identity: Identity,
    group: Option<GuestGroup>,
}

impl Confinement {
    /// QEMUs as `user`, in groups below `cgroup`, a path below cgroup2's mount point; without groups where there are none to
    /// be had.
    ///
    /// # Errors
    /// If this host does not have that user.
    pub fn new(user: &QemuUser, cgroup: &Path) -> Result<Self, ConfinementError> {
        let users = Users::find(user).map_err(|source| ConfinementError { user: user.clone(), source })?;
        if !users.are_several() {
            info!("guests' QEMUs share one user; reserve some for it in /etc/subuid, and each guest has its own");
        }
        Ok(Self { users, cgroups: Cgroups::open(cgroup), groups: kvm_group(), choosing: Mutex::default() })
    }

    /// Makes the run directory, as the user its guest gets.
    pub(crate) fn prepare(&self, guest: &GuestName, run_dir: &RunDir) -> io::Result<Cell> {
        let (uid, gid) = {
            let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
            let chosen = self.users.choose(run_dir.path())?;
            run_dir.prepare(chosen)?;
            chosen
        };
        Ok(Cell { identity: self.identity(uid, gid), group: self.group(guest) })
    }

    /// That of a guest that runs: as its run directory has it.
    pub(crate) fn cell_of(&self, guest: &GuestName, run_dir: &RunDir) -> io::Result<Cell> {
        let directory = fs::symlink_metadata(run_dir.path())?;
        let identity = self.identity(Uid::from_raw(directory.uid()), Gid::from_raw(directory.gid()));
        Ok(Cell { identity, group: self.group(guest) })
    }

    /// For a QEMU that is no guest's.
    pub(crate) fn probe(&self, command: &mut Command, fds: Vec<RawFd>) {
        let (uid, gid) = self.users.any();
        confine(command, self.identity(uid, gid), None, fds);
    }

    fn identity(&self, uid: Uid, gid: Gid) -> Identity {
        Identity { uid, gid, groups: self.groups.clone() }
    }

    fn group(&self, guest: &GuestName) -> Option<GuestGroup> {
        self.cgroups.as_ref().map(|cgroups| cgroups.of(guest))
    }
}

impl Cell {
    /// Has `command` run in it, with `fds`. Made with an `allowance` at the guest's launch, entered later.
    pub(crate) fn hold(&self, command: &mut Command, allowance: Option<Allowance>, fds: Vec<RawFd>) -> io::Result<()> {
        let entrance: Option<OwnedFd> = match (&self.group, allowance) {
            (Some(group), Some(allowance)) => Some(group.make(allowance)?),
            // A guest from before there were groups has none.
            (Some(group), None) if group.exists() => Some(group.entrance()?),
            _ => None,
        };
        confine(command, self.identity.clone(), entrance, fds);
        Ok(())
    }

    /// Whether that process can be the guest's QEMU, by what no process can choose for itself: its user, its program and its
    /// group. The caller holds it by a pidfd, so that it stays the same.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub(crate) fn has(&self, pid: i32) -> Result<(), String> {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|error| format!("/proc/{pid}/{file}: {error}"))
        };
        let wanted = self.identity.uid.as_raw();
        let status = read("status")?;
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let mut users = users.split_whitespace().map(str::parse);
        if users.clone().count() != 4 || !users.all(|uid| uid == Ok(wanted)) {
            return Err(format!("process {pid} is not of user {wanted}, whose directory it is"));
        }
        let program = fs::read_link(format!("/proc/{pid}/exe")).map_err(|error| format!("/proc/{pid}/exe: {error}"))?;
        if !is_qemu(&program) {
            return Err(format!("process {pid} runs {}", program.display()));
        }
        match &self.group {
            Some(group) if group.exists() && !group.has(&read("cgroup")?) => {
                Err(format!("process {pid} is not in the guest's control group"))
            }
            _ => Ok(()),
        }
    }

    /// Its QEMU has ended: nothing of it stays.
    pub(crate) async fn clear(&self) {
        if let Some(group) = self.group.clone() {
            // A panic in there is the only way for it to fail.
            let _removed = tokio::task::spawn_blocking(move || group.remove()).await;
        }
    }
}

/// Whether the link in /proc leads to the emulator; after an upgrade to one that has been replaced.
fn is_qemu(program: &Path) -> bool {
    let text = program.to_string_lossy();
    let program = PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text));
    let installed = std::env::var_os("PATH").and_then(|path| {
        let candidates = std::env::split_paths(&path).map(|directory| directory.join(PROGRAM));
        candidates.into_iter().find_map(|candidate| candidate.canonicalize().ok())
    });
    installed.is_some_and(|installed| installed == program)
}

/// The group that may open /dev/kvm, where not everybody may.
fn kvm_group() -> Vec<Gid> {
    let Ok(device) = fs::metadata(KVM) else { return Vec::new() };
    let mode = device.permissions().mode();
    if mode & 0o006 != 0o006 && mode & 0o060 == 0o060 && device.gid() != 0 {
        vec![Gid::from_raw(device.gid())]
    } else {
        Vec::new()
    }
}
