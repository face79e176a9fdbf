//! A tool as a process: what it may do, for how long, and what it said.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::{fs::FileExt as _, process::CommandExt as _},
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, SealFlag, fcntl},
    sched::{CloneFlags, unshare},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl::{set_no_new_privs, set_pdeathsig},
        signal::Signal,
    },
    unistd::{getppid, setgroups, setresgid, setresuid, setsid},
};

use super::{ToolError, ToolUser};

/// How often it is looked whether a tool is done.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Most that is kept of what it says, bytes.
const LONGEST_SAYING: u64 = 64 << 10;
/// And most of that that an error repeats.
const LAST_WORDS: usize = 1024;

/// Runs a program as `user` until it has ended, or `deadline` has passed and it is killed. It has `files` by their own numbers, and
/// nothing else of the agent's. Gives what it wrote to standard output.
pub(super) fn run(
    user: ToolUser,
    program: &'static str,
    arguments: &[&str],
    files: &[BorrowedFd<'_>],
    deadline: Duration,
) -> Result<String, ToolError> {
    let (output, errors) = (Words::new()?, Words::new()?);
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    command.stdout(output.pen()?).stderr(errors.pen()?);
    confine(&mut command, user, files);
    let child = command.spawn().map_err(|source| ToolError::Spawn { program, source })?;
    let status = end_of(child, deadline).map_err(|source| ToolError::Spawn { program, source })?;
    match status {
        None => Err(ToolError::Late { program, after: deadline }),
        Some(status) if status.success() => output.read(),
        Some(status) => {
            // qemu-io tells its errors on standard output.
            let said = [errors.read()?, output.read()?].join(" ");
            Err(ToolError::Failed { program, status, said: said.trim().chars().take(LAST_WORDS).collect() })
        }
    }
}

/// Waits for it; `None`: it was killed.
fn end_of(mut child: Child, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// What a tool says, up to a limit; beyond it, it cannot write.
pub(super) struct Words(File);

impl Words {
    pub(super) fn new() -> Result<Self, ToolError> {
        let make = || {
            let memory = memfd_create(c"throughline-tool", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
            let memory = File::from(memory);
            memory.set_len(LONGEST_SAYING)?;
            fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
            Ok(Self(memory))
        };
        make().map_err(ToolError::Lend)
    }

    pub(super) fn pen(&self) -> Result<Stdio, ToolError> {
        self.0.try_clone().map(Stdio::from).map_err(ToolError::Lend)
    }

    pub(super) fn read(&self) -> Result<String, ToolError> {
        let mut said = vec![0; LONGEST_SAYING as usize];
        self.0.read_exact_at(&mut said, 0).map_err(ToolError::Lend)?;
        let length = said.iter().position(|byte| *byte == 0).unwrap_or(said.len());
        Ok(String::from_utf8_lossy(&said[..length]).into_owned())
    }
}

/// What it gives up between fork and exec. It ends with the thread that started it, for nobody else would wait for it.
pub(super) fn confine(command: &mut Command, user: ToolUser, files: &[BorrowedFd<'_>]) {
    let files: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
    let agent = nix::unistd::getpid();
    let prepare = move || {
        setsid()?;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
        setgroups(&[])?;
        setresgid(user.gid, user.gid, user.gid)?;
        // Root's capabilities go with root.
        setresuid(user.uid, user.uid, user.uid)?;
        set_no_new_privs()?;
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != agent {
            return Err(io::Error::from_raw_os_error(libc::ECHILD));
        }
        for file in &files {
            // SAFETY: the parent has it open past the spawn.
            let file = unsafe { BorrowedFd::borrow_raw(*file) };
            fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it only makes system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn user() -> ToolUser {
        ToolUser::of(&"61000".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_tool_has_no_power_no_network_and_nothing_but_its_files() {
        let file = File::open("/dev/null").unwrap();
        let _secret = File::open("/etc/shadow").expect("run as root: a tool gives up what root has");
        let status = run(user(), "cat", &["/proc/self/status"], &[file.as_fd()], SOON).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!((field("Uid:"), field("Gid:")), (vec!["61000".to_owned(); 4], vec!["61000".to_owned(); 4]));
        assert_eq!(field("Groups:"), [""; 0]);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        let devices = run(user(), "cat", &["/proc/self/net/dev"], &[], SOON).unwrap();
        assert_eq!(devices.lines().count(), 3, "the loopback alone, below two lines of heading: {devices}");
        let open = run(user(), "ls", &["-l", "/proc/self/fd"], &[file.as_fd()], SOON).unwrap();
        assert!(open.contains(&format!(" {} -> /dev/null", file.as_raw_fd())), "{open}");
        assert!(!open.contains("/etc/shadow"), "{open}");
        assert!(matches!(run(user(), "cat", &["/etc/shadow"], &[], SOON), Err(ToolError::Failed { .. })));
    }

    #[test]
    fn a_tool_that_takes_too_long_is_killed() {
        let before = Instant::now();
        let late = run(user(), "sleep", &["60"], &[], Duration::from_millis(100)).unwrap_err();
        assert!(matches!(late, ToolError::Late { .. }), "{late}");
        assert!(before.elapsed() < SOON);
    }

    #[test]
    fn what_a_tool_says_is_kept_up_to_a_limit() {
        let failed = run(user(), "ls", &["/nonexistent"], &[], SOON).unwrap_err().to_string();
        assert!(failed.contains("ls failed") && failed.contains("No such file"), "{failed}");
        let endless = run(user(), "yes", &["more"], &[], SOON).unwrap_err().to_string();
        assert!(endless.len() < 2 * LAST_WORDS, "{} bytes", endless.len());
        let missing = run(user(), "throughline-no-such-tool", &[], &[], SOON).unwrap_err().to_string();
        assert!(missing.contains("qemu-utils"), "{missing}");
    }
}
