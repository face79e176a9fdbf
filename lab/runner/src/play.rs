//! Playing a topology: namespaces, bridges, links, commands, daemons, in this order.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::setsid;

use crate::lab::Lab;
use crate::namespace::run;
use crate::operator::Operator;
use crate::processes::Process;
use crate::signals;
use crate::teardown;
use crate::topology::{Interface, Node, Role, Topology};

/// How long the daemons may take until every agent is connected.
const HEALTHY: Duration = Duration::from_secs(30);

/// What all nodes know the storage by that they have in common.
const SHARED: &str = "lab";
/// Users for the lab's guests: numbers no host gives to anybody (systemd's UIDS-GIDS).
const QEMU_USERS: &str = "1900000000-1900000999";

/// Brings a lab up: first away with what an earlier one of this name may have left, then step by step. On failure the
/// daemons' last words are shown and what was made so far is left to the caller to take down.
pub(crate) fn up(lab: &Lab, topology: &Topology) -> Result<Operator> {
    hosts_up(lab, topology)?;
    let operator = Operator::new(lab, topology)?;
    start_daemons(lab, topology, &operator).inspect_err(|_| show_logs(lab, topology))?;
    Ok(operator)
}

/// As [`up`], without the daemons.
pub(crate) fn hosts_up(lab: &Lab, topology: &Topology) -> Result<()> {
    teardown::down(lab)?;
    lab.make_state()?;
    fs::create_dir_all(lab.shared())?;
    for node in &topology.nodes {
        // The directory first: it is what a later `down` finds the namespace by.
        fs::create_dir_all(lab.node_state(&node.name))?;
        lab.namespace(&node.name).create()?;
    }
    for bridge in &topology.bridges {
        let namespace = lab.namespace(&bridge.node);
        namespace.ip(&["link", "add", &bridge.name, "type", "bridge"])?;
        namespace.ip(&["link", "set", &bridge.name, "up"])?;
    }
    for link in &topology.links {
        join(lab, &link.ends, link.mtu).with_context(|| format!("link {} – {}", link.ends[0], link.ends[1]))?;
    }
    for node in &topology.nodes {
        set_up(lab, node).with_context(|| format!("node {}", node.name))?;
    }
    hand_out_certificates(lab, topology).context("certificates")
}

/// Makes a CA for the lab, and a certificate for each daemon and the operator, as an operator would.
fn hand_out_certificates(lab: &Lab, topology: &Topology) -> Result<()> {
    let controller = &topology.controller()?.name;
    let pki = |words: &[&str], out: Option<PathBuf>| {
        let mut command = Command::new(sibling("throughline")?);
        command.arg("pki").args(words).arg("--dir").arg(lab.authority(controller));
        if let Some(out) = out {
            command.arg("--out").arg(out);
        }
        run(command.stdin(Stdio::null()))
    };
    pki(&["init"], None)?;
    pki(&["rotate", "controller"], Some(lab.credentials(controller)))?;
    pki(&["rotate", "operator/admin"], Some(lab.operator_credentials(controller)))?;
    for node in topology.nodes.iter().filter(|node| has_agent(node)) {
        pki(&["issue", &format!("agent/{}", node.name)], Some(lab.credentials(&node.name)))?;
    }
    Ok(())
}

/// Both ends are made where they belong: neither ever shows in the machine's own namespace.
fn join(lab: &Lab, ends: &[Interface; 2], mtu: u32) -> Result<()> {
    let [first, second] = ends;
    let (here, there) = (lab.namespace(&first.node), lab.namespace(&second.node));
    let mtu = mtu.to_string();
    here.ip(&[
        "link",
        "add",
        &first.name,
        "mtu",
        &mtu,
        "type",
        "veth",
        "peer",
        "name",
        &second.name,
        "mtu",
        &mtu,
        "netns",
        there.name(),
    ])?;
    for end in ends {
        let namespace = lab.namespace(&end.node);
        if let Some(bridge) = &end.bridge {
            namespace.ip(&["link", "set", &end.name, "master", bridge])?;
        }
        namespace.ip(&["link", "set", &end.name, "up"])?;
    }
    Ok(())
}

fn set_up(lab: &Lab, node: &Node) -> Result<()> {
    for words in &node.exec {
        let (program, arguments) = words.split_first().context("an exec line is empty")?;
        run(lab.namespace(&node.name).command(program)?.args(arguments))?;
    }
    if has_agent(node) {
        let bpffs = lab.bpffs(&node.name);
        fs::create_dir_all(&bpffs)?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount a BPF file system on {}", bpffs.display()))?;
    }
    Ok(())
}

/// Whether a node runs an agent.
pub(crate) fn has_agent(node: &Node) -> bool {
    matches!(node.role, Role::Hypervisor | Role::Peer)
}

fn start_daemons(lab: &Lab, topology: &Topology, operator: &Operator) -> Result<()> {
    let mut daemons = vec![start(lab, topology.controller()?)?];
    for node in topology.nodes.iter().filter(|node| has_agent(node)) {
        daemons.push(start(lab, node)?);
    }
    await_agents(operator, topology, || {
        for (name, child) in &mut daemons {
            if let Some(status) = child.try_wait()? {
                bail!("the daemon of {name} ended with {status}");
            }
        }
        Ok(())
    })
}

/// Waits until every agent of a topology is connected; `check` says whether that can still be.
pub(crate) fn await_agents(
    operator: &Operator,
    topology: &Topology,
    mut check: impl FnMut() -> Result<()>,
) -> Result<()> {
    let agents = topology.nodes.iter().filter(|node| has_agent(node)).count();
    let deadline = Instant::now() + HEALTHY;
    loop {
        signals::check()?;
        check()?;
        let why = match operator.connected_hosts() {
            Ok(connected) if connected == agents => return Ok(()),
            Ok(connected) => format!("{connected} of {agents} agents are connected"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(Instant::now() < deadline, "not all daemons were well after {HEALTHY:?}: {why}");
        signals::sleep(Duration::from_millis(50))?;
    }
}

/// Starts a node's daemon, in a session of its own: Ctrl-C is for the runner, which then ends the daemons in its order.
fn start<'a>(lab: &Lab, node: &'a Node) -> Result<(&'a str, Child)> {
    let log = File::create(lab.log(&node.name))?;
    let mut command = daemon(lab, node)?;
    command.stdout(log.try_clone()?).stderr(log);
    let child = start_apart(lab, command).with_context(|| format!("cannot start the daemon of {}", node.name))?;
    Ok((&node.name, child))
}

/// A node's daemon, with the directories the lab gives it; where it is to write its log is left open.
pub(crate) fn daemon(lab: &Lab, node: &Node) -> Result<Command> {
    let (program, arguments) = node.daemon.split_first().with_context(|| format!("node {} has no cmd", node.name))?;
    let mut command = lab.namespace(&node.name).command(sibling(program)?)?;
    command.args(arguments).arg("--state-dir").arg(lab.node_state(&node.name).join("state"));
    command.arg("--tls").arg(lab.credentials(&node.name));
    if has_agent(node) {
        command.arg("--bpffs").arg(lab.bpffs(&node.name));
        command.arg("--qemu-user").arg(QEMU_USERS).arg("--cgroup").arg(lab.cgroup(&node.name));
        command.arg("--device-dir").arg(lab.devices(&node.name));
        command.arg("--shared").arg(format!("{SHARED}={}", lab.shared().display()));
    }
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    Ok(command)
}

/// Starts a process of the lab in a session of its own, to be ended with the lab.
pub(crate) fn start_apart(lab: &Lab, mut command: Command) -> Result<Child> {
    // SAFETY: the closure only makes the setsid system call.
    unsafe { command.pre_exec(|| Ok(setsid().map(drop)?)) };
    let child = command.spawn()?;
    if let Some(process) = Process::find(child.id() as i32) {
        process.record(&lab.record())?;
    }
    Ok(child)
}

/// A program of ours: built into the same directory as this one.
pub(crate) fn sibling(program: &str) -> Result<PathBuf> {
    ensure!(program.starts_with("throughline"), "{program:?} is none of Throughline's programs");
    let path = env::current_exe()?.with_file_name(program);
    ensure!(path.exists(), "{} is not built: run `make build`", path.display());
    Ok(path)
}

/// Shows the end of every daemon's log: after a failure, the lab that wrote them is about to go. Whoever interrupted it does
/// not ask why.
pub(crate) fn show_logs(lab: &Lab, topology: &Topology) {
    if signals::interrupted() {
        return;
    }
    for node in topology.nodes.iter().filter(|node| !node.daemon.is_empty()) {
        show_log(&lab.log(&node.name));
    }
}

/// Shows the end of a log, if there is one.
pub(crate) fn show_log(path: &Path) {
    const LINES: usize = 20;
    // A console's output need not be text.
    let Ok(bytes) = fs::read(path) else { return };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let what = if lines.is_empty() { "nothing is in" } else { "the last lines of" };
    eprintln!("--- {what} {}", path.display());
    lines[lines.len().saturating_sub(LINES)..].iter().for_each(|line| eprintln!("{line}"));
}
