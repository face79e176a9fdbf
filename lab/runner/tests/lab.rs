//! The runner leaves nothing behind, however it ends. Needs root and all programs built (`make build`), and the guest image.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_throughline-lab");
const TOPOLOGY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../three-hosts.clab.yml");

/// A lab of the test's own, taken down with it.
struct OwnLab {
    name: String,
}

impl OwnLab {
    fn new(test: &str) -> Self {
        let daemon = Path::new(PROGRAM).with_file_name("throughline-agent");
        assert!(daemon.exists(), "{} is not built: run `make build`", daemon.display());
        Self { name: format!("t{}-{test}", std::process::id()) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["--topology", TOPOLOGY, "--name", &self.name]).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a demo and waits until it prints a line that begins so.
    fn demo_until(&self, beginning: &str) -> Child {
        self.started_until(&["demo", "--runs", "1"], beginning)
    }

    /// Starts the runner and waits until it prints a line that begins so.
    fn started_until(&self, arguments: &[&str], beginning: &str) -> Child {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let found = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with(beginning));
        assert!(found, "it ended before it said {beginning:?}");
        // Whoever reads no more would break its pipe.
        std::thread::spawn(move || lines.for_each(drop));
        child
    }

    /// Inodes of the lab's namespaces, to find processes in them by after their names are gone.
    fn namespaces(&self) -> Vec<u64> {
        let prefix = format!("tl-{}-", self.name);
        let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let own = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        own.map(|entry| fs::metadata(entry.path()).unwrap().ino()).collect()
    }

    /// Nothing of the lab is left: no namespace, process, mount (with it no pinned BPF object) or file.
    fn assert_gone(&self, namespaces: &[u64]) {
        assert_eq!(self.namespaces(), [], "namespaces");
        let processes: Vec<_> = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| {
                fs::metadata(entry.path().join("ns/net")).is_ok_and(|inside| namespaces.contains(&inside.ino()))
            })
            .map(|entry| fs::read_to_string(entry.path().join("comm")).unwrap_or_default())
            .collect();
        assert_eq!(processes, Vec::<String>::new(), "processes");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&format!("/throughline-lab/{}/", self.name)), "mounts");
        assert!(!Path::new("/run/throughline-lab").join(&self.name).exists(), "its directory");
    }
}

impl Drop for OwnLab {
    fn drop(&mut self) {
        let _ = self.run(&["down"]);
    }
}

fn signal(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id() as i32), signal).unwrap();
}

#[test]
fn up_exec_down() {
    let lab = OwnLab::new("up");
    lab.succeed(&["up"]);
    let namespaces = lab.namespaces();
    assert_eq!(namespaces.len(), 5, "fabric, ctl, h1, h2, peer");
    let hosts = lab.succeed(&["exec", "ctl", "--", "throughline", "host", "list"]);
    assert!(["h1", "h2", "peer"].iter().all(|host| hosts.contains(host)), "{hosts}");
    let address = lab.succeed(&["exec", "h1", "--", "ip", "-br", "address", "show", "eth1"]);
    assert!(address.contains("192.0.2.11/24"), "{address}");
    // Over the underlay, from another host.
    lab.succeed(&["exec", "h2", "--", "throughline", "network", "list"]);
    assert!(!lab.run(&["exec", "h9", "--", "true"]).status.success());

    lab.succeed(&["down"]);
    lab.assert_gone(&namespaces);
    lab.succeed(&["down"]);
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    for (name, how) in [("int", Signal::SIGINT), ("term", Signal::SIGTERM)] {
        let lab = OwnLab::new(name);
        let mut demo = lab.demo_until("run 1 of 1");
        let namespaces = lab.namespaces();
        assert_eq!(namespaces.len(), 5);
        signal(&demo, how);
        assert!(!demo.wait().unwrap().success(), "interrupted is not done");
        lab.assert_gone(&namespaces);
    }
}

#[test]
fn an_interrupted_bench_leaves_nothing() {
    let lab = OwnLab::new("bench");
    let out = std::env::temp_dir().join(&lab.name);
    let out = out.to_str().unwrap();
    let arguments = ["bench", "--only", "continuity", "--ways", "rewriting", "--loads", "paced", "--out", out];
    let mut bench = lab.started_until(&arguments, "  2000 packets/s, no move");
    let namespaces = lab.namespaces();
    assert_eq!(namespaces.len(), 5);
    signal(&bench, Signal::SIGINT);
    assert!(!bench.wait().unwrap().success(), "interrupted is not done");
    lab.assert_gone(&namespaces);
    assert!(!Path::new(out).exists(), "nothing was measured");
}

#[test]
fn what_a_killed_demo_leaves_the_next_down_takes() {
    let lab = OwnLab::new("kill");
    let mut demo = lab.demo_until("run 1 of 1");
    let namespaces = lab.namespaces();
    let refused = lab.run(&["down"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in use"), "{refused:?}");
    signal(&demo, Signal::SIGKILL);
    demo.wait().unwrap();
    assert_eq!(lab.namespaces(), namespaces, "nobody could clean up");
    lab.succeed(&["down"]);
    lab.assert_gone(&namespaces);
}

#[test]
fn a_topology_that_cannot_be_set_up_is_undone() {
    let lab = OwnLab::new("half");
    let text = fs::read_to_string(TOPOLOGY).unwrap().replacen("192.0.2.12/24", "not-an-address", 1);
    let path = std::env::temp_dir().join(format!("{}.clab.yml", lab.name));
    fs::write(&path, text).unwrap();
    let output =
        Command::new(PROGRAM).args(["--topology", path.to_str().unwrap(), "--name", &lab.name, "up"]).output().unwrap();
    fs::remove_file(&path).unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && why.contains("node h2") && why.contains("not-an-address"), "{why}");
    lab.assert_gone(&[]);
}
