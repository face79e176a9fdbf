//! A port on the move, as this host's kernel has it: programs attached, carry device, pump.

use std::{
    net::Ipv4Addr,
    num::NonZeroU64,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use throughline_cutover::{Failure, PortPlan};
use throughline_loader::{
    Direction, Exit, LandingConfig, Mode, PortConfig, PortHandle, PortState, Pump, PumpCounts, PumpError, PumpOptions,
};
use throughline_netlink::marker::tags;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use crate::{
    flip::MarksAs,
    host::Host,
    lock::lock,
    resident::{RING, ResidentPort, datapath_failure, duplicate, network_failure},
    underlay::release_pace,
};

/// Most frames in line for one port: what the hold's ring takes less the places the kernel frees in batches. The kernel
/// takes some 750 bytes for each beside its payload, which `--hold-mib` bounds.
const LINE_LIMIT: u32 = RING - 32;
/// How long a line may take to get into the tap of a guest that reads it.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
/// How soon a pump that did not start is started again.
const RELEASE_AGAIN: Duration = Duration::from_millis(50);
/// How often a line's emptiness is looked at.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// One port on the move.
#[derive(Debug)]
pub struct MovingPort {
    /// Its devices.
    pub port: Arc<ResidentPort>,
    /// Its plan.
    pub plan: PortPlan,
    /// Its state, shared with the programs.
    pub handle: PortHandle,
    /// Further queues of its hold: the lanes of its gate.
    pub lanes: Vec<OwnedFd>,
    /// Bytes per second at which its line is sent after its guest.
    pace: Option<NonZeroU64>,
    pump: Option<Pump>,
    /// Its part of the memory for frames that wait; `None` of a port that an earlier agent opened.
    _share: Option<OwnedSemaphorePermit>,
}

impl Host {
    /// Attaches the programs to a port, in `mode`, its carry tunnel leading to `remote`.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub async fn open_port(
        &self,
        port: Arc<ResidentPort>,
        plan: &PortPlan,
        remote: Ipv4Addr,
        mode: Mode,
    ) -> Result<MovingPort, Failure> {
        let share = self.share_of_hold_memory()?;
        let carry_ifindex = self.netlink.ensure_carry(self.config.vtep).await.map_err(network_failure)?;
        let config = PortConfig {
            tap_ifindex: port.tap.index,
            hold_ifindex: port.hold.index,
            carry_ifindex,
            carry_id: plan.carry_id.get(),
            remote_vtep: remote,
            line_limit: LINE_LIMIT,
            bytes_limit: self.config.hold_bytes(),
            mode,
            direction: Direction::Tap,
        };
        let datapath = self.datapath.clone();
        let handle = off_the_loop(move || {
            // At a source too: what comes to the carry tunnel uncalled ends there, and is counted.
            datapath.attach_land(carry_ifindex)?;
            datapath.open_port(&config)
        })
        .await?;
        Ok(self.moving_port(port, plan, handle, Some(share)))
    }

    fn moving_port(
        &self,
        port: Arc<ResidentPort>,
        plan: &PortPlan,
        handle: PortHandle,
        share: Option<OwnedSemaphorePermit>,
    ) -> MovingPort {
        let pace = release_pace(&self.config);
        MovingPort { port, plan: plan.clone(), handle, lanes: Vec::new(), pace, pump: None, _share: share }
    }

    fn share_of_hold_memory(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.hold_memory.clone().try_acquire_many_owned(self.config.hold_mib).map_err(|_| {
            let (left, budget) = (self.hold_memory.available_permits(), self.config.hold_budget_mib());
            let message = format!(
                "of the {budget} MiB for frames of moving guests {left} are free on {}, a port takes {}; try again when \
                 another move has ended, or raise --hold-budget-mib there",
                self.name(),
                self.config.hold_mib
            );
            Failure::new("HOLD_MEMORY", message)
        })
    }

    /// Takes a port back whose programs an earlier agent attached.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub async fn adopt_port(&self, port: Arc<ResidentPort>, plan: &PortPlan) -> Result<MovingPort, Failure> {
        let (datapath, tap) = (self.datapath.clone(), port.tap.index);
        let handle = off_the_loop(move || datapath.adopt_port(tap)).await?;
        Ok(self.moving_port(port, plan, handle, None))
    }

    /// Lets carried frames and markers of a port land here.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub async fn open_landing(&self, moving: &MovingPort, source: Ipv4Addr) -> Result<(), Failure> {
        let (datapath, handle) = (self.datapath.clone(), moving.handle.clone());
        let carry_id = moving.plan.carry_id.get();
        let landing = landing_of(&moving.plan, source);
        off_the_loop(move || datapath.open_landing(carry_id, &handle, &landing)).await
    }
}

/// Whose frames and markers land.
fn landing_of(plan: &PortPlan, source_vtep: Ipv4Addr) -> LandingConfig {
    let peers = plan.markers.iter().filter_map(MarksAs::peer);
    let peers = peers.map(|MarksAs { peer, secret }| (u32::from(peer), tags(&secret, plan.carry_id, peer)));
    LandingConfig { source_vtep, marker_mac: plan.marker_mac.octets(), peers: peers.collect() }
}

/// Attaching and detaching take the kernel some 18 ms; the loop that answers the guest must not wait for that.
pub async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, throughline_loader::DatapathError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::new("DATAPATH", error.to_string()))?.map_err(datapath_failure)
}

impl MovingPort {
    /// Frames for the guest wait from now on.
    pub fn hold(&self) {
        self.handle.set_mode(Mode::Hold);
    }

    /// True once its line may go into its own tap.
    pub fn is_released(&self) -> bool {
        self.handle.is_released()
    }

    /// True while frames wait in a ring of the tap's own: each of its queues has one. Never reads any: they are the guest's.
    pub fn tap_is_waiting(&self) -> bool {
        let mut readable: Vec<_> =
            self.port.tap.queues().map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut readable, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Sends the line down the carry tunnel, what is in the tap's own rings first; later frames follow, then go straight.
    ///
    /// # Errors
    /// When the pump cannot start.
    pub fn release_to_carry(&mut self) -> Result<(), Failure> {
        let drain = self.port.tap.copy_queues()?;
        self.release(Exit::Carry { drain }, PumpOptions { bytes_per_second: self.pace })
    }

    /// Lets the line into the port's own tap; later frames follow, then go straight.
    ///
    /// # Errors
    /// When the pump cannot start.
    pub fn release_to_tap(&mut self) -> Result<(), Failure> {
        let tap = self.port.tap.copy_queues()?;
        self.release(Exit::Tap { tap }, PumpOptions::default())
    }

    fn release(&mut self, exit: Exit, options: PumpOptions) -> Result<(), Failure> {
        self.pump = None;
        let pump = Pump::release(&self.handle, self.hold_queues()?, exit, options);
        self.pump = Some(pump.map_err(|error| self.pump_failure(&error))?);
        Ok(())
    }

    /// Lets one lane of the gate into the tap; the others still wait.
    ///
    /// # Errors
    /// When the pump cannot start.
    pub fn let_in(&mut self, lane: u32) -> Result<(), Failure> {
        self.at_gate()?.open_lanes(1 << lane);
        Ok(())
    }

    /// Lets in all that is left.
    ///
    /// # Errors
    /// When the pump cannot start.
    pub fn open_gate(&mut self) -> Result<(), Failure> {
        self.at_gate()?.open_all();
        Ok(())
    }

    fn at_gate(&mut self) -> Result<&Pump, Failure> {
        let pump = match self.pump.take() {
            Some(pump) => pump,
            None => {
                let pump = Pump::at_gate(&self.handle, self.hold_queues()?, self.port.tap.copy_queues()?);
                pump.map_err(|error| self.pump_failure(&error))?
            }
        };
        Ok(self.pump.insert(pump))
    }

    /// Its lanes once more, for QEMU to keep.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn copy_lanes(&self) -> Result<Vec<OwnedFd>, Failure> {
        self.lanes.iter().map(duplicate).collect()
    }

    fn hold_queues(&self) -> Result<Vec<OwnedFd>, Failure> {
        std::iter::once(&self.port.hold.fd).chain(&self.lanes).map(duplicate).collect()
    }

    fn pump_failure(&self, error: &PumpError) -> Failure {
        Failure::new("DATAPATH", format!("{}: {error}", self.port.tap.name))
    }

    /// True when a pump runs and nothing is in line.
    pub fn line_is_empty(&self) -> bool {
        self.pump.as_ref().is_some_and(Pump::is_line_empty)
    }

    /// What has been counted so far.
    pub fn counted(&self) -> Counted {
        Counted { state: self.handle.counters(), pump: self.pump.as_ref().map(Pump::counts).unwrap_or_default() }
    }

    /// Detaches the programs; frames pass as if they had never been there.
    ///
    /// # Errors
    /// What the kernel would not undo, in words.
    pub async fn close(mut self) -> Result<Counted, Failure> {
        let pump = self.pump.take().map(Pump::stop).unwrap_or_default();
        let handle = self.handle;
        let state = off_the_loop(move || handle.close()).await?;
        Ok(Counted { state, pump })
    }
}

/// What a port's programs and pump have counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// The programs' words.
    pub state: PortState,
    /// The pump's.
    pub pump: PumpCounts,
}

impl Counted {
    /// Frames that waited: in the hold, and in the tap's ring.
    pub fn held(&self) -> u64 {
        self.state.held + self.pump.from_tap
    }

    /// Frames put on the carry tunnel.
    pub fn carried(&self) -> u64 {
        self.state.carried + self.state.refilled
    }

    /// Frames lost for want of room. Anything but 0 breaks the promise.
    pub fn overflowed(&self) -> u64 {
        self.state.overflowed + self.pump.lost
    }

    /// Frames that came to the landing and were neither the source's nor a peer's markers.
    pub fn refused(&self) -> u64 {
        self.state.refused + self.state.forged
    }
}

/// Releases the lines that were not yet. What the host has no means for now it may have soon, and frames wait: not done
/// before every port is.
pub async fn release_all(ports: &Mutex<Vec<MovingPort>>, release: fn(&mut MovingPort) -> Result<(), Failure>) {
    while !release_missing(&mut lock(ports), release) {
        tokio::time::sleep(RELEASE_AGAIN).await;
    }
}

/// One try of [`release_all`]; true if no port is left.
pub fn release_missing(ports: &mut [MovingPort], release: fn(&mut MovingPort) -> Result<(), Failure>) -> bool {
    let mut done = true;
    for port in ports.iter_mut().filter(|port| port.pump.is_none()) {
        if let Err(failure) = release(port) {
            warn!(%failure, "frames of this port stay in the hold for now");
            done = false;
        }
    }
    done
}

/// Waits until `empty` holds; returns at once if it does.
pub async fn until(mut empty: impl FnMut() -> bool) {
    while !empty() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// As [`until`], but not for longer than a guest that reads its tap would take. One that does not read loses what is sent
/// to it at rest too, and must not keep a move open for it. True if it came to be.
pub async fn until_or_late(empty: impl FnMut() -> bool) -> bool {
    let in_time = tokio::time::timeout(RELEASE_DEADLINE, until(empty)).await.is_ok();
    if !in_time {
        warn!("the guest does not read its tap; what still waits for it is given up");
    }
    in_time
}
