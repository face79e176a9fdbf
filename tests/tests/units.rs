//! The units under systemd itself, as they are installed: the daemons come up within what the units allow, a guest boots and
//! moves between two agents, and it runs on while its agent is restarted and stopped.
//!
//! systemd is the first process of a pid namespace, with mounts, network and control groups of its own; it knows our units and
//! no others. Needs root, cgroup2, systemd and all programs (`make build`).

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use throughline_agent::privilege;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(300);
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd");

/// Everything of the test's on this machine, taken away with the value.
struct Machine {
    /// A directory with what was installed.
    root: PathBuf,
    /// The control group all its processes are in.
    group: PathBuf,
    processes: Option<Child>,
}

impl Machine {
    fn installed() -> Self {
        let name = format!("throughline-units-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let cgroup2 = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let cgroup2 = cgroup2.and_then(|line| line.split(' ').nth(1)).expect("cgroup2 is mounted somewhere");
        let group = Path::new(cgroup2).join(&name);
        fs::create_dir(&group).unwrap();
        let machine = Self { root: env::temp_dir().join(name), group, processes: None };
        // This is .../target/PROFILE/deps/units-HASH.
        let binaries = env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
        let mut install = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install.sh"));
        let installed = install.env("DESTDIR", &machine.root).env("BINARIES", binaries).output().unwrap();
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
        machine
    }

    /// Boots it and gives what it printed, to its verdict.
    fn play(&mut self) -> Vec<String> {
        let enter = format!(
            "echo 0 >{}/cgroup.procs && exec unshare --pid --mount --uts --ipc --net --cgroup --fork \
                             --kill-child {SCRIPTS}/boot.sh 3>&1",
            self.group.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &enter]).env("ROOT", &self.root).env("PLAY", format!("{SCRIPTS}/play.sh"));
        command.env("IMAGE", image()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let child = self.processes.insert(command.spawn().unwrap());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, told) = channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let mut all = Vec::new();
        loop {
            let line = told.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{error} after:\n{}", all.join("\n")));
            let over = matches!(line.as_str(), "PLAYED" | "FAILED");
            all.push(line);
            if over {
                return all;
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.processes {
            // Its only child is the first process of the namespace; with that all others end.
            let _ = child.kill();
            let _ = child.wait();
        }
        for _ in 0..100 {
            remove_group(&self.group);
            if !self.group.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A group and those below it, once they are empty.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

fn image() -> PathBuf {
    let cache = env::var_os("THROUGHLINE_CACHE").map(PathBuf::from);
    let image =
        cache.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap()).join(".cache/throughline")).join("guest");
    assert!(image.join("vmlinuz").exists(), "there is no guest image in {}: run `make setup`", image.display());
    image
}

#[test]
fn a_guest_moves_within_the_units_and_outlives_its_agent() {
    let mut machine = Machine::installed();
    let told = machine.play();
    let text = told.join("\n");
    assert_eq!(told.last().map(String::as_str), Some("PLAYED"), "{text}");

    // "agent CapEff: 00…" and the like: /proc/PID/status of each, while it served.
    let status: HashMap<_, _> = told.iter().filter_map(|line| line.split_once(":\t")).collect();
    let kept = privilege::kept(false).iter().fold(0, |all, keep| all | keep.capability.bits());
    for (daemon, kept) in [("agent", kept), ("controller", 0)] {
        for (field, wanted) in [
            ("CapEff", format!("{kept:016x}")),
            ("CapPrm", format!("{kept:016x}")),
            ("CapBnd", format!("{kept:016x}")),
            ("CapAmb", format!("{:016x}", 0)),
            ("NoNewPrivs", "1".to_owned()),
            // By filter.
            ("Seccomp", "2".to_owned()),
        ] {
            assert_eq!(status[format!("{daemon} {field}").as_str()], wanted, "{field} of the {daemon}\n{text}");
        }
    }
    let users: Vec<_> = status["controller Uid"].split('\t').collect();
    assert!(users.iter().all(|uid| *uid != "0"), "the controller runs as root: {users:?}");
    // What /proc says of a process that its own user may neither trace nor dump.
    assert_eq!(status["controller EnvironOwner"], "0", "the controller's memory is open to its user");
}
