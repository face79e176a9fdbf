//! What a QEMU may do, as the kernel has it, and that the agent believes nothing a QEMU could make up.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    time::Duration,
};

use crate::harness::{Lab, guest_name, in_lab, nic, ticks, ticks_past};
use nix::unistd::{ForkResult, Pid};
use throughline_hypervisor::{Guest, HypervisorError, Launch, RunState};

/// A line of /proc/PID/status.
fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim().to_owned()
}

fn user(guest: &Guest) -> u32 {
    let users: BTreeSet<String> = status(guest.pid(), "Uid").split_whitespace().map(str::to_owned).collect();
    assert_eq!(users.len(), 1, "real, effective, saved and file system user are one: {users:?}");
    users.first().unwrap().parse().unwrap()
}

/// What confines a process of a guest: its user is a guest's, it has no capability, gains none, sees no network.
fn assert_confined(pid: i32, uid: u32) {
    assert!((1_900_001_000..1_900_001_100).contains(&uid));
    assert_eq!(status(pid, "Uid").split_whitespace().next(), Some(uid.to_string().as_str()));
    assert_eq!(status(pid, "Gid"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let devices: Vec<_> = devices.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(devices, ["lo"], "its network is empty");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
}

#[test]
fn a_qemu_is_nobody_and_sees_nothing() {
    in_lab("confined", |lab| async move {
        let (card, _own) = nic(7);
        let mut plan = lab.plan("a", "", false);
        plan.nics.push(card);
        let guest = lab.launch(plan).await.unwrap();
        ticks_past(&guest, 3).await;
        let (pid, uid) = (guest.pid(), user(&guest));
        assert_confined(pid, uid);
        assert_eq!(status(pid, "Seccomp"), "2", "QEMU's filter of system calls is on");
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let unified = groups.lines().find_map(|line| line.strip_prefix("0::")).expect("cgroup2 is mounted");
        assert!(unified.starts_with("/throughline-test/") && unified.ends_with("/guest-g"), "{groups}");

        let owner = |path: &std::path::Path| fs::metadata(path).map(|it| (it.uid(), it.mode() & 0o7777)).unwrap();
        let run_dir = guest.run_dir().clone();
        assert_eq!(owner(run_dir.path()), (uid, 0o700));
        assert_eq!(owner(&run_dir.pid_file()), (uid, 0o600));
        assert_eq!(owner(&run_dir.qmp_socket()), (uid, 0o700));
        for log in [run_dir.serial_log(), run_dir.qemu_log()] {
            assert_eq!(owner(&log), (0, 0o600), "opened by the agent, and its");
        }

        // Another guest is another user, who may do nothing to the first.
        let other = lab.launch(Launch { name: "h".parse().unwrap(), ..lab.plan("b", "", false) }).await.unwrap();
        assert_confined(other.pid(), user(&other));
        assert_ne!(user(&other), uid);
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(namespace(other.pid()), namespace(pid));
        other.quit().await.unwrap();
        guest.quit().await.unwrap();
        let left = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| format!("{root}{unified}"));
        assert!(!left.iter().any(|group| fs::exists(group).unwrap()), "its control group is gone with it");
    });
}

#[test]
fn a_guest_gets_no_file_that_is_not_everybodys() {
    in_lab("secret", |lab| async move {
        let secret = lab.dir.join("secret");
        fs::write(&secret, "the host's key").unwrap();
        fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let link = lab.dir.join("link");
        symlink(&secret, &link).unwrap();
        for path in [&secret, &link] {
            let mut plan = lab.plan("a", "", false);
            plan.boot.initrd = path.to_str().unwrap().to_owned();
            let error = lab.launch(plan).await.unwrap_err();
            assert!(matches!(error, HypervisorError::Image { .. }), "{error:?}");
        }
    });
}

/// A directory like one of a guest's, which somebody else's QEMU made up.
async fn forge(lab: &Lab, side: &str, victim: &Guest, owner: Option<u32>) {
    let forged = lab.run_dir(side);
    fs::create_dir(forged.path()).unwrap();
    // The pid file is locked by the victim, and the monitor answers: both are the victim's own.
    fs::hard_link(victim.run_dir().pid_file(), forged.pid_file()).unwrap();
    fs::hard_link(victim.run_dir().qmp_socket(), forged.qmp_socket()).unwrap();
    std::os::unix::fs::chown(forged.path(), owner, owner).unwrap();
}

/// A process that has a file locked, as QEMU has its pid file. It ends with the value.
struct Locker(Pid);

impl Locker {
    fn of(path: &std::path::Path) -> Self {
        let file = fs::File::create(path).unwrap();
        let (mut told, tell) = std::io::pipe().unwrap();
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        // SAFETY: the child makes three system calls and allocates nothing.
        match unsafe { nix::unistd::fork() }.unwrap() {
            ForkResult::Child => {
                let _locked = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&lock));
                let _told = nix::unistd::write(&tell, b"x");
                loop {
                    nix::unistd::pause();
                }
            }
            ForkResult::Parent { child } => {
                std::io::Read::read_exact(&mut told, &mut [0]).unwrap();
                Self(child)
            }
        }
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ended = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGKILL);
        let _reaped = nix::sys::wait::waitpid(self.0, None);
    }
}

#[test]
fn a_forged_directory_makes_the_agent_touch_nobody() {
    in_lab("forged", |lab| async move {
        let victim = lab.counting("a", "").await;
        let (pid, uid) = (victim.pid(), user(&victim));
        drop(victim);
        let victim = lab.adopt("g", "a").await.unwrap().expect("it runs");

        // Another user's directory that leads to the victim.
        forge(&lab, "b", &victim, Some(uid + 50)).await;
        let error = lab.adopt("h", "b").await.unwrap_err();
        assert!(matches!(error, HypervisorError::NotThatGuest { .. }) && error.to_string().contains("user"), "{error}");

        // The same user's, where guests share one.
        forge(&lab, "c", &victim, Some(uid)).await;
        drop(victim);
        let error = lab.adopt("h", "c").await.unwrap_err();
        assert!(
            matches!(error, HypervisorError::NotThatGuest { .. }) && error.to_string().contains("called"),
            "{error}"
        );

        // A process that is no QEMU, of the right user: this very directory's pid file is locked by it.
        let lock = lab.run_dir("d");
        fs::create_dir(lock.path()).unwrap();
        std::os::unix::fs::chown(lock.path(), Some(0), Some(0)).unwrap();
        let stranger = Locker::of(&lock.pid_file());
        let error = lab.adopt("h", "d").await.unwrap_err().to_string();
        assert!(error.contains(&format!("process {} runs /", stranger.0)), "{error}");
        assert_eq!(nix::sys::signal::kill(stranger.0, None), Ok(()), "it was left alone");
        drop(stranger);

        // The victim has noticed nothing.
        let victim = lab.adopt(guest_name().as_str(), "a").await.unwrap().expect("it runs");
        assert_eq!((victim.pid(), victim.run_state().await.unwrap()), (pid, RunState::Running));
        let left = ticks(&victim).unwrap();
        ticks_past(&victim, left + 3).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        victim.quit().await.unwrap();
    });
}
