//! What a child of the agent gives up between fork and exec.

use std::{
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid, write},
};

/// Who a child is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// Further groups, all of them.
    pub(super) groups: Vec<Gid>,
}

/// Has `command` run as `identity`, with no capability and no way to get one, without network, in the group that `entrance`
/// leads to, in a session of its own so that no signal to the agent's reaches it. It inherits `fds` and nothing else:
/// everything of the agent's is close-on-exec and stays so, also for children other threads start meanwhile.
pub(super) fn confine(command: &mut Command, identity: Identity, entrance: Option<OwnedFd>, fds: Vec<RawFd>) {
    let prepare = move || {
        setsid()?;
        if let Some(entrance) = &entrance {
            write(entrance, b"0")?;
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        umask(Mode::from_bits_truncate(0o077));
        drop_bounding_set()?;
        setgroups(&identity.groups)?;
        setresgid(identity.gid, identity.gid, identity.gid)?;
        setresuid(identity.uid, identity.uid, identity.uid)?;
        // An agent that is not root keeps its own across that.
        drop_capabilities()?;
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
        for fd in &fds {
            // SAFETY: fcntl on a number. The descriptor is open: the parent owns it past the spawn.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it only makes system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these options take numbers and touch no memory of ours.
    if unsafe { libc::prctl(option, value, 0, 0, 0) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What no program it might start could ever have.
fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // This kernel has no more of them.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// capset(2) of nothing.
fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let none = [0_u32; 6];
    // SAFETY: both are of the sizes the kernel reads for version 3, a header and two sets of three words.
    match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
