//! Daemons and QEMUs of the lab: found by the namespace they are in, QEMUs by the directory they run in; killed as a crash
//! would, started again.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{Lab, wait_for};

/// As /proc/PID/comm shows it, cut to 15 characters.
const AGENT: &str = "throughline-age";
const QEMU: &str = "qemu-system-x86";

/// A daemon that was killed, and how to start it again.
pub(crate) struct Killed {
    node: String,
    /// As it was started; and as it is started again.
    pub(crate) command: Vec<String>,
}

impl Lab {
    /// Kills a node's agent with SIGKILL; its QEMUs are left alone.
    pub(crate) fn kill_agent(&self, node: &str) -> Killed {
        let agent = self.agent(node);
        let command = fs::read_to_string(format!("/proc/{agent}/cmdline")).unwrap();
        self.kill(node, AGENT, agent);
        Killed {
            node: node.to_owned(),
            command: command.trim_end_matches('\0').split('\0').map(str::to_owned).collect(),
        }
    }

    /// A node's agent.
    pub(crate) fn agent(&self, node: &str) -> i32 {
        let agents = self.processes(node, AGENT);
        let [agent] = agents[..] else { panic!("{node} runs one agent, found {agents:?}") };
        agent
    }

    /// Kills the only QEMU on a node with SIGKILL.
    pub(crate) fn kill_qemu(&self, node: &str) {
        let qemus = self.qemus(node);
        let [qemu] = qemus[..] else { panic!("{node} runs one QEMU, found {qemus:?}") };
        self.kill(node, QEMU, qemu);
    }

    /// Starts an agent that was killed, as it was started before, and waits until the controller has it.
    pub(crate) fn start_again(&mut self, killed: &Killed) {
        let node = &killed.node;
        let log = OpenOptions::new().append(true).open(self.log(node)).unwrap();
        let command: Vec<_> = killed.command.iter().map(String::as_str).collect();
        let mut command = self.on(node, &command);
        command.env("NO_COLOR", "1").stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.started.push(command.spawn().unwrap());
        wait_for(&format!("the agent of {node} connects again"), Duration::from_secs(20), || {
            self.is_connected(node).then_some(())
        });
    }

    /// Waits until no QEMU is left on a node.
    pub(crate) fn assert_no_qemu(&self, node: &str) {
        wait_for(
            &format!("the QEMU that waited on {node} for a guest that did not come is gone"),
            Duration::from_secs(15),
            || self.qemus(node).is_empty().then_some(()),
        );
    }

    /// Taps and holds of guests on a node.
    pub(crate) fn guest_devices(&self, node: &str) -> Vec<String> {
        let links = self.on(node, &["ip", "-o", "link", "show"]).output().unwrap();
        assert!(links.status.success(), "{links:?}");
        let text = String::from_utf8_lossy(&links.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.split(": ").nth(1));
        names.filter(|name| name.starts_with("tlt") || name.starts_with("tlh")).map(str::to_owned).collect()
    }

    /// How many queues the taps of guests on a node have in service.
    pub(crate) fn tap_queues(&self, node: &str) -> Vec<u64> {
        let taps = self.guest_devices(node).into_iter().filter(|name| name.starts_with("tlt"));
        let queues = |tap: String| {
            let link = self.on(node, &["ip", "-json", "-details", "link", "show", &tap]).output().unwrap();
            let link: Value = serde_json::from_slice(&link.stdout).unwrap();
            link[0]["linkinfo"]["info_data"]["numqueues"].as_u64().unwrap_or_else(|| panic!("{tap}: {link}"))
        };
        taps.map(queues).collect()
    }

    /// Ids of the daemons of ours on a node.
    pub(crate) fn daemons(&self, node: &str) -> Vec<i32> {
        self.processes(node, "throughline-")
    }

    /// Ids of the QEMUs on a node.
    pub(crate) fn qemus(&self, node: &str) -> Vec<i32> {
        self.processes(node, QEMU)
    }

    fn kill(&self, node: &str, comm: &str, pid: i32) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        await_end(&format!("{comm} {pid} on {node}"), pid);
    }

    /// Running processes of a node whose name begins so.
    fn processes(&self, node: &str, comm: &str) -> Vec<i32> {
        let identity = |path: &Path| fs::metadata(path).map(|it| (it.dev(), it.ino()));
        let own = identity(&self.namespace(node)).unwrap_or_else(|error| panic!("{node} has no namespace: {error}"));
        let guests = self.state().join(node).join("state/guests");
        let inside = |entry: &fs::DirEntry| {
            // A process that ended meanwhile, reaped or not, has neither.
            let in_namespace = identity(&entry.path().join("ns/net")).is_ok_and(|theirs| theirs == own);
            let in_guests = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&guests));
            (in_namespace || in_guests)
                && fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with(comm))
        };
        let entries = fs::read_dir("/proc").unwrap().flatten().filter(inside);
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}

/// Waits for a process that was killed: until its last thread has ended, which has let go of its files and ports. Its first may have
/// ended before, and waits for the others as who is not reaped.
pub(crate) fn await_end(what: &str, pid: i32) {
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let status = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        status.filter(|stat| !stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X']))).count()
    };
    wait_for(&format!("{what} ends"), Duration::from_secs(5), || (threads() == 0).then_some(()));
}
