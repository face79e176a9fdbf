//! What the destination's decisions make happen.

use std::{
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use throughline_cutover::{
    Destination, DestinationEffect, DestinationEvent, DestinationReport, Failure, GatePeer, Generation, MigrationPlan,
    Mtu, PortId,
};
use throughline_hypervisor::{FdRole, Guest, GuestEventKind, MigrationStatus};
use throughline_loader::{Mode, are_all_in};
use throughline_wire::v1::{self, from_destination::Message};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tracing::{info, warn};

use super::disks;
use crate::{
    clock::{ns_since_1970, real_ns},
    disks::{Opened, Received, Unfinished},
    driver::Hands,
    flip::{Flip, MarksAs, flip},
    gates::{lane_of, sharing},
    host::Host,
    invitation,
    journal::{JournalError, PendingCommit},
    lock::lock,
    moves::{SourceCall, ToSource},
    moving::{Counted, MovingPort, until_or_late},
    peer::answer,
    resident::{Resident, ResidentPort, Segment, Start, hypervisor_failure},
    slot::Slot,
    uplink::MigrationNews,
    watch::next,
};

/// How often the marker map is looked at while the gate waits.
const LOOK_EVERY: Duration = Duration::from_micros(300);
/// How often it is looked whether something of the source's line has come.
const LINE_LOOK_EVERY: Duration = Duration::from_millis(250);

/// How soon a gate that could not be opened is opened again.
const OPEN_AGAIN: Duration = Duration::from_millis(50);

/// How often a drafted commit is written again: after half a second the way to the file is cold, after this it is not.
const WARM_EVERY: Duration = Duration::from_millis(5);
/// How long. A pause is over by then, or takes so long that a millisecond more does not matter.
const KEPT_WARM: Duration = Duration::from_secs(2);

/// What the controller calls it when an operator does not want a migration any more.
pub(crate) const CANCELLED: &str = "CANCELLED";

/// Carries out a destination's effects.
#[derive(Debug)]
pub(super) struct DestinationHands {
    host: Arc<Host>,
    plan: Arc<MigrationPlan>,
    events: mpsc::UnboundedSender<DestinationEvent>,
    caller: Slot<SourceCall>,
    to_source: Option<ToSource>,
    /// What it says of the guest's disks.
    here: Vec<v1::DiskHere>,
    news: MigrationNews,
    vm: Option<Guest>,
    ports: Arc<Mutex<Vec<MovingPort>>>,
    report: Arc<Mutex<v1::CutoverReport>>,
    /// For the source, until it is told.
    prepared: Option<v1::Prepared>,
    /// Waits for the source's memory.
    door: Option<AbortHandle>,
    /// Writes out what has come of the disks.
    writing_out: Option<AbortHandle>,
    line_watch: Option<AbortHandle>,
    /// Waits for the decision to commit; gone without one, there is none.
    commit_drafted: Option<Sender<()>>,
    /// Somebody does not want this migration, or what came cannot be relied on.
    no_next_try: bool,
    waits: JoinSet<()>,
}

impl DestinationHands {
    pub(super) fn new(
        host: Arc<Host>,
        plan: Arc<MigrationPlan>,
        events: mpsc::UnboundedSender<DestinationEvent>,
        caller: Slot<SourceCall>,
        news: MigrationNews,
    ) -> Self {
        Self {
            host,
            plan,
            events,
            caller,
            to_source: None,
            here: Vec::new(),
            news,
            vm: None,
            ports: Arc::default(),
            report: Arc::default(),
            prepared: None,
            door: None,
            writing_out: None,
            line_watch: None,
            commit_drafted: None,
            no_next_try: false,
            waits: JoinSet::new(),
        }
    }

    /// Goes on with a guest and ports that an earlier agent made.
    pub(super) fn take_up(&mut self, resident: &Resident, ports: Vec<MovingPort>) {
        self.vm = Some(resident.vm.clone());
        *lock(&self.ports) = ports;
    }

    /// Devices, programs (mute first, bridge after), QEMU and a door for its memory.
    async fn prepare(&mut self) -> Result<(), Failure> {
        let mut ports = Vec::with_capacity(self.plan.ports.len());
        let mut mtus: Vec<Mtu> = Vec::with_capacity(self.plan.ports.len());
        for plan in &self.plan.ports {
            let mtu = self.host.bindings.mtu_of(plan.vni)?;
            mtus.push(mtu);
            let segment = Segment { vni: plan.vni, mtu };
            let made = Arc::new(self.host.make_port(&plan.port, segment, self.plan.guest.queues).await?);
            let mut moving = self.host.open_port(made.clone(), plan, self.plan.source.vtep, Mode::Mute).await?;
            let landing = self.host.open_landing(&moving, self.plan.source.vtep).await;
            let lanes = self.host.make_lanes(&mut moving);
            lock(&self.ports).push(moving);
            landing.and(lanes)?;
            self.host.plug_in(&made).await?;
            ports.push(made);
        }
        self.launch(&ports, &mtus).await
    }

    /// What the source said when it called, if it has.
    fn hear_source(&mut self) {
        if let Some(SourceCall { answers, disks }) = self.caller.take() {
            self.to_source = Some(answers);
            self.here = disks;
        }
    }

    /// QEMU over ports that are ready, and where its memory may come.
    async fn launch(&mut self, ports: &[Arc<ResidentPort>], mtus: &[Mtu]) -> Result<(), Failure> {
        let lanes = lock(&self.ports).iter().map(MovingPort::copy_lanes).collect::<Result<Vec<_>, _>>()?;
        let start = Start::Incoming { lanes: lanes.iter().map(Vec::as_slice).collect() };
        self.hear_source();
        let room = disks::make_room(&self.host, &self.plan, &self.here).await?;
        let opened = |it: Received| (Opened { file: it.file, image: it.image }, it.continued);
        let (files, continued): (Vec<_>, Vec<_>) = room.into_iter().map(opened).unzip();
        let vm = self.host.launch(&self.plan.guest, ports, mtus, start, files).await?;
        self.watch_hypervisor(&vm);
        self.vm = Some(vm.clone());
        self.host.keep_flows(ports).await?;
        let sealer = (!self.host.config.memory_plaintext).then_some(&self.host.sealer);
        if sealer.is_none() {
            warn!("this guest's memory comes in the clear (--memory-plaintext)");
        }
        let listening = vm.listen(self.host.config.vtep, self.plan.source.vtep, sealer);
        let (awaited, invitation) = listening.await.map_err(hypervisor_failure)?;
        let disks = disks::open(&self.host, &self.plan, &vm, &continued, &self.events, &mut self.waits).await?;
        let some_come = !disks.is_empty();
        self.prepared = Some(invitation::to_wire(invitation, disks));
        if some_come {
            self.writing_out = Some(self.waits.spawn(disks::write_out(vm.clone(), self.events.clone())));
        }
        let events = self.events.clone();
        self.door = Some(self.waits.spawn(async move {
            if let Err(error) = vm.receive(awaited).await {
                let _ = events.send(DestinationEvent::MemoryFailed(hypervisor_failure(error)));
            }
        }));
        Ok(())
    }

    fn tell_prepared(&mut self) {
        if let Some(prepared) = self.prepared.take() {
            self.tell_source(Message::Prepared(prepared));
        }
    }

    /// The guest stands at the source, and nothing more is to come.
    fn close_disks(&mut self) {
        self.stop_writing_out();
        let (Some(vm), events) = (self.vm.clone(), self.events.clone()) else { return };
        self.waits.spawn(async move { drop(events.send(disks::close(&vm).await)) });
    }

    fn stop_writing_out(&mut self) {
        if let Some(writing) = self.writing_out.take() {
            writing.abort();
        }
    }

    /// Nobody brings memory any more.
    fn close_door(&mut self) {
        if let Some(door) = self.door.take() {
            door.abort();
        }
    }

    fn watch_hypervisor(&mut self, vm: &Guest) {
        let mut from_qemu = vm.events();
        let (events, report) = (self.events.clone(), self.report.clone());
        self.waits.spawn(async move {
            while let Some(event) = next(&mut from_qemu).await {
                let meaning = match event.kind {
                    GuestEventKind::Migration(MigrationStatus::Completed) => {
                        lock(&report).memory_in_at_ns = ns_since_1970(event.at);
                        DestinationEvent::MemoryIn
                    }
                    GuestEventKind::Migration(MigrationStatus::Failed) => DestinationEvent::MemoryFailed(Failure::new(
                        "MEMORY_TRANSFER",
                        "QEMU at the destination reports that the migration failed",
                    )),
                    GuestEventKind::Exited(exit) => {
                        let message = format!("QEMU at the destination ended during the migration: {exit}");
                        DestinationEvent::MemoryFailed(Failure::new("DESTINATION_QEMU_ENDED", message))
                    }
                    _ => continue,
                };
                let _ = events.send(meaning);
            }
        });
    }

    /// A thread of its own waits for the decision, with all done that need not wait for it.
    fn draft_commit(&mut self) {
        if self.commit_drafted.is_some() {
            return;
        }
        let (decide, decision) = channel();
        self.commit_drafted = Some(decide);
        let (host, plan) = (self.host.clone(), self.plan.clone());
        let write = self.commit_writer();
        self.waits.spawn_blocking(move || {
            let pending = host.journal.begin_commit(&plan);
            if let Ok(pending) = &pending
                && let Err(error) = pending.draft()
            {
                warn!(%error, "the commit could not be drafted; it may fail too, and the guest then stays with the source");
            }
            if is_decided(&decision, &pending) {
                write(pending);
            }
        });
    }

    fn record_commit(&mut self) {
        lock(&self.report).decided_at_ns = real_ns();
        let asked = self.commit_drafted.take().is_some_and(|drafted| drafted.send(()).is_ok());
        if !asked {
            let (host, plan, write) = (self.host.clone(), self.plan.clone(), self.commit_writer());
            self.waits.spawn_blocking(move || write(host.journal.begin_commit(&plan)));
        }
    }

    /// Writes the commit, and answers.
    fn commit_writer(&self) -> impl FnOnce(Result<PendingCommit, JournalError>) + Send + 'static {
        let (host, events, report) = (self.host.clone(), self.events.clone(), self.report.clone());
        move |pending| {
            // A commit that cannot be written is no commit.
            let event = match pending.and_then(PendingCommit::write) {
                Ok(()) => {
                    lock(&report).committed_at_ns = real_ns();
                    DestinationEvent::CommitRecorded
                }
                Err(error) => DestinationEvent::CommitFailed(error.into()),
            };
            let committed = event == DestinationEvent::CommitRecorded;
            let _ = events.send(event);
            if committed && let Err(error) = host.journal.follow_commits() {
                warn!(%error, "the commit is on disk, but the journal's store has not followed it yet");
            }
        }
    }

    fn record_decline(&mut self) {
        self.commit_drafted = None;
        let (host, plan, events) = (self.host.clone(), self.plan.clone(), self.events.clone());
        self.waits.spawn_blocking(move || drop(events.send(super::decline(&host, &plan))));
    }

    fn raise_gate(&self) {
        lock(&self.ports).iter().for_each(MovingPort::hold);
    }

    fn run(&mut self) {
        let (Some(vm), events, report) = (self.vm.clone(), self.events.clone(), self.report.clone()) else { return };
        self.waits.spawn(async move {
            lock(&report).cont_at_ns = real_ns();
            let event = match vm.cont().await {
                Ok(()) => {
                    lock(&report).running_at_ns = real_ns();
                    DestinationEvent::Running
                }
                Err(error) => {
                    warn!(%error, "the guest could not be started yet");
                    DestinationEvent::RunFailed
                }
            };
            let _ = events.send(event);
        });
    }

    /// This host's own bridge leads to the tap from now on.
    async fn flip_own(&self) {
        let generation = self.plan.generation.next();
        let ports: Vec<_> = lock(&self.ports).iter().map(|moving| (moving.port.clone(), moving.plan.clone())).collect();
        for (port, plan) in ports {
            let marks_as = plan.markers.iter().find(|peer| peer.host == *self.host.name()).and_then(MarksAs::peer);
            let order = Flip {
                vni: plan.vni,
                binding: port.binding_here(),
                generation,
                old_vtep: self.plan.source.vtep,
                marker_mac: plan.marker_mac,
                carry_id: plan.carry_id,
                marks_as,
            };
            if let Err(failure) = flip(&self.host, &order).await {
                warn!(%failure, "this host's own bridge does not lead to the guest yet");
            }
        }
    }

    fn await_markers(&mut self) {
        self.watch_line();
        let (host, plan, events) = (self.host.clone(), self.plan.clone(), self.events.clone());
        self.waits.spawn(async move {
            let mut awaited = GatePeer::all(&plan);
            while !awaited.is_empty() {
                awaited.retain(|peer| {
                    let missing = !markers_are_in(&host, &plan, *peer);
                    missing || events.send(DestinationEvent::MarkersIn(*peer)).is_err()
                });
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }

    /// A line that still comes is waited for.
    fn watch_line(&mut self) {
        let (ports, events) = (self.ports.clone(), self.events.clone());
        let watch = self.waits.spawn(async move {
            let total = || lock(&ports).iter().map(|port| port.handle.counters().landed).sum::<u64>();
            let mut landed = total();
            loop {
                tokio::time::sleep(LINE_LOOK_EVERY).await;
                let now = total();
                if now != std::mem::replace(&mut landed, now) && events.send(DestinationEvent::LineMoves).is_err() {
                    return;
                }
            }
        });
        self.line_watch = Some(watch);
    }

    /// One peer is let in, unless another shares its lane and is still waited for: then both with the later one.
    fn let_in(&mut self, peer: GatePeer) {
        let mut ports = lock(&self.ports);
        let Some(port) = ports.get_mut(peer.port as usize) else { return };
        let in_lane = |other| markers_are_in(&self.host, &self.plan, GatePeer { peer: other, ..peer });
        let Some(lane) = lane_of(&port.plan, peer.peer).filter(|_| sharing(&port.plan, peer.peer).all(in_lane)) else {
            return;
        };
        if let Err(failure) = port.let_in(lane) {
            warn!(%failure, "a peer's frames wait at the gate for all others");
        }
    }

    fn open_gate(&mut self) {
        if let Some(watch) = self.line_watch.take() {
            watch.abort();
        }
        self.note_markers();
        let mut open = open_gates(&mut lock(&self.ports));
        let (ports, events, report) = (self.ports.clone(), self.events.clone(), self.report.clone());
        self.waits.spawn(async move {
            while !open {
                tokio::time::sleep(OPEN_AGAIN).await;
                open = open_gates(&mut lock(&ports));
            }
            until_or_late(|| lock(&ports).iter().all(MovingPort::line_is_empty)).await;
            lock(&report).gate_open_at_ns = real_ns();
            let _ = events.send(DestinationEvent::Sealed);
        });
    }

    /// Whose markers came in time, and of the others who sent anything at all.
    fn note_markers(&self) {
        let (mut seen, mut missed, mut cold) = (0, 0, 0);
        let ports = lock(&self.ports);
        for peer in GatePeer::all(&self.plan) {
            let Some(port) = ports.get(peer.port as usize) else { continue };
            if markers_are_in(&self.host, &self.plan, peer) {
                seen += 1;
            } else if lane_of(&port.plan, peer.peer).is_some_and(|lane| port.handle.has_seen(lane)) {
                missed += 1;
            } else {
                cold += 1;
            }
        }
        if missed > 0 {
            warn!(missed, "peers' markers did not come in time; the order of their frames is not assured");
        }
        let mut report = lock(&self.report);
        (report.markers_in, report.markers_missed, report.markers_cold) = (seen, missed, cold);
    }

    /// Off the loop: nobody waits for an announcement.
    fn announce(&mut self) {
        let Some(vm) = self.vm.clone() else { return };
        let ports: Vec<_> = lock(&self.ports).iter().map(|moving| moving.port.clone()).collect();
        let host = self.host.clone();
        self.waits.spawn(async move {
            for port in ports {
                let bridge = throughline_netlink::names::bridge(port.vni);
                if let Err(error) = host.netlink.announce(&bridge, port.port.mac, &port.port.ips).await {
                    warn!(%error, "the guest was not announced; peers' entries are written by their agents all the same");
                }
            }
            if let Err(error) = vm.announce().await {
                warn!(%error, "the guest was not asked to announce itself");
            }
        });
    }

    async fn settle_in(&mut self, generation: Generation) {
        // An agent that took it up again has had it back before the move.
        if self.host.resident(&self.plan.guest.name).await.is_some() {
            return;
        }
        let Some(vm) = self.vm.clone() else { return };
        let ports = lock(&self.ports).iter().map(|moving| moving.port.clone()).collect();
        // A point may have been under way when it moved.
        vm.thaw_what_is_frozen();
        let resident = Resident::new(self.plan.guest.clone(), generation, vm, ports);
        self.host.settle_in(Arc::new(resident)).await;
        self.keep_disks();
        info!(guest = %self.plan.guest.name, %generation, "committed");
    }

    /// Off the loop; the guest runs on them whatever they are called. An agent that is restarted does it again.
    fn keep_disks(&mut self) {
        let (host, plan) = (self.host.clone(), self.plan.clone());
        self.waits.spawn(async move {
            if let Err(failure) = host.keep_disks(&plan.guest).await {
                warn!(guest = %plan.guest.name, %failure, "its disks are not under their names yet; restart this agent");
            }
        });
    }

    async fn close(&self) {
        let ports = std::mem::take(&mut *lock(&self.ports));
        for port in ports {
            let (name, carry_id) = (port.port.tap.name.clone(), port.plan.carry_id.get());
            let (id, lanes) = (port.port.port.id, port.lanes.len());
            self.host.gates.forget(&port);
            match port.close().await {
                Ok(counted) => add(&mut lock(&self.report), counted),
                Err(failure) => warn!(%failure, tap = name, "the port's programs were not wholly detached"),
            }
            if let Err(error) = self.host.datapath.close_landing(carry_id) {
                warn!(%error, tap = name, "the port's landing stays open");
            }
            self.forget_lanes(id, lanes).await;
        }
    }

    /// QEMU lets go of a hold's further queues, the latest first, and they are gone.
    async fn forget_lanes(&self, port: PortId, lanes: usize) {
        let Some(vm) = &self.vm else { return };
        for lane in (1..=lanes as u32).rev() {
            if let Err(error) = vm.drop_fd(FdRole::Lane(port, lane)).await {
                warn!(%error, %port, lane, "a lane of the hold stays until its guest goes");
            }
        }
    }

    /// Devices go with their last descriptor: QEMU's and ours.
    async fn undo(&mut self) {
        self.close_door();
        self.close().await;
        self.stop_writing_out();
        let ended = match self.vm.take() {
            Some(vm) => Some(vm.quit().await),
            None => None,
        };
        if let Some(Err(error)) = &ended {
            warn!(%error, "the QEMU that was to receive the guest did not end");
        }
        let fate = if self.no_next_try {
            Unfinished::Discard
        } else {
            Unfinished::PutAside { ended_badly: !ended.is_none_or(|ended| ended.is_ok_and(|exit| exit.orderly)) }
        };
        if let Err(failure) = self.host.leave_disks(&self.plan.guest, fate).await {
            warn!(%failure, "what came of the guest's disks stays until the next try, or until this agent is restarted");
        }
        info!(guest = %self.plan.guest.name, "did not move here");
    }

    fn counted_report(&self) -> v1::CutoverReport {
        let mut report = *lock(&self.report);
        for port in lock(&self.ports).iter() {
            add(&mut report, port.counted());
        }
        report
    }

    fn tell_source(&mut self, message: Message) {
        self.hear_source();
        answer(self.to_source.as_ref(), message);
    }

    fn tell_controller(&self, report: DestinationReport) {
        let counted = self.counted_report();
        match report {
            DestinationReport::Expecting => self.news.step(v1::Step::Expecting, counted),
            DestinationReport::Committed(generation) => self.news.committed(generation, counted),
            DestinationReport::Running => self.news.step(v1::Step::Running, counted),
            DestinationReport::GateOpen => self.news.step(v1::Step::GateOpen, counted),
            DestinationReport::Settled => self.news.will_say_settled(counted),
            DestinationReport::Aborted(failure) => self.news.will_say_aborted(failure, counted),
        }
    }
}

impl Hands for DestinationHands {
    type Machine = Destination;

    async fn execute(&mut self, effect: DestinationEffect) -> Option<DestinationEvent> {
        match effect {
            DestinationEffect::Prepare => {
                return Some(match self.prepare().await {
                    Ok(()) => DestinationEvent::Ready,
                    Err(failure) => DestinationEvent::NotReady(failure),
                });
            }
            DestinationEffect::TellPrepared => self.tell_prepared(),
            DestinationEffect::CloseDisks => self.close_disks(),
            DestinationEffect::DraftCommit => self.draft_commit(),
            DestinationEffect::RecordCommit { .. } => self.record_commit(),
            DestinationEffect::RaiseGate => self.raise_gate(),
            DestinationEffect::TellCommitted { generation } => {
                self.tell_source(Message::Committed(v1::Committed { generation: generation.0 }));
            }
            DestinationEffect::Run => self.run(),
            DestinationEffect::FlipOwn => {
                self.flip_own().await;
                self.settle_in(self.plan.generation.next()).await;
            }
            DestinationEffect::Announce => self.announce(),
            DestinationEffect::TellRunning => {
                let at_ns = lock(&self.report).running_at_ns;
                self.tell_source(Message::Running(v1::Running { at_ns }));
            }
            DestinationEffect::AwaitMarkers => self.await_markers(),
            DestinationEffect::LetIn(peer) => self.let_in(peer),
            DestinationEffect::OpenGate => self.open_gate(),
            DestinationEffect::TellGateOpen => {
                let gated = self.counted_report().gated;
                self.tell_source(Message::GateOpen(v1::GateOpen { gated }));
            }
            DestinationEffect::Close => {
                self.close().await;
                return Some(DestinationEvent::Closed);
            }
            DestinationEffect::RecordDecline => self.record_decline(),
            DestinationEffect::TellDeclined(failure) => {
                self.no_next_try = [CANCELLED, disks::NOT_WRITTEN].contains(&failure.reason.as_str());
                self.tell_source(Message::Declined(v1::Declined { failure: Some(failure.into()) }));
            }
            DestinationEffect::Undo => {
                self.undo().await;
                return Some(DestinationEvent::Undone);
            }
            DestinationEffect::Report(report) => self.tell_controller(report),
        }
        None
    }
}

/// Waits for the decision, with the commit kept warm for as long as a pause takes. False if there will be none.
fn is_decided(decision: &Receiver<()>, pending: &Result<PendingCommit, JournalError>) -> bool {
    for _ in 0..KEPT_WARM.as_millis() / WARM_EVERY.as_millis() {
        match decision.recv_timeout(WARM_EVERY) {
            Ok(()) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => drop(pending.as_ref().map(PendingCommit::keep_warm)),
        }
    }
    decision.recv().is_ok()
}

/// True if all are open; one that is already stays so.
fn open_gates(ports: &mut [MovingPort]) -> bool {
    let mut open = true;
    for port in ports {
        if let Err(failure) = port.open_gate() {
            warn!(%failure, "frames of this port stay at the gate for now");
            open = false;
        }
    }
    open
}

/// Whether all markers of a peer are in on a port.
fn markers_are_in(host: &Host, plan: &MigrationPlan, peer: GatePeer) -> bool {
    let Some(port) = plan.ports.get(peer.port as usize) else { return false };
    host.datapath.markers_seen(port.carry_id.get(), peer.peer).is_ok_and(are_all_in)
}

fn add(report: &mut v1::CutoverReport, counted: Counted) {
    report.gated += counted.state.held;
    report.overflowed += counted.overflowed();
    report.refused += counted.refused();
}
