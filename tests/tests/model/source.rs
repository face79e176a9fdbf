//! The source's agent: what its hands do with each effect, as `agent/daemon/src/source` has it, and what a restart does with
//! what the journal holds, as `recover.rs` has it.

use std::collections::VecDeque;

use throughline_abi::mode;
use throughline_cutover::{
    Failure, Machine as _, Progress, Source, SourceEffect, SourceEvent, SourcePhase, SourceReport,
};

use crate::{
    machines::When,
    state::{
        Call, DestinationVm, News, Order, Promise, Question, SourceAgent, SourceVm, ToDestination, ToSource, Word,
    },
    system::{GENERATION, Hands, Host, LIMITS, Seeded},
};

/// The source's events, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum On {
    Begin,
    Ready,
    Prepared,
    DisksMirrored,
    MirrorFailed,
    MirrorsEnded,
    Progress,
    Armed,
    Stopped,
    PreSwitchover,
    GiveUpRecorded,
    MemoryFailed,
    Committed,
    Declined,
    PeerLost,
    LineEmpty,
    SettleOrdered,
    Quiet,
    Abort,
    Undone,
    Removed,
    Tick,
}

pub(crate) fn why() -> Failure {
    Failure::new("REASON", "")
}

fn event(on: On) -> SourceEvent {
    match on {
        On::Begin => SourceEvent::Begin,
        On::Ready => SourceEvent::Ready,
        On::Prepared => SourceEvent::PeerPrepared,
        On::DisksMirrored => SourceEvent::DisksMirrored,
        On::MirrorFailed => SourceEvent::MirrorFailed(why()),
        On::MirrorsEnded => SourceEvent::MirrorsEnded,
        // Little is left of the third pass: from here on it is near.
        On::Progress => SourceEvent::Progress(Progress { rate: 1, passes: 3, ..Progress::default() }),
        On::Armed => SourceEvent::Armed,
        On::Stopped => SourceEvent::Stopped,
        On::PreSwitchover => SourceEvent::PreSwitchover,
        On::GiveUpRecorded => SourceEvent::GiveUpRecorded,
        On::MemoryFailed => SourceEvent::MemoryFailed(why()),
        On::Committed => SourceEvent::PeerCommitted { generation: GENERATION.next() },
        On::Declined => SourceEvent::PeerDeclined(why()),
        On::PeerLost => SourceEvent::PeerLost,
        On::LineEmpty => SourceEvent::LineEmpty,
        On::SettleOrdered => SourceEvent::SettleOrdered,
        On::Quiet => SourceEvent::Quiet,
        On::Abort => SourceEvent::Abort(why()),
        On::Undone => SourceEvent::Undone,
        On::Removed => SourceEvent::Removed,
        On::Tick => SourceEvent::Tick,
    }
}

impl Hands<'_> {
    fn at_source(&mut self) -> &mut SourceAgent {
        self.state.source.agent.as_mut().expect("only an agent that lives acts")
    }

    pub(crate) fn source_phase(&self) -> Option<SourcePhase> {
        let id = self.state.source.agent.as_ref()?.process.machine?;
        Some(self.fabric.sources.look(id, Source::phase))
    }

    pub(crate) fn source_has_deadline(&self) -> bool {
        let id = self.state.source.agent.as_ref().and_then(|agent| agent.process.machine);
        id.is_some_and(|id| self.fabric.sources.look(id, |machine| machine.next_deadline().is_some()))
    }

    /// As `driver.rs` has it: an event, its effects, and the events they answer with.
    pub(crate) fn drive_source(&mut self, first: On, when: When) {
        let mut ready = VecDeque::from([(first, when)]);
        while let Some((on, when)) = ready.pop_front() {
            let Some(id) = self.at_source().process.machine else { return };
            let mut on = on;
            if self.fabric.seeded == Seeded::ResumesWhenLost
                && on == On::PeerLost
                && self.source_phase() == Some(SourcePhase::Switching)
            {
                // The machine would ask; this one takes silence for a no.
                let (asking, _) = self.fabric.sources.step(id, on, when, || event(on));
                self.at_source().process.machine = Some(asking);
                on = On::Declined;
            }
            let id = self.at_source().process.machine.unwrap_or(id);
            let (next, effects) = self.fabric.sources.step(id, on, when, || event(on));
            self.at_source().process.machine = Some(next);
            for effect in effects.iter() {
                ready.extend(self.do_for_source(effect).map(|answer| (answer, When::Now)));
            }
        }
        let ended = |id| self.fabric.sources.look(id, Source::ended);
        if self.at_source().process.machine.is_some_and(ended) {
            self.leave_source();
        }
    }

    fn leave_source(&mut self) {
        let agent = self.at_source();
        let process = std::mem::take(&mut agent.process);
        let giving_up = agent.giving_up;
        *agent = SourceAgent { giving_up, process, ..SourceAgent::default() };
        agent.process.leave();
        self.state.source.words.clear();
        self.state.hang_up_at_source();
    }

    fn do_for_source(&mut self, effect: &SourceEffect) -> Option<On> {
        let fails = |vm: SourceVm| (vm == SourceVm::Gone).then_some(On::MemoryFailed);
        match effect {
            SourceEffect::CallPeer if self.part() => self.call_destination(),
            SourceEffect::PrepareDatapath if self.part() => {
                (self.state.source.port.attached, self.state.source.port.mode) = (true, mode::PASS);
                return Some(On::Ready);
            }
            SourceEffect::MirrorDisks if self.part() => return self.mirror_disks(),
            SourceEffect::EndMirrors => self.at_source().ending_mirrors = true,
            SourceEffect::StartPrecopy if self.part() => {
                self.at_source().sending = true;
                if self.state.source.vm == SourceVm::Gone {
                    return Some(On::MemoryFailed);
                }
                self.state.source.vm = SourceVm::Sends;
            }
            SourceEffect::Arm if self.part() => {
                self.state.source.port.mode = mode::HOLD;
                return Some(On::Armed);
            }
            SourceEffect::Pause if self.part() => {
                if self.state.source.vm == SourceVm::Sends {
                    self.state.source.vm = SourceVm::LetGo;
                }
                return fails(self.state.source.vm);
            }
            SourceEffect::RecordGiveUp => self.at_source().giving_up = true,
            SourceEffect::TellGiveUp if self.part() => self.state.say_to_destination(ToDestination::GiveUp),
            SourceEffect::ContinueSwitchover if self.part() => {
                if self.state.source.vm != SourceVm::PreSwitchover {
                    return Some(On::MemoryFailed);
                }
                self.state.source.vm = SourceVm::Continues;
            }
            SourceEffect::ReleaseToCarry if self.part() => {
                let port = &mut self.state.source.port;
                if port.attached {
                    let mut line = std::mem::take(&mut port.ring);
                    line.append(&mut port.line);
                    (port.line, port.mode, port.pumping) = (line, mode::CARRY, true);
                }
                self.at_source().watches_line = true;
            }
            SourceEffect::TellLineEmpty if self.part() => self.state.say_to_destination(ToDestination::LineEmpty),
            SourceEffect::TellAbort(_) if self.part() => self.state.say_to_destination(ToDestination::Abort),
            SourceEffect::Resolve => self.ask(),
            SourceEffect::AwaitQuiet => self.at_source().awaits_quiet = true,
            SourceEffect::RemoveGuest => return self.remove_guest(),
            SourceEffect::Undo => return self.undo_at_source(),
            SourceEffect::Report(report) => self.report_at_source(report),
            _ => {}
        }
        None
    }

    /// One question at a time; one to an agent that is not there fails.
    pub(crate) fn ask(&mut self) {
        if self.state.question == Question::None && self.state.destination.agent.is_some() {
            self.state.question = Question::Asked;
        }
    }

    fn call_destination(&mut self) {
        self.state.call = if self.state.destination.agent.is_some() {
            Call { to_destination: vec![ToDestination::Prepare], ..Call::default() }
        } else {
            Call { to_source: vec![ToSource::Lost], broken: true, ..Call::default() }
        };
    }

    fn report_at_source(&mut self, report: &SourceReport) {
        let process = &mut self.at_source().process;
        match report {
            SourceReport::Settled => process.last = Some(News::Settled),
            SourceReport::Aborted(_) => process.last = Some(News::Aborted),
            SourceReport::Progress(_) => {}
            // Nobody decides anything by it but a controller to which the migration is over: that one hears it when a
            // stream begins.
            _ => process.last = Some(News::Underway),
        }
    }

    fn remove_guest(&mut self) -> Option<On> {
        if self.part() {
            self.close_source_port();
        }
        if self.part() {
            self.state.source.vm = SourceVm::Gone;
        }
        if self.part() {
            // Its tap goes with its last descriptor.
            self.remove_source_port();
            self.at_source().process.resident = false;
            (self.state.source.promise, self.state.source.owns) = (Some(Promise::Left), false);
        }
        Some(On::Removed)
    }

    fn undo_at_source(&mut self) -> Option<On> {
        self.take_back();
        if self.part() {
            self.state.source.promise = Some(Promise::Declined);
        }
        Some(On::Undone)
    }

    /// The guest runs on, and gets what was held.
    fn take_back(&mut self) {
        self.abandon_mirrors();
        if self.part() {
            self.resume_guest();
        }
        if self.part() {
            self.release_to_tap_and_close();
        }
    }

    /// QEMU's migration is cancelled and the guest runs again, whatever became of it.
    fn resume_guest(&mut self) {
        if self.state.source.vm != SourceVm::Gone {
            if !matches!(self.state.source.vm, SourceVm::Runs | SourceVm::Completed) {
                self.memory_breaks_at_destination();
            }
            self.state.source.vm = SourceVm::Runs;
            self.read_at_source();
        }
    }

    /// The whole line goes into the port's own tap, then the programs go.
    fn release_to_tap_and_close(&mut self) {
        let port = &mut self.state.source.port;
        let line = std::mem::take(&mut port.line);
        port.ring.extend(line);
        port.detach();
        self.read_at_source();
    }

    fn close_source_port(&mut self) {
        let left = self.state.source.port.detach();
        left.into_iter().for_each(|frame| self.lose(frame));
    }

    /// What the agent takes up when it starts: `recover.rs`.
    pub(crate) fn recover_source(&mut self) {
        let source = &mut self.state.source;
        source.words.clear();
        let mut agent = SourceAgent::default();
        agent.process.resident = source.owns && source.vm != SourceVm::Gone;
        let resident = agent.process.resident;
        source.agent = Some(agent);
        match source.promise {
            Some(Promise::Sending) => self.keep(resident),
            Some(Promise::GivenUp) => self.go_on(resident),
            _ => {}
        }
    }

    /// It had given nothing up: the guest is its own.
    fn keep(&mut self, resident: bool) {
        if resident {
            self.take_back();
        }
        if self.part() {
            self.state.source.promise = Some(Promise::Declined);
        }
        self.at_source().process.news.push(News::Aborted);
    }

    /// It had given the guest up: the destination is asked.
    fn go_on(&mut self, resident: bool) {
        if !resident {
            self.at_source().asks_for_remains = true;
            self.ask();
            return;
        }
        let id = self.fabric.sources.enter(&Source::given_up_before(GENERATION, LIMITS));
        let agent = self.at_source();
        (agent.sending, agent.process.machine) = (true, Some(id));
        self.drive_source(On::Begin, When::Now);
    }

    pub(crate) fn source_hears_order(&mut self) {
        let order = self.state.source.link.down.remove(0);
        let busy = self.at_source().process.machine.is_some();
        match order {
            Order::Start => self.at_source().starting = true,
            Order::Abort if busy => self.drive_source(On::Abort, When::Now),
            Order::Abort => {
                let answer = answer_abort(&mut self.state.source.promise);
                self.at_source().process.news.extend(answer);
            }
            Order::Settle if busy => self.drive_source(On::SettleOrdered, When::Now),
            Order::Settle => {
                if self.state.source.promise == Some(Promise::GivenUp) {
                    self.at_source().process.ended = true;
                    (self.state.source.promise, self.state.source.owns) = (Some(Promise::Left), false);
                    self.at_source().asks_for_remains = false;
                }
                let answer = (self.state.source.promise == Some(Promise::Left)).then_some(News::Settled);
                self.at_source().process.news.extend(answer);
            }
            Order::Rebind => {
                self.state.source.leads_away = true;
                self.at_source().process.applied_new = true;
                self.acknowledge(Host::Source);
            }
            Order::Desired { moved } => self.at_source().process.hear_desired(moved),
            Order::Expect => {}
        }
    }

    /// `Start`, acted on: whatever came meanwhile did not find it.
    pub(crate) fn source_begins(&mut self) {
        self.at_source().starting = false;
        if !self.at_source().process.resident || self.state.source.promise.is_some() {
            self.at_source().process.news.push(News::Aborted);
            return;
        }
        if self.part() {
            self.state.source.promise = Some(Promise::Sending);
        }
        let id = self.fabric.sources.enter(&Source::new(GENERATION, LIMITS).with_disks(self.state.disks.there));
        self.at_source().process.machine = Some(id);
        self.drive_source(On::Begin, When::Now);
    }

    pub(crate) fn source_hears_call(&mut self) {
        let on = match self.state.call.to_source.remove(0) {
            ToSource::Prepared => On::Prepared,
            ToSource::Committed => On::Committed,
            ToSource::Declined | ToSource::Refused => On::Declined,
            ToSource::Lost => On::PeerLost,
        };
        self.drive_source(on, When::Now);
    }

    pub(crate) fn source_hears_qemu(&mut self) {
        let on = match self.state.source.words.remove(0) {
            Word::Stopped => On::Stopped,
            Word::PreSwitchover => On::PreSwitchover,
            Word::MemoryIn | Word::Failed => On::MemoryFailed,
        };
        self.drive_source(on, When::Now);
    }

    /// The give-up gets on disk; of a move undone meanwhile it is none.
    pub(crate) fn give_up_is_written(&mut self) {
        self.at_source().giving_up = false;
        if self.part() && self.state.source.promise != Some(Promise::Declined) {
            self.state.source.promise = Some(Promise::GivenUp);
        }
        if self.at_source().process.machine.is_some() {
            self.drive_source(On::GiveUpRecorded, When::Now);
        }
    }

    pub(crate) fn source_hears_answer(&mut self) {
        let Question::Answer { committed } = self.state.question else { return };
        self.state.question = Question::None;
        if self.at_source().asks_for_remains {
            self.at_source().asks_for_remains = false;
            // Committed: it ends with the order to settle.
            if !committed {
                self.state.source.promise = Some(Promise::Declined);
                self.at_source().process.news.push(News::Aborted);
            }
        } else if self.at_source().process.machine.is_some() {
            self.drive_source(if committed { On::Committed } else { On::Declined }, When::Now);
        }
    }

    /// Entries lead where they are wanted to, and a guest that is wanted and not on record is booted; only what an operator
    /// named is ended: `reconcile`.
    pub(crate) fn reconcile_source(&mut self) {
        let Some((moved, after)) = self.at_source().process.desired else { return };
        let process = &mut self.at_source().process;
        let (moving, fresh, resident) = (process.machine.is_some(), after == process.ended, process.resident);
        if !moving {
            process.applied_new |= moved;
            let leads_away = process.applied_new;
            self.state.source.leads_away = leads_away;
        }
        self.state.fate.reborn |= !moving && fresh && !moved && !resident && !self.state.source.owns;
    }

    pub(crate) fn crash_source(&mut self) {
        self.state.source.agent = None;
        self.state.source.words.clear();
        self.state.hang_up_at_source();
        if self.state.source.vm == SourceVm::Gone {
            self.state.fate.may_lose |= self.state.source.port.there;
            self.remove_source_port();
        }
        self.state.source.link.down.clear();
        self.break_link(Host::Source, 0);
    }

    /// QEMU's connection ends before everything is in.
    pub(crate) fn memory_breaks_at_destination(&mut self) {
        let destination = &mut self.state.destination;
        if destination.vm == DestinationVm::Incoming {
            destination.vm = DestinationVm::Gone;
            if destination.agent.is_some() {
                destination.words.push(Word::Failed);
            }
        }
    }

    pub(crate) fn qemu_says_at_source(&mut self, words: &[Word]) {
        if self.state.source.agent.as_ref().is_some_and(|agent| agent.process.machine.is_some()) {
            self.state.source.words.extend(words);
        }
    }
}

/// What is said of a move that is over: `memory.rs`.
pub(crate) fn answer_abort(promise: &mut Option<Promise>) -> Option<News> {
    // It never had a part, and never will.
    match promise.get_or_insert(Promise::Declined) {
        Promise::Declined => Some(News::Aborted),
        Promise::Committed => Some(News::Owns),
        Promise::Left => Some(News::Settled),
        Promise::Sending | Promise::Receiving | Promise::GivenUp => None,
    }
}
