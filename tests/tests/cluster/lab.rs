//! A lab of the test's own, and its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// The nodes that run a daemon of ours.
pub(crate) const NODES: [&str; 4] = ["ctl", "h1", "h2", "peer"];

/// The guest's name.
pub(crate) const GUEST: &str = "web-1";
/// The guest's MAC address.
pub(crate) const GUEST_MAC: &str = "02:00:00:07:00:10";
/// The guest's address, and that of the endpoint it talks to.
pub(crate) const GUEST_ADDRESS: &str = "10.7.0.10";
pub(crate) const ENDPOINT_ADDRESS: &str = "10.7.0.1";
/// The endpoint's MAC address.
pub(crate) const ENDPOINT_MAC: &str = "02:00:00:07:00:01";

const TOPOLOGY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/three-hosts.clab.yml");
const LOG_LINES: usize = 30;

/// One test at a time: see the top of this suite.
static TURN: Mutex<()> = Mutex::new(());

/// A lab, taken down with the value; a test that fails shows the end of every daemon's log first.
pub(crate) struct Lab {
    name: String,
    programs: PathBuf,
    /// Daemons the test started itself, to be reaped after `down`.
    pub(crate) started: Vec<Child>,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// A lab that is not up yet.
    pub(crate) fn reserve(test: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // This is .../target/PROFILE/deps/cluster-HASH; the programs are two levels up.
        let programs = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
        for program in ["-lab", "-agent", "-controller", "-probe", "-seal", ""] {
            let program = programs.join(format!("throughline{program}"));
            assert!(program.exists(), "{} is not built: run `make build`", program.display());
        }
        Self { name: format!("c{}-{test}", std::process::id()), programs, started: Vec::new(), _turn: turn }
    }

    /// A lab with all its agents connected, a network, and an endpoint on the peer.
    pub(crate) fn up(test: &str) -> Self {
        let lab = Self::reserve(test);
        let output = lab.runner(&["up"]).output().unwrap();
        assert!(output.status.success(), "the lab did not come up: {}", String::from_utf8_lossy(&output.stderr));
        lab.throughline(&["network", "create", "blue", "--vni", "7001"]).done();
        let endpoint = ["endpoint", "create", "gw0", "--network", "blue", "--host", "peer"];
        lab.throughline(&[&endpoint[..], &["--mac", ENDPOINT_MAC, "--ip", ENDPOINT_ADDRESS]].concat()).done();
        lab
    }

    /// Boots the guest on h1 and returns when QEMU runs it; the probe waits for the rest.
    pub(crate) fn boot_guest(&self) {
        self.boot_guest_with("", &[]);
    }

    /// The same, told more on its kernel's command line, and made with more flags.
    pub(crate) fn boot_guest_with(&self, parameters: &str, flags: &[&str]) {
        self.boot_guest_from("initrd.img", parameters, flags);
    }

    /// The same from another RAM disk of the guest's image.
    pub(crate) fn boot_guest_from(&self, initrd: &str, parameters: &str, flags: &[&str]) {
        let (kernel, initrd) = (image("vmlinuz"), image(initrd));
        // What its kernel warns of is on its console: a lock-up with where it is.
        let cmdline = format!("console=ttyS0 loglevel=5 panic=-1 tl.ip={GUEST_ADDRESS}/24 {parameters}");
        // Not a multiple of 256 KiB: QEMU 7.2 without KVM corrupts migrated memory of such sizes.
        let create = ["guest", "create", GUEST, "--host", "h1", "--memory", "262136KiB", "--network", "blue"];
        let boot = ["--kernel", &kernel, "--initrd", &initrd, "--cmdline", &cmdline];
        let card = ["--mac", GUEST_MAC, "--ip", GUEST_ADDRESS];
        self.throughline(&[&create[..], &boot, &card, flags].concat()).done();
    }

    /// Does something in a node's network namespace, on a thread of its own; threads begun there stay there.
    pub(crate) fn inside<T: Send>(&self, node: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.namespace(node)).unwrap();
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The lab's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The lab runner, to do something with this lab.
    pub(crate) fn runner(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("throughline-lab"));
        command.args(["--topology", TOPOLOGY, "--name", &self.name]).args(arguments).stdin(Stdio::null());
        command
    }

    /// A command on a node; the runner becomes it, so that the child is the command itself.
    pub(crate) fn on(&self, node: &str, command: &[&str]) -> Command {
        self.runner(&[&["exec", node, "--"], command].concat())
    }

    /// A node's network namespace.
    pub(crate) fn namespace(&self, node: &str) -> PathBuf {
        Path::new("/run/netns").join(format!("tl-{}-{node}", self.name))
    }

    /// The lab's directory.
    pub(crate) fn state(&self) -> PathBuf {
        Path::new("/run/throughline-lab").join(&self.name)
    }

    /// What a node's daemon prints.
    pub(crate) fn log(&self, node: &str) -> PathBuf {
        self.state().join(node).join("log")
    }

    /// What the guest wrote to its console since it came to a host; empty if it never did.
    pub(crate) fn console(&self, host: &str) -> String {
        let path = self.state().join(host).join("state/guests").join(GUEST).join("serial.log");
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Names of the lab's namespaces that exist.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let prefix = format!("tl-{}-", self.name);
        let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|it| it.starts_with(&prefix))
            .collect()
    }

    fn show_logs(&self) {
        for node in NODES {
            let log = fs::read_to_string(self.log(node)).unwrap_or_default();
            for (what, text) in [("log", log), ("guest's console", self.console(node))] {
                let lines: Vec<_> = text.lines().collect();
                let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
                eprintln!("--- {node}: the last {} lines of its {what}", last.len());
                last.iter().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show_logs();
        }
        match self.runner(&["down"]).output() {
            Ok(output) if output.status.success() => {}
            failed => eprintln!("lab {} is not down, take it down by hand: {failed:?}", self.name),
        }
        for child in &mut self.started {
            // `down` has ended it; this only reaps it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asks until there is an answer; panics with `what` when there is none in time.
pub(crate) fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A file of the guest's image, as `make setup` leaves it.
fn image(file: &str) -> String {
    let cache = std::env::var_os("THROUGHLINE_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/throughline"));
    let path = cache.join("guest").join(file);
    assert!(path.exists(), "there is no {}: run `make setup`", path.display());
    path.to_string_lossy().into_owned()
}
