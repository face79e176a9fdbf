//! What the source's decisions make happen.

use std::{
    fmt::Display,
    sync::{Arc, Mutex},
    time::Duration,
};

use throughline_cutover::{Failure, MigrationPlan, OnStall, Source, SourceEffect, SourceEvent, SourceReport};
use throughline_hypervisor::{Guest, GuestEventKind, HypervisorError, MigrationStatus, RunState};
use throughline_loader::Mode;
use throughline_netlink::Path;
use throughline_wire::v1::{self, from_source};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tracing::{info, warn};

use super::{
    caller::{self, Call},
    disks,
    progress::report_progress,
};
use crate::{
    clock::{ns_since_1970, real_ns},
    driver::Hands,
    host::Host,
    invitation,
    journal::Promise,
    lock::lock,
    memberships,
    moving::{Counted, MovingPort, release_all, release_missing, until, until_or_late},
    resident::{Resident, hypervisor_failure, network_failure},
    slot::Slot,
    uplink::MigrationNews,
    watch::next,
};

/// How often the controller hears of it.
pub(crate) const REPORT_EVERY: Duration = Duration::from_millis(200);
/// No frame carried for this long: the fabric has let go of the source.
const QUIET: Duration = Duration::from_millis(100);
/// How often a guest is resumed that stands for a request to a disk: one that goes on failing is not the move's.
const DISK_TRIES: usize = 5;
/// How soon a guest that did not resume is resumed again.
const RESUME_AGAIN: Duration = Duration::from_millis(50);
/// Longer than a frame takes from the program's verdict into the ring.
const IN_FLIGHT: Duration = Duration::from_micros(300);
/// How long a guest may take to read what is in its tap's ring: a full one, 20,000 frames a second. Nothing new comes
/// meanwhile, so one that reads at all gets there, and nobody waits for one that does not.
const TAKE_DEADLINE: Duration = Duration::from_millis(1600);
/// A guest that takes longer than this is behind: its own ring is full, and QEMU has the last frame in hand until there is room.
/// The slot is missed anyway.
const IN_STEP: Duration = Duration::from_millis(10);
/// How long such a guest may take to make room.
const IN_HAND: Duration = Duration::from_millis(10);
/// Carries out a source's effects.
#[derive(Debug)]
pub(super) struct SourceHands {
    host: Arc<Host>,
    plan: Arc<MigrationPlan>,
    resident: Arc<Resident>,
    events: mpsc::UnboundedSender<SourceEvent>,
    news: MigrationNews,
    call: Option<Call>,
    /// What the destination said of where memory may come.
    prepared: Slot<v1::Prepared>,
    ports: Arc<Mutex<Vec<MovingPort>>>,
    report: Arc<Mutex<v1::CutoverReport>>,
    reported_at: Option<Duration>,
    sending: bool,
    precopy_watch: Option<AbortHandle>,
    disk_watch: Option<AbortHandle>,
    waits: JoinSet<()>,
}

impl SourceHands {
    pub(super) fn new(
        host: Arc<Host>,
        plan: Arc<MigrationPlan>,
        resident: Arc<Resident>,
        ports: Vec<MovingPort>,
        events: mpsc::UnboundedSender<SourceEvent>,
        news: MigrationNews,
    ) -> Self {
        // Ports taken back mean that an earlier agent began to send.
        let sending = !ports.is_empty();
        let mut hands = Self {
            host,
            plan,
            resident,
            events,
            news,
            call: None,
            prepared: Slot::empty(),
            ports: Arc::new(Mutex::new(ports)),
            report: Arc::default(),
            reported_at: None,
            sending,
            precopy_watch: None,
            disk_watch: None,
            waits: JoinSet::new(),
        };
        hands.watch_hypervisor();
        hands
    }

    fn watch_hypervisor(&mut self) {
        let mut from_qemu = self.resident.vm.events();
        let (events, report) = (self.events.clone(), self.report.clone());
        let destination = self.plan.destination.host.clone();
        self.waits.spawn(async move {
            while let Some(event) = next(&mut from_qemu).await {
                let meaning = match event.kind {
                    GuestEventKind::Stop => {
                        let mut report = lock(&report);
                        if report.stopped_at_ns == 0 {
                            report.stopped_at_ns = ns_since_1970(event.at);
                        }
                        SourceEvent::Stopped
                    }
                    GuestEventKind::Migration(MigrationStatus::PreSwitchover) => {
                        lock(&report).pre_switchover_at_ns = ns_since_1970(event.at);
                        SourceEvent::PreSwitchover
                    }
                    GuestEventKind::Migration(MigrationStatus::Failed) => SourceEvent::MemoryFailed(Failure::new(
                        "MEMORY_TRANSFER",
                        "QEMU reports that the migration failed",
                    )),
                    // Comes before the stop that it is the reason for.
                    GuestEventKind::DiskError { why } => SourceEvent::MirrorFailed(write_failed(&destination, &why)),
                    GuestEventKind::Exited(_) => SourceEvent::MemoryFailed(super::guest_ended()),
                    _ => continue,
                };
                let _ = events.send(meaning);
            }
        });
    }

    async fn prepare(&self) -> Result<(), Failure> {
        self.host.keep_flows(&self.resident.ports).await?;
        for (port, plan) in self.resident.ports.iter().zip(&self.plan.ports) {
            let marker = Path::Local { device: port.tap.name.clone() };
            self.host.netlink.set_marker(port.vni, plan.marker_mac, &marker).await.map_err(network_failure)?;
            let opened = self.host.open_port(port.clone(), plan, self.plan.destination.vtep, Mode::Pass).await?;
            lock(&self.ports).push(opened);
        }
        Ok(())
    }

    async fn call_peer(&mut self) -> Option<SourceEvent> {
        let disks = match disks::here(&self.host, &self.resident.vm, &self.plan).await {
            Ok(disks) => disks,
            Err(failure) => return Some(SourceEvent::Abort(failure)),
        };
        let (events, prepared) = (self.events.clone(), self.prepared.clone());
        self.call = Some(Call::place(&self.host.security, &self.plan, events, prepared, disks));
        None
    }

    /// Off the loop, as memory is.
    fn mirror_disks(&mut self) -> Option<SourceEvent> {
        let mut prepared = self.prepared.take()?;
        let wanted = std::mem::take(&mut prepared.disks);
        self.prepared.put(prepared);
        let disks: Vec<_> = self.plan.guest.disks_to_bring().cloned().collect();
        let wanted = match invitation::disks::from_wire(wanted, &disks, self.plan.destination.vtep) {
            Ok(wanted) => wanted,
            Err(failure) => return Some(SourceEvent::MirrorFailed(failure)),
        };
        let (host, vm, events) = (self.host.clone(), self.resident.vm.clone(), self.events.clone());
        let plan = self.plan.clone();
        let watch = self.waits.spawn(async move { disks::send(&host, &vm, &plan, wanted, &events).await });
        self.disk_watch = Some(watch);
        None
    }

    fn end_mirrors(&mut self) {
        let (vm, plan, events) = (self.resident.vm.clone(), self.plan.clone(), self.events.clone());
        self.waits.spawn(async move { drop(events.send(disks::end(&vm, &plan).await)) });
    }

    /// Off the loop, which must hear of a cancel while the destination is called.
    fn start_precopy(&mut self) {
        let Some(prepared) = self.prepared.take() else { return };
        self.sending = true;
        let (host, vm, events) = (self.host.clone(), self.resident.vm.clone(), self.events.clone());
        let plan = self.plan.clone();
        let watch = self.waits.spawn(async move {
            match begin_precopy(&host, &vm, &plan, prepared).await {
                Ok(()) => report_progress(&vm, &events, plan.limits.bandwidth).await,
                Err(failure) => drop(events.send(SourceEvent::MemoryFailed(failure))),
            }
        });
        self.precopy_watch = Some(watch);
    }

    /// Frames wait from now on; what came before, the guest is given time to take: a QEMU that has stopped still reads
    /// one frame from its tap, and that one would be lost with it. Off the loop: the guest may take its time.
    fn arm(&mut self) {
        // Its questions would be in the way of the one command that is in a hurry now.
        for watch in [&self.precopy_watch, &self.disk_watch].into_iter().flatten() {
            watch.abort();
        }
        lock(&self.ports).iter().for_each(MovingPort::hold);
        lock(&self.report).armed_at_ns = real_ns();
        let (ports, events) = (self.ports.clone(), self.events.clone());
        self.waits.spawn(async move {
            // A frame that `steer` let pass just before may still be on its way into the ring, on another processor.
            tokio::time::sleep(IN_FLIGHT).await;
            let began = Instant::now();
            let taken = until(|| !lock(&ports).iter().any(MovingPort::tap_is_waiting));
            if tokio::time::timeout(TAKE_DEADLINE, taken).await.is_err() {
                warn!("the guest does not take its frames; what is in its tap's ring goes to the front of the line");
            } else if began.elapsed() > IN_STEP {
                tokio::time::sleep(IN_HAND).await;
            }
            let _ = events.send(SourceEvent::Armed);
        });
    }

    /// A command of the transfer that QEMU refuses is the end of the transfer.
    #[expect(clippy::unused_self, reason = "reads as one of the hands' moves")]
    fn fail_memory(&self, done: Result<(), HypervisorError>) -> Option<SourceEvent> {
        done.err().map(|error| SourceEvent::MemoryFailed(hypervisor_failure(error)))
    }

    fn record_give_up(&mut self) {
        let (host, plan, events) = (self.host.clone(), self.plan.clone(), self.events.clone());
        self.waits.spawn_blocking(move || drop(events.send(super::give_up(&host, &plan))));
    }

    /// The guest is about to stand, and nothing is to wait behind this.
    fn tell_memberships(&mut self) {
        let Some(call) = self.call.clone() else { return };
        let (host, resident) = (self.host.clone(), self.resident.clone());
        self.waits.spawn(async move {
            // Said also if there are none: the destination makes ready to commit.
            call.say(from_source::Message::Joined(memberships::hand_over(&host, &resident.ports).await));
        });
    }

    fn release_to_carry(&mut self) {
        // At once; what did not succeed is tried again off the loop.
        release_missing(&mut lock(&self.ports), MovingPort::release_to_carry);
        let (ports, events, report) = (self.ports.clone(), self.events.clone(), self.report.clone());
        self.waits.spawn(async move {
            release_all(&ports, MovingPort::release_to_carry).await;
            until(|| lock(&ports).iter().all(MovingPort::line_is_empty)).await;
            lock(&report).line_empty_at_ns = real_ns();
            let _ = events.send(SourceEvent::LineEmpty);
        });
    }

    fn await_quiet(&mut self) {
        let (ports, events) = (self.ports.clone(), self.events.clone());
        self.waits.spawn(async move {
            let total = || lock(&ports).iter().map(|port| port.counted().carried()).sum::<u64>();
            loop {
                let before = total();
                tokio::time::sleep(QUIET).await;
                if total() == before {
                    break;
                }
            }
            let _ = events.send(SourceEvent::Quiet);
        });
    }

    /// Every step is tried; what fails is logged, and what is left the next reconciliation sees.
    async fn remove_guest(&mut self) {
        self.note_bytes().await;
        self.close_ports().await;
        let name = &self.plan.guest.name;
        if let Err(error) = self.resident.vm.quit().await {
            warn!(%error, "the guest's old QEMU did not end");
        }
        self.host.move_out(name).await;
        // They are at the destination, which has run on them since its commit.
        self.host.clear_out_disks(&self.plan.guest).await;
        if let Err(error) = self.host.journal.promise(&self.plan.id, Some(&self.plan), Promise::Left) {
            warn!(%error, "the journal still names a guest that has left");
        }
        self.forget_markers().await;
        info!(guest = %name, destination = %self.plan.destination.host, "left this host");
    }

    /// The guest runs on, and gets what was held meanwhile.
    async fn take_back(&mut self) {
        // What it still had to tell QEMU must not come after the cancel.
        for watch in [self.precopy_watch.take(), self.disk_watch.take()].into_iter().flatten() {
            watch.abort();
            until(|| watch.is_finished()).await;
        }
        self.abandon_mirrors().await;
        if self.sending
            && let Err(error) = self.resident.vm.cancel_migration().await
        {
            warn!(%error, "QEMU's migration could not be cancelled");
        }
        self.resume().await;
        self.release_to_taps().await;
    }

    /// The guest's disks are its own again. Before anything else is said to QEMU: a write that waits for the destination can keep all
    /// of it waiting.
    async fn abandon_mirrors(&self) {
        if !self.plan.guest.disks.is_empty()
            && let Err(error) = self.resident.vm.abandon_mirrors().await
        {
            warn!(%error, "a disk's copy stays until the next move");
        }
    }

    async fn release_to_taps(&self) {
        release_all(&self.ports, MovingPort::release_to_tap).await;
        until_or_late(|| lock(&self.ports).iter().all(MovingPort::line_is_empty)).await;
        // A frame that saw the line just before it was empty may still be on its way into the hold.
        tokio::time::sleep(IN_FLIGHT).await;
        until_or_late(|| lock(&self.ports).iter().all(MovingPort::line_is_empty)).await;
    }

    async fn undo(&mut self) {
        self.take_back().await;
        self.close_ports().await;
        self.forget_markers().await;
        if let Err(error) = self.host.journal.promise(&self.plan.id, Some(&self.plan), Promise::Declined) {
            warn!(%error, "the journal still shows this migration as under way");
        }
        info!(guest = %self.plan.guest.name, "runs on at the source");
    }

    /// The guest runs again, whatever QEMU made of the migration. Not given up before it does or its QEMU is gone.
    async fn resume(&self) {
        let mut disk_tries = 0..DISK_TRIES;
        loop {
            match self.resident.vm.run_state().await {
                // A write that overwrites what is not over yet fails with its copying. Without the copy it is tried again.
                Ok(RunState::DiskError) if disk_tries.next().is_none() => {
                    warn!("a request to a disk of the guest's own goes on failing; see that this host has room for it");
                    return;
                }
                Ok(RunState::DiskError) => {
                    // Of a copy that could not be ended, too.
                    self.abandon_mirrors().await;
                    self.go_on().await;
                }
                Ok(RunState::Running | RunState::Shutdown | RunState::Panicked | RunState::Broken) => return,
                Ok(RunState::FinishMigrate) => drop(self.resident.vm.cancel_migration().await),
                Ok(_) => self.go_on().await,
                Err(error) => {
                    warn!(%error, "the guest's QEMU does not answer");
                    return;
                }
            }
            tokio::time::sleep(RESUME_AGAIN).await;
        }
    }

    async fn go_on(&self) {
        if let Err(error) = self.resident.vm.cont().await {
            warn!(%error, "the guest could not be resumed yet");
        }
    }

    async fn close_ports(&self) {
        let ports = std::mem::take(&mut *lock(&self.ports));
        for port in ports {
            let name = port.port.tap.name.clone();
            match port.close().await {
                Ok(counted) => self.add_to_report(counted),
                Err(failure) => warn!(%failure, tap = name, "the port's programs were not wholly detached"),
            }
        }
    }

    async fn forget_markers(&self) {
        for plan in &self.plan.ports {
            if let Err(error) = self.host.netlink.remove_marker(plan.vni, plan.marker_mac).await {
                warn!(%error, "a marker's forwarding entry stays");
            }
        }
    }

    async fn note_bytes(&self) {
        if let Ok(progress) = self.resident.vm.progress().await {
            let mut report = lock(&self.report);
            report.memory_bytes = progress.transferred;
            report.qemu_downtime_ms = progress.downtime_ms.unwrap_or(0);
        }
    }

    fn add_to_report(&self, counted: Counted) {
        let mut report = lock(&self.report);
        report.held += counted.held();
        report.carried += counted.carried();
        report.overflowed += counted.overflowed();
    }

    /// What has been counted so far, ports still open included.
    fn counted_report(&self) -> v1::CutoverReport {
        let mut report = *lock(&self.report);
        for port in lock(&self.ports).iter() {
            let counted = port.counted();
            report.held += counted.held();
            report.carried += counted.carried();
            report.overflowed += counted.overflowed();
        }
        report
    }

    fn tell_controller(&mut self, report: SourceReport) {
        let counted = self.counted_report();
        match report {
            SourceReport::Progress(progress) => {
                let now = self.host.clock.now();
                if self.reported_at.is_none_or(|at| now >= at + REPORT_EVERY) {
                    self.reported_at = Some(now);
                    self.news.progress(progress);
                }
            }
            SourceReport::Stalled(failure) => self.news.stalled(failure, counted),
            SourceReport::Precopy => self.news.step(v1::Step::Precopy, counted),
            SourceReport::Armed => self.news.step(v1::Step::Armed, counted),
            SourceReport::Paused => self.news.step(v1::Step::Paused, counted),
            SourceReport::LineEmpty => self.news.step(v1::Step::LineEmpty, counted),
            SourceReport::Settled => self.news.will_say_settled(counted),
            SourceReport::Aborted(failure) => self.news.will_say_aborted(failure, counted),
        }
    }

    fn say(&self, message: from_source::Message) {
        if let Some(call) = &self.call {
            call.say(message);
        }
    }
}

/// Memory begins to move to where the destination said.
async fn begin_precopy(host: &Host, vm: &Guest, plan: &MigrationPlan, prepared: v1::Prepared) -> Result<(), Failure> {
    let invitation = invitation::from_wire(prepared, plan.destination.vtep, host.config.memory_plaintext)?;
    if invitation.sealed.is_none() {
        warn!("this guest's memory leaves in the clear (--memory-plaintext)");
    }
    let stream = vm.call(&invitation, host.config.vtep, &host.sealer).await.map_err(hypervisor_failure)?;
    let may_throttle = plan.limits.on_stall == OnStall::Throttle;
    vm.start_migration(stream, plan.limits.bandwidth, may_throttle).await.map_err(hypervisor_failure)
}

/// QEMU does not say whether it was the copy at the destination that failed a write of the guest's, or the disk here.
fn write_failed(destination: &impl Display, why: &str) -> Failure {
    let message = format!(
        "a request of the guest's to a disk failed while it was copied to {destination}: {why}; without the copy it is tried \
         again here; see that {destination} has room and can be reached, and that this host's disk is well, and migrate again"
    );
    Failure::new("DISK_COPY", message)
}

impl Hands for SourceHands {
    type Machine = Source;

    async fn execute(&mut self, effect: SourceEffect) -> Option<SourceEvent> {
        match effect {
            SourceEffect::CallPeer => return self.call_peer().await,
            SourceEffect::PrepareDatapath => {
                return Some(match self.prepare().await {
                    Ok(()) => SourceEvent::Ready,
                    Err(failure) => SourceEvent::Abort(failure),
                });
            }
            SourceEffect::MirrorDisks => return self.mirror_disks(),
            SourceEffect::EndMirrors => self.end_mirrors(),
            SourceEffect::StartPrecopy => self.start_precopy(),
            SourceEffect::Brake => return self.fail_memory(self.resident.vm.brake().await),
            SourceEffect::Unbrake => {
                return self.fail_memory(self.resident.vm.set_bandwidth(self.plan.limits.bandwidth).await);
            }
            SourceEffect::Throttle { percent } => {
                return self.fail_memory(self.resident.vm.throttle(percent).await);
            }
            SourceEffect::Arm => self.arm(),
            SourceEffect::Pause => return self.fail_memory(self.resident.vm.let_stop().await),
            SourceEffect::TellMemberships => self.tell_memberships(),
            SourceEffect::RecordGiveUp => self.record_give_up(),
            SourceEffect::TellGiveUp => {
                self.say(from_source::Message::GiveUp(v1::GiveUp { generation: self.plan.generation.0 }));
            }
            SourceEffect::ContinueSwitchover => {
                lock(&self.report).continued_at_ns = real_ns();
                return self.fail_memory(self.resident.vm.continue_switchover().await);
            }
            SourceEffect::ReleaseToCarry => self.release_to_carry(),
            SourceEffect::TellLineEmpty => {
                let flushed = self.counted_report().held;
                self.say(from_source::Message::LineEmpty(v1::LineEmpty { flushed }));
            }
            SourceEffect::TellAbort(failure) => {
                self.say(from_source::Message::Abort(v1::Abort { failure: Some(failure.into()) }));
            }
            SourceEffect::Resolve => caller::ask(&self.host.security, &self.plan, self.events.clone()),
            SourceEffect::AwaitQuiet => self.await_quiet(),
            SourceEffect::RemoveGuest => {
                self.remove_guest().await;
                return Some(SourceEvent::Removed);
            }
            SourceEffect::Undo => {
                self.undo().await;
                return Some(SourceEvent::Undone);
            }
            SourceEffect::Report(report) => self.tell_controller(report),
        }
        None
    }
}
