//! The lab in which things are broken: daemons that can be struck and started again, one guest, and the probes around it.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde_json::Value;

use super::cell::Kind;
use super::clock;
use super::cold;
use super::disks::{self, Disks};
use super::ear::Ear;
use super::phase::Phase;
use super::storage;
use super::window::Window;
use crate::demo::cast;
use crate::demo::disks::PARAMETERS;
use crate::demo::image::Image;
use crate::demo::probes::Probes;
use crate::demo::resources::Usage;
use crate::demo::stage::Stage;
use crate::lab::Lab;
use crate::operator::Operator;
use crate::play;
use crate::signals;
use crate::topology::{Node, Role, Topology};

/// What the daemons log: all that a machine hears and does.
const LOG: &str = "info,throughline_agent::driver=debug";
/// Numbered packets a second, each way.
const PPS: u32 = 1000;
/// How long something may take that takes a daemon's attention.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab with everything in it.
pub(super) struct World<'a> {
    pub(super) stage: Stage<'a>,
    pub(super) topology: &'a Topology,
    pub(super) daemons: BTreeMap<String, Daemon>,
    probes: Option<Probes>,
    /// Where the guest is.
    pub(super) home: String,
    window: Window,
    /// What is there with the guest at home on a host, by node.
    pub(super) usual: BTreeMap<String, BTreeMap<String, Usage>>,
    /// Those of a guest that has some.
    pub(super) disks: Option<Disks>,
    /// Which part of the matrix it is for.
    pub(super) kind: Kind,
}

/// A node's daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) child: Child,
    pub(super) ear: Ear,
}

impl Daemon {
    fn start(lab: &Lab, node: &Node) -> Result<Self> {
        let (ear, log) = Ear::open(&lab.log(&node.name))?;
        let mut command = play::daemon(lab, node)?;
        clock::give(lab, &node.name, &mut command)?;
        command.env("RUST_LOG", LOG).stdout(Stdio::null()).stderr(log);
        // SAFETY: the closure only makes the sigaction system call. A file that may not grow is then an error to a write,
        // as a full disk is, and not the end of the process.
        unsafe { command.pre_exec(|| Ok(signal(Signal::SIGXFSZ, SigHandler::SigIgn).map(drop)?)) };
        let child =
            play::start_apart(lab, command).with_context(|| format!("cannot start the daemon of {}", node.name))?;
        Ok(Self { child, ear })
    }
}

impl<'a> World<'a> {
    /// Brings the lab up, boots the guest, stops it if it is to be, and moves it there and back: what is there then is what there is
    /// to be.
    pub(super) fn new(lab: &'a Lab, topology: &'a Topology, kind: Kind) -> Result<Self> {
        let with_disks = kind != Kind::Bare;
        let mut daemons = BTreeMap::new();
        let stage = Stage::over(lab, topology, Image::find()?, |lab, topology| {
            play::hosts_up(lab, topology)?;
            for node in topology.with_role(Role::Hypervisor).filter(|_| with_disks) {
                storage::mount_on(lab, &node.name)?;
            }
            for node in topology.nodes.iter().filter(|node| !node.daemon.is_empty()) {
                daemons.insert(node.name.clone(), Daemon::start(lab, node)?);
            }
            let operator = Operator::new(lab, topology)?;
            play::await_agents(&operator, topology, || Ok(()))?;
            Ok(operator)
        })?;
        let home = stage.hypervisors[0].to_owned();
        let (window, usual) = (Window::default(), BTreeMap::new());
        let mut world = Self { stage, topology, daemons, probes: None, home, window, usual, disks: None, kind };
        if with_disks {
            world.stage.create_guest(PARAMETERS, &disks::FLAGS)?;
            let filled = if kind == Kind::Stopped { cold::FILLED } else { disks::FILLED };
            world.disks = Some(Disks::fill(&world, filled)?);
        } else {
            world.stage.create_guest("", &[])?;
        }
        for (index, host) in world.endpoints().into_iter().enumerate().skip(world.stage.peers.len()) {
            world.stage.create_endpoint(index, host)?;
        }
        world.probe()?;
        if kind == Kind::Stopped {
            cold::shut_off(&mut world)?;
        }
        // What a host makes for its first move and keeps is there once it has been both ends of one.
        world.move_on()?;
        for _ in 0..2 {
            let whole = world.move_on()?;
            world.disks.iter_mut().for_each(|disks| disks.whole = whole);
            let usage = world.usage()?;
            world.usual.insert(world.home.clone(), usage);
        }
        Ok(world)
    }

    /// Hosts with an endpoint, in the order of the endpoints' numbers: the peers, then the hypervisors.
    pub(super) fn endpoints(&self) -> Vec<&'a str> {
        self.stage.peers.iter().chain(&self.stage.hypervisors).copied().collect()
    }

    /// The guest is about to be shut off: nobody is to ask it.
    pub(super) fn end_probes(&mut self) {
        self.probes = None;
    }

    /// Starts the probes and waits until the guest answers.
    fn probe(&mut self) -> Result<()> {
        self.probes = None;
        let probes = Probes::start(self.stage.lab, &self.stage.hypervisors, self.stage.peers[0], PPS)?;
        self.probes = Some(probes);
        self.window = Window::default();
        Ok(())
    }

    /// The probes, and what was last known of them.
    pub(super) fn probes(&mut self) -> Result<(&mut Probes, &mut Window)> {
        Ok((self.probes.as_mut().context("nobody probes")?, &mut self.window))
    }

    /// The hypervisor the guest is not on.
    pub(super) fn away(&self) -> &'a str {
        let [first, second] = [self.stage.hypervisors[0], self.stage.hypervisors[1]];
        if first == self.home { second } else { first }
    }

    /// The daemon of a node.
    pub(super) fn daemon(&mut self, node: &str) -> Result<&mut Daemon> {
        self.daemons.get_mut(node).with_context(|| format!("{node} has no daemon"))
    }

    /// The latest phase of the move that both ends' logs tell of.
    pub(super) fn latest(&self) -> Option<Phase> {
        self.daemons.values().filter_map(|daemon| daemon.ear.latest()).max()
    }

    /// Starts a daemon that has ended, or ends and starts it.
    pub(super) fn start_again(&mut self, node: &str) -> Result<()> {
        let daemon = self.daemon(node)?;
        daemon.child.kill()?;
        daemon.child.wait()?;
        daemon.ear.finish();
        let found = self.topology.nodes.iter().find(|known| known.name == node).context("an unknown node")?;
        let daemon = Daemon::start(self.stage.lab, found)?;
        self.daemons.insert(node.to_owned(), daemon);
        Ok(())
    }

    /// Waits until every daemon is well and connected.
    pub(super) fn await_daemons(&mut self) -> Result<()> {
        let daemons = &mut self.daemons;
        play::await_agents(&self.stage.operator, self.topology, || {
            for (node, daemon) in &mut *daemons {
                if let Some(status) = daemon.child.try_wait()? {
                    bail!("the daemon of {node} ended with {status}");
                }
            }
            Ok(())
        })
    }

    /// A plain move, as an operator would make it, to the other hypervisor. Gives the bytes of disks that it had to copy.
    pub(super) fn move_on(&mut self) -> Result<u64> {
        let (from, to) = (self.home.clone(), self.away());
        let before = if self.kind == Kind::Stopped { Some(cold::sent_by(self, &from)?) } else { None };
        self.stage.operator.run(&["migrate", cast::GUEST, "--to", to])?;
        self.home = to.to_owned();
        if let Some(before) = before {
            // What is compared is progress too; what was sent the wire knows.
            return Ok(cold::sent_by(self, &from)?.saturating_sub(before));
        }
        let list: Value = self.stage.operator.ask(&["migration", "list", "--guest", cast::GUEST])?;
        Ok(list["migrations"][0]["progress"]["disk_total"].as_u64().unwrap_or_default())
    }

    /// A guest that died is deleted and made anew, as an operator would; one with disks where they are, and with them.
    pub(super) fn revive(&mut self) -> Result<()> {
        if self.probes.is_some() && !self.qemus()?.is_empty() {
            return Ok(());
        }
        self.probes = None;
        let keep: &[&str] = if self.disks.is_some() { &["--keep-disks"] } else { &[] };
        self.stage.operator.run(&[&["guest", "delete", cast::GUEST], keep].concat())?;
        let deadline = Instant::now() + PATIENCE;
        while !self.qemus()?.is_empty() {
            ensure!(Instant::now() < deadline, "a QEMU is left of the guest that was deleted");
            signals::sleep(Duration::from_millis(50))?;
        }
        if self.disks.is_some() {
            self.stage.boot_guest(&self.home, PARAMETERS, &disks::FLAGS)?;
        } else {
            self.home = self.stage.hypervisors[0].to_owned();
            self.stage.boot_guest(&self.home, "", &[])?;
        }
        self.probe()
    }
}
