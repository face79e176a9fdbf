//! What is done to the victim, and how it is made good.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cell::{Cell, Fault, Victim};
use super::clock;
use super::phase::{End, Phase};
use super::storage;
use super::world::World;
use crate::demo::cast;
use crate::namespace::run;
use crate::signals;

/// How long something stays stopped, cut or full.
pub(super) const FOR: Duration = Duration::from_secs(2);
/// How soon a daemon that was killed is started again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a daemon stays away, where that is what is tried.
const AWAY: Duration = Duration::from_secs(60);
/// How long a QEMU may take to write its pid.
const LAUNCH: Duration = Duration::from_secs(2);
/// By how much a clock is set ahead or back, seconds.
const HOUR: i64 = 3600;
/// How long the moment may let itself be waited for.
const MOMENT: Duration = Duration::from_secs(20);

/// Something to do at once, on whatever thread finds that the moment has come; the process it was done to, if it was one.
type Blow = Box<dyn FnOnce() -> Result<Option<i32>> + Send>;

/// A blow that waits for its moment.
#[derive(Debug)]
pub(super) struct Strike {
    cell: Cell,
    /// The node that is struck.
    node: String,
    /// The node whose log tells of the moment; none if there is nothing to wait for.
    listened: Option<String>,
    done: Receiver<(Result<Option<i32>>, u64)>,
}

/// A blow that was dealt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Struck {
    /// When, nanoseconds since 1970.
    pub(super) at_ns: u64,
    /// Where the move was by then, as far as the logs tell.
    pub(super) hit: Option<Phase>,
    /// The process that was struck.
    pid: Option<i32>,
}

impl Strike {
    /// Has the blow dealt at the cell's moment of the next move.
    pub(super) fn prepare(world: &mut World<'_>, cell: Cell) -> Result<Self> {
        for daemon in world.daemons.values() {
            daemon.ear.begin();
        }
        let node = victims_node(world, cell.victim)?;
        let blow = blow(world, cell, &node)?;
        let (tell, done) = channel();
        let deal = move || {
            let outcome = blow();
            // Whoever waited for it may have gone.
            let _ = tell.send((outcome, now_ns()));
        };
        // The first write of a move comes before its first line.
        if (cell.fault, cell.phase) == (Fault::Full, Phase::Prepare) {
            deal();
            return Ok(Self { cell, node, listened: None, done });
        }
        let listened = match cell.phase.mark().0 {
            End::Source => world.home.clone(),
            End::Destination => world.away().to_owned(),
        };
        world.daemon(&listened)?.ear.set(cell.phase, Box::new(deal))?;
        Ok(Self { cell, node, listened: Some(listened), done })
    }

    /// Waits for the moment; `None` if it did not come.
    pub(super) fn await_moment(&self, world: &mut World<'_>) -> Result<Option<Struck>> {
        let dealt = self.done.recv_timeout(MOMENT);
        if let Some(node) = &self.listened {
            world.daemon(node)?.ear.unset()?;
        }
        signals::check()?;
        // One that came while the trap was taken away counts.
        let Ok((outcome, at_ns)) = dealt.or_else(|_| self.done.try_recv()) else { return Ok(None) };
        let pid = outcome.with_context(|| format!("{} could not be done", self.cell))?;
        let hit = if self.listened.is_some() { world.latest() } else { Some(self.cell.phase) };
        Ok(Some(Struck { at_ns, hit, pid }))
    }

    /// Makes good what was done, after the time it is to last.
    pub(super) fn mend(&self, world: &mut World<'_>, struck: &Struck) -> Result<()> {
        let Self { cell, node, .. } = self;
        match cell.fault {
            Fault::Ahead | Fault::Behind => {
                signals::sleep(AGAIN)?;
                world.start_again(node)?;
                world.await_daemons()?;
                let believed = clock::is_believed(world.stage.lab, node, hour(cell.fault))?;
                clock::set(world.stage.lab, node, 0)?;
                ensure!(believed, "the daemon of {node} does not go by the clock it was given");
            }
            Fault::Kill | Fault::Away if is_daemon(cell.victim) => {
                signals::sleep(if cell.fault == Fault::Away { AWAY } else { AGAIN })?;
                world.start_again(node)?;
            }
            Fault::Kill | Fault::Away => {}
            Fault::Stop => {
                signals::sleep(FOR)?;
                // One that is gone meanwhile was ended by its agent.
                let _ = struck.pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGCONT));
            }
            Fault::Cut => {
                signals::sleep(FOR)?;
                plug(world, node, "up")?()?;
            }
            Fault::StorageFull => {
                signals::sleep(FOR)?;
                storage::make_room(world.stage.lab, node)?;
            }
            Fault::Full => {
                signals::sleep(FOR)?;
                let daemon = world.daemon(node)?;
                if daemon.child.try_wait()?.is_some() {
                    world.start_again(node)?;
                } else {
                    limit_files(daemon.child.id() as i32, "unlimited")?;
                }
            }
        }
        world.await_daemons()
    }
}

/// By how much a clock is set.
fn hour(fault: Fault) -> i64 {
    if fault == Fault::Behind { -HOUR } else { HOUR }
}

fn is_daemon(victim: Victim) -> bool {
    !matches!(victim, Victim::SourceQemu | Victim::DestinationQemu)
}

fn victims_node(world: &World<'_>, victim: Victim) -> Result<String> {
    Ok(match victim {
        Victim::SourceAgent | Victim::SourceQemu | Victim::SourceHost | Victim::SourceLink => world.home.clone(),
        Victim::DestinationAgent
        | Victim::DestinationQemu
        | Victim::DestinationHost
        | Victim::DestinationLink
        | Victim::DestinationStorage => world.away().to_owned(),
        Victim::PeerAgent | Victim::PeerLink => world.stage.peers[0].to_owned(),
        Victim::Controller | Victim::ControllerLink => world.topology.controller()?.name.clone(),
    })
}

fn blow(world: &mut World<'_>, cell: Cell, node: &str) -> Result<Blow> {
    let signal = match cell.fault {
        Fault::Cut => return plug(world, node, "down"),
        Fault::StorageFull => {
            let (lab, node) = (world.stage.lab.clone(), node.to_owned());
            return Ok(Box::new(move || storage::fill(&lab, &node).map(|()| None)));
        }
        Fault::Full => {
            let pid = world.daemon(node)?.child.id() as i32;
            return Ok(Box::new(move || limit_files(pid, "0")));
        }
        Fault::Ahead | Fault::Behind => {
            let (lab, node, pid) = (world.stage.lab.clone(), node.to_owned(), world.daemon(node)?.child.id() as i32);
            let seconds = hour(cell.fault);
            return Ok(Box::new(move || {
                clock::set(&lab, &node, seconds)?;
                kill(Pid::from_raw(pid), Signal::SIGKILL)?;
                Ok(Some(pid))
            }));
        }
        Fault::Stop => Signal::SIGSTOP,
        Fault::Kill | Fault::Away => Signal::SIGKILL,
    };
    let agent = Pid::from_raw(world.daemon(node)?.child.id() as i32);
    let pid_file = world.stage.lab.node_state(node).join("state/guests").join(cast::GUEST).join("qemu.pid");
    let strike = move |pid: Pid| kill(pid, signal).map(|()| Some(pid.as_raw())).map_err(Into::into);
    Ok(match cell.victim {
        Victim::SourceQemu | Victim::DestinationQemu => Box::new(move || strike(await_pid(&pid_file)?)),
        Victim::SourceHost | Victim::DestinationHost => Box::new(move || {
            strike(agent)?;
            // There is none yet, or no more.
            read_pid(&pid_file).map_or(Ok(None), strike)
        }),
        _ => Box::new(move || strike(agent)),
    })
}

/// The QEMU that has this pid file, which may still be about to be written.
fn await_pid(file: &Path) -> Result<Pid> {
    let deadline = Instant::now() + LAUNCH;
    loop {
        match read_pid(file) {
            Ok(pid) => return Ok(pid),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn read_pid(file: &Path) -> Result<Pid> {
    let text = fs::read_to_string(file).with_context(|| format!("no QEMU: cannot read {}", file.display()))?;
    Ok(Pid::from_raw(text.trim().parse()?))
}

/// Pulls a node's cable at the far end, or plugs it in again.
fn plug(world: &World<'_>, node: &str, state: &'static str) -> Result<Blow> {
    for link in &world.topology.links {
        let [first, second] = &link.ends;
        let far = match () {
            () if first.node == node => second,
            () if second.node == node => first,
            () => continue,
        };
        let (namespace, name) = (world.stage.lab.namespace(&far.node), far.name.clone());
        return Ok(Box::new(move || namespace.ip(&["link", "set", &name, state]).map(|()| None)));
    }
    bail!("{node} has no link")
}

/// Every write to a file fails from now on, or none does.
fn limit_files(pid: i32, bytes: &str) -> Result<Option<i32>> {
    run(Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--fsize={bytes}:unlimited")]))?;
    Ok(Some(pid))
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
