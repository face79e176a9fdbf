//! The destination's agent: what its hands do with each effect, as `agent/daemon/src/destination` has it, and what a restart
//! does with what the journal holds.

use std::collections::{BTreeSet, VecDeque};

use throughline_abi::mode;
use throughline_cutover::{
    Destination, DestinationEffect, DestinationEvent, DestinationPhase, DestinationReport, GatePeer, Machine as _,
};

use crate::{
    machines::When,
    source::{answer_abort, why},
    state::{DestinationAgent, DestinationVm, News, Order, Port, Promise, Question, ToDestination, ToSource, Word},
    system::{GENERATION, Hands, Host, LIMITS, Seeded},
};

/// The destination's events, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum On {
    Announced,
    SourceCalled,
    Ready,
    MemoryIn,
    MemoryFailed,
    SourceGaveUp,
    DisksClosed,
    CommitRecorded,
    Running,
    RunFailed,
    LineEmpty,
    MarkersIn(u8),
    Sealed,
    SettleOrdered,
    Closed,
    SourceAborted,
    SourceLost,
    Asked,
    Abort,
    DeclineRecorded,
    Undone,
    Tick,
}

fn event(on: On) -> DestinationEvent {
    match on {
        On::Announced => DestinationEvent::Announced,
        On::SourceCalled => DestinationEvent::SourceCalled,
        On::Ready => DestinationEvent::Ready,
        On::MemoryIn => DestinationEvent::MemoryIn,
        On::MemoryFailed => DestinationEvent::MemoryFailed(why()),
        On::SourceGaveUp => DestinationEvent::SourceGaveUp { generation: GENERATION },
        On::DisksClosed => DestinationEvent::DisksClosed,
        On::CommitRecorded => DestinationEvent::CommitRecorded,
        On::Running => DestinationEvent::Running,
        On::RunFailed => DestinationEvent::RunFailed,
        On::LineEmpty => DestinationEvent::LineEmpty,
        On::MarkersIn(peer) => DestinationEvent::MarkersIn(GatePeer { port: 0, peer: u32::from(peer) }),
        On::Sealed => DestinationEvent::Sealed,
        On::SettleOrdered => DestinationEvent::SettleOrdered,
        On::Closed => DestinationEvent::Closed,
        On::SourceAborted => DestinationEvent::SourceAborted(why()),
        On::SourceLost => DestinationEvent::SourceLost,
        On::Asked => DestinationEvent::Asked,
        On::Abort => DestinationEvent::Abort(why()),
        On::DeclineRecorded => DestinationEvent::DeclineRecorded,
        On::Undone => DestinationEvent::Undone,
        On::Tick => DestinationEvent::Tick,
    }
}

impl Hands<'_> {
    fn at_destination(&mut self) -> &mut DestinationAgent {
        self.state.destination.agent.as_mut().expect("only an agent that lives acts")
    }

    pub(crate) fn destination_phase(&self) -> Option<DestinationPhase> {
        let id = self.state.destination.agent.as_ref()?.process.machine?;
        Some(self.fabric.destinations.look(id, Destination::phase))
    }

    pub(crate) fn destination_has_deadline(&self) -> bool {
        let id = self.state.destination.agent.as_ref().and_then(|agent| agent.process.machine);
        id.is_some_and(|id| self.fabric.destinations.look(id, |machine| machine.next_deadline().is_some()))
    }

    pub(crate) fn drive_destination(&mut self, first: On, when: When) {
        let mut ready = VecDeque::from([(first, when)]);
        while let Some((on, when)) = ready.pop_front() {
            let Some(id) = self.at_destination().process.machine else { return };
            let (next, effects) = self.fabric.destinations.step(id, on, when, || event(on));
            self.at_destination().process.machine = Some(next);
            for effect in effects.iter() {
                ready.extend(self.do_for_destination(effect).map(|answer| (answer, When::Now)));
            }
        }
        let ended = |id| self.fabric.destinations.look(id, Destination::ended);
        if self.at_destination().process.machine.is_some_and(ended) {
            let agent = self.at_destination();
            let process = std::mem::take(&mut agent.process);
            *agent = DestinationAgent { process, asked: agent.asked, ..DestinationAgent::default() };
            agent.process.leave();
            self.state.destination.words.clear();
            self.state.hang_up_at_destination();
        }
    }

    fn do_for_destination(&mut self, effect: &DestinationEffect) -> Option<On> {
        match effect {
            DestinationEffect::Prepare => return self.prepare_destination(),
            DestinationEffect::TellPrepared if self.part() => self.state.say_to_source(ToSource::Prepared),
            DestinationEffect::CloseDisks => self.at_destination().closing_disks = true,
            DestinationEffect::RecordCommit { .. } => {
                self.at_destination().committing = true;
                // The fault to be found: the guest first, the disk after.
                return (self.fabric.seeded == Seeded::RunsBeforeItCommits).then_some(On::CommitRecorded);
            }
            DestinationEffect::RaiseGate if self.part() => self.state.destination.port.mode = mode::HOLD,
            DestinationEffect::TellCommitted { .. } if self.part() => self.state.say_to_source(ToSource::Committed),
            DestinationEffect::Run => self.at_destination().starting_guest = true,
            DestinationEffect::FlipOwn if self.part() => {
                self.state.destination.leads_here = true;
                let process = &mut self.at_destination().process;
                (process.applied_new, process.resident) = (true, true);
            }
            DestinationEffect::AwaitMarkers => self.at_destination().awaits_markers = true,
            DestinationEffect::LetIn(peer) if self.part() => self.state.destination.port.open_lanes |= 1 << peer.peer,
            DestinationEffect::OpenGate if self.part() => {
                let port = &mut self.state.destination.port;
                (port.mode, port.pumping) = (mode::RELEASE, true);
                self.at_destination().watches_seal = true;
            }
            DestinationEffect::Close => {
                if self.part() {
                    self.close_at_destination();
                }
                return Some(On::Closed);
            }
            DestinationEffect::RecordDecline => self.at_destination().declining = true,
            DestinationEffect::TellDeclined(_) if self.part() => self.state.say_to_source(ToSource::Declined),
            DestinationEffect::Undo => {
                if self.part() {
                    self.close_at_destination();
                }
                if self.part() {
                    self.end_incoming();
                }
                return Some(On::Undone);
            }
            DestinationEffect::Report(report) => self.report_at_destination(report),
            _ => {}
        }
        None
    }

    fn prepare_destination(&mut self) -> Option<On> {
        if self.part() {
            let destination = &mut self.state.destination;
            destination.port = Port { there: true, attached: true, mode: mode::MUTE, ..Port::default() };
            destination.landing = true;
        }
        if self.part() {
            self.state.destination.vm = DestinationVm::Incoming;
            self.state.disks.open = self.state.disks.there;
        }
        Some(On::Ready)
    }

    fn report_at_destination(&mut self, report: &DestinationReport) {
        let process = &mut self.at_destination().process;
        match report {
            DestinationReport::Expecting => process.report(News::Expecting),
            DestinationReport::Committed(_) | DestinationReport::Running | DestinationReport::GateOpen => {
                process.report(News::Owns);
            }
            DestinationReport::Settled => process.last = Some(News::Settled),
            DestinationReport::Aborted(_) => process.last = Some(News::Aborted),
        }
    }

    /// Programs off, landing closed.
    fn close_at_destination(&mut self) {
        let left = self.state.destination.port.detach();
        left.into_iter().for_each(|frame| self.lose(frame));
        self.state.destination.landing = false;
    }

    /// QEMU ends, and the devices with it.
    fn end_incoming(&mut self) {
        self.state.destination.vm = DestinationVm::Gone;
        self.remove_destination_port();
    }

    /// What the agent takes up when it starts: `recover.rs`.
    pub(crate) fn recover_destination(&mut self) {
        let destination = &mut self.state.destination;
        destination.words.clear();
        let there = matches!(destination.vm, DestinationVm::Paused | DestinationVm::Runs);
        let resident = destination.owns && there;
        let moving = destination.port.attached;
        let mut agent = DestinationAgent::default();
        agent.process.resident = resident;
        destination.agent = Some(agent);
        match destination.promise {
            Some(Promise::Receiving) => self.decline_after_restart(),
            Some(Promise::Committed) if resident && moving => self.take_up_at_restart(),
            Some(Promise::Declined) => self.discard_incoming(),
            _ => {}
        }
        // Programs that nobody goes on with are removed.
        if self.state.destination.port.attached && self.at_destination().process.machine.is_none() && self.part() {
            let left = self.state.destination.port.detach();
            left.into_iter().for_each(|frame| self.lose(frame));
        }
    }

    fn decline_after_restart(&mut self) {
        if self.part() {
            self.state.destination.promise = Some(Promise::Declined);
        }
        self.discard_incoming();
        self.at_destination().process.news.push(News::Aborted);
    }

    /// What was to receive the guest, if the last agent did not get to undoing it.
    fn discard_incoming(&mut self) {
        if !self.at_destination().process.resident && self.part() {
            self.end_incoming();
            self.state.destination.landing = false;
        }
    }

    /// It had committed, and the move was under way: the machine goes on from there, behind its gate.
    fn take_up_at_restart(&mut self) {
        let open = self.state.destination.port.mode == mode::RELEASE;
        let machine = Destination::committed_before(GENERATION, LIMITS, self.awaited(), open);
        let id = self.fabric.destinations.enter(&machine);
        self.at_destination().process.machine = Some(id);
        self.drive_destination(On::Announced, When::Now);
    }

    /// The peers whose markers the gate waits for.
    fn awaited(&self) -> BTreeSet<GatePeer> {
        (0..self.state.peers.len()).map(|peer| GatePeer { port: 0, peer: peer as u32 }).collect()
    }

    pub(crate) fn destination_hears_order(&mut self) {
        let order = self.state.destination.link.down.remove(0);
        let busy = self.at_destination().process.machine.is_some();
        match order {
            Order::Expect => self.expect(),
            Order::Abort if busy => self.drive_destination(On::Abort, When::Now),
            Order::Abort => {
                let answer = answer_abort(&mut self.state.destination.promise);
                self.at_destination().process.news.extend(answer);
            }
            Order::Settle if busy => self.drive_destination(On::SettleOrdered, When::Now),
            Order::Settle => {
                let answer = (self.state.destination.promise == Some(Promise::Committed)).then_some(News::Settled);
                self.at_destination().process.news.extend(answer);
            }
            Order::Desired { moved } => self.at_destination().process.hear_desired(moved),
            Order::Start | Order::Rebind => {}
        }
    }

    fn expect(&mut self) {
        if self.at_destination().process.machine.is_some() || self.state.destination.promise.is_some() {
            self.at_destination().process.news.push(News::Aborted);
            return;
        }
        if self.part() {
            self.state.destination.promise = Some(Promise::Receiving);
        }
        let machine = Destination::new(GENERATION, LIMITS, self.awaited()).with_disks(self.state.disks.there);
        let id = self.fabric.destinations.enter(&machine);
        self.at_destination().process.machine = Some(id);
        self.drive_destination(On::Announced, When::Now);
    }

    pub(crate) fn destination_hears_call(&mut self) {
        let message = self.state.call.to_destination.remove(0);
        if self.at_destination().process.machine.is_none() {
            if message == ToDestination::Prepare {
                self.state.say_to_source(ToSource::Refused);
                self.state.call.broken = true;
                self.state.call.to_destination.clear();
            }
            return;
        }
        let on = match message {
            ToDestination::Prepare => On::SourceCalled,
            ToDestination::GiveUp => On::SourceGaveUp,
            ToDestination::LineEmpty => On::LineEmpty,
            ToDestination::Abort => On::SourceAborted,
            ToDestination::Lost => On::SourceLost,
        };
        self.at_destination().line_is_empty |= on == On::LineEmpty;
        self.drive_destination(on, When::Now);
    }

    pub(crate) fn destination_hears_qemu(&mut self) {
        let on = match self.state.destination.words.remove(0) {
            Word::MemoryIn => On::MemoryIn,
            Word::Failed | Word::Stopped | Word::PreSwitchover => On::MemoryFailed,
        };
        if self.at_destination().process.machine.is_some() {
            self.drive_destination(on, When::Now);
        }
    }

    /// The one write for which the guest stands still.
    pub(crate) fn commit_is_written(&mut self) {
        self.at_destination().committing = false;
        if self.part() {
            (self.state.destination.promise, self.state.destination.owns) = (Some(Promise::Committed), true);
        }
        self.drive_destination(On::CommitRecorded, When::Now);
    }

    pub(crate) fn decline_is_written(&mut self) {
        self.at_destination().declining = false;
        if self.part() {
            self.state.destination.promise = Some(Promise::Declined);
        }
        self.drive_destination(On::DeclineRecorded, When::Now);
    }

    /// `cont` is answered.
    pub(crate) fn guest_starts(&mut self) {
        self.at_destination().starting_guest = false;
        if self.state.destination.vm == DestinationVm::Gone {
            self.drive_destination(On::RunFailed, When::Now);
            return;
        }
        self.state.destination.vm = DestinationVm::Runs;
        self.read_at_destination();
        self.drive_destination(On::Running, When::Now);
    }

    /// The source's question comes in: to a destination that has not begun to commit it is a reason not to.
    pub(crate) fn destination_is_asked(&mut self) {
        self.state.question = Question::None;
        if self.fabric.seeded == Seeded::SaysNoAndCommits && self.state.destination.promise == Some(Promise::Receiving)
        {
            self.state.question = Question::Answer { committed: false };
            return;
        }
        self.at_destination().asked = true;
        if self.at_destination().process.machine.is_some() {
            self.drive_destination(On::Asked, When::Now);
        }
    }

    /// The answer is what is on disk; of a move that is not under way here it is made to be.
    pub(crate) fn destination_answers(&mut self) {
        let over = self.at_destination().process.machine.is_none();
        let committed = match self.state.destination.promise {
            Some(Promise::Committed) => true,
            Some(Promise::Declined) => false,
            _ if over => {
                self.state.destination.promise = Some(Promise::Declined);
                false
            }
            _ => return,
        };
        self.at_destination().asked = false;
        self.state.question = Question::Answer { committed };
    }

    pub(crate) fn reconcile_destination(&mut self) {
        let Some((moved, after)) = self.at_destination().process.desired else { return };
        let tap = self.state.destination.port.there;
        let process = &mut self.at_destination().process;
        let (moving, fresh, resident) = (process.machine.is_some(), after == process.ended, process.resident);
        if !moving {
            process.applied_new |= moved;
            let leads_here = process.applied_new && tap;
            self.state.destination.leads_here = leads_here;
        }
        self.state.fate.reborn |= !moving && fresh && moved && !resident && !self.state.destination.owns;
    }

    pub(crate) fn crash_destination(&mut self) {
        self.state.destination.agent = None;
        self.state.destination.words.clear();
        self.state.hang_up_at_destination();
        if matches!(self.state.destination.vm, DestinationVm::Gone | DestinationVm::None) {
            self.remove_destination_port();
        }
        if self.state.question == Question::Asked {
            self.state.question = Question::None;
        }
        self.state.destination.link.down.clear();
        self.break_link(Host::Destination, 0);
    }
}
