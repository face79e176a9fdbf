//! When each action can happen, and those that are nobody's decision: what QEMU does, what dies, what breaks.

use throughline_cutover::{DestinationPhase, Phase, SourcePhase};

use crate::{
    machines::When,
    state::{Call, DestinationVm, Frame, News, Order, Peer, Promise, Question, SourceVm, ToDestination, Word},
    system::{Action, AtDestination, AtSource, Hands, Host, Process, Seeded},
};

impl Hands<'_> {
    pub(crate) fn at_source_next(&self, mut can: impl FnMut(AtSource)) {
        let Some(agent) = &self.state.source.agent else { return };
        let source = &self.state.source;
        let mut when = |possible: bool, what| {
            if possible {
                can(what)
            }
        };
        when(agent.starting, AtSource::Begins);
        // What a peer sent before it acknowledged is faster than the word to the controller and on to the source.
        let rebinds = source.link.down.first() == Some(&Order::Rebind);
        let in_time = self.state.peers.iter().all(|peer| peer.old_path.is_empty());
        when(!source.link.down.is_empty() && (!rebinds || in_time), AtSource::HearsOrder);
        when(agent.giving_up, AtSource::GiveUpIsWritten);
        when(matches!(self.state.question, Question::Answer { .. }), AtSource::HearsAnswer);
        when(agent.asks_for_remains && self.state.question == Question::None, AtSource::Ticks);
        let Some(phase) = self.source_phase() else { return };
        when(!self.state.call.to_source.is_empty(), AtSource::HearsCall);
        when(!source.words.is_empty(), AtSource::HearsQemu);
        when(self.source_sees_disks_over(phase), AtSource::SeesDisksOver);
        when(self.source_sees_mirrors_failed(phase), AtSource::SeesMirrorsFailed);
        when(agent.ending_mirrors, AtSource::MirrorsEnd);
        let sends = matches!(source.vm, SourceVm::Sends);
        when(phase == SourcePhase::Precopy && sends, AtSource::HearsProgress);
        when(agent.watches_line && source.port.line.is_empty(), AtSource::SeesLineEmpty);
        when(agent.awaits_quiet && !self.anything_to_carry(), AtSource::SeesQuiet);
        let waits = match phase {
            SourcePhase::Unresolved => self.state.question == Question::None,
            _ => true,
        };
        when(waits && self.source_has_deadline(), AtSource::Ticks);
    }

    pub(crate) fn at_destination_next(&self, mut can: impl FnMut(AtDestination)) {
        let Some(agent) = &self.state.destination.agent else { return };
        let destination = &self.state.destination;
        let mut when = |possible: bool, what| {
            if possible {
                can(what)
            }
        };
        when(!destination.link.down.is_empty(), AtDestination::HearsOrder);
        when(!self.state.call.to_destination.is_empty(), AtDestination::HearsCall);
        when(self.state.question == Question::Asked, AtDestination::IsAsked);
        let moving = agent.process.machine.is_some();
        let decided = matches!(destination.promise, Some(Promise::Committed | Promise::Declined)) || !moving;
        when(agent.asked && decided, AtDestination::Answers);
        when(!destination.words.is_empty(), AtDestination::HearsQemu);
        when(agent.committing, AtDestination::CommitIsWritten);
        when(agent.declining, AtDestination::DeclineIsWritten);
        let Some(phase) = self.destination_phase() else { return };
        when(agent.closing_disks, AtDestination::DisksClose);
        when(agent.starting_guest, AtDestination::GuestStarts);
        for (peer, number) in self.state.peers.iter().zip(0..) {
            let gated = phase == DestinationPhase::Gated;
            let news = peer.markers_in && agent.markers_seen & 1 << number == 0;
            when(agent.awaits_markers && gated && news, AtDestination::SeesMarkers(number));
        }
        when(agent.watches_seal && destination.port.line.is_empty(), AtDestination::SeesGateEmpty);
        when(self.destination_may_tick(phase), AtDestination::Ticks);
    }

    /// Only somebody's death or a broken stream makes the gate open without knowing: its deadlines are far longer than what
    /// it waits for takes.
    fn destination_may_tick(&self, phase: DestinationPhase) -> bool {
        let Some(agent) = &self.state.destination.agent else { return false };
        match phase {
            DestinationPhase::Gated | DestinationPhase::Opening | DestinationPhase::Open
                if self.state.destination.vm != DestinationVm::Runs =>
            {
                !agent.starting_guest
            }
            DestinationPhase::Gated if agent.starting_guest => false,
            DestinationPhase::Gated if agent.line_is_empty => self.state.peers.iter().any(|peer| self.is_untold(peer)),
            DestinationPhase::Gated => {
                self.state.call.broken && !self.state.call.to_destination.contains(&ToDestination::LineEmpty)
            }
            _ => self.destination_has_deadline(),
        }
    }

    /// Its markers are not in and not on their way, nor is the word to send them.
    fn is_untold(&self, peer: &Peer) -> bool {
        let markers = |queue: &[Frame]| queue.iter().any(|frame| matches!(frame, Frame::Marker { .. }));
        let on_their_way = [&peer.old_path, &self.state.source.port.line, &self.state.carry];
        let told = peer.agent.is_some() && peer.link.down.contains(&Order::Rebind);
        let well = self.state.controller.up && self.state.destination.link.up && peer.link.up && peer.agent.is_some();
        let to_be_told = well && !self.state.controller.moved;
        !peer.markers_in && !on_their_way.iter().any(|queue| markers(queue)) && !told && !to_be_told
    }

    fn anything_to_carry(&self) -> bool {
        let source = &self.state.source.port;
        let on_their_way = self.state.peers.iter().any(|peer| !peer.old_path.is_empty());
        on_their_way || !source.line.is_empty() || !self.state.carry.is_empty()
    }

    pub(crate) fn elsewhere_next(&self, mut can: impl FnMut(Action)) {
        let state = &self.state;
        let mut when = |possible: bool, what| {
            if possible {
                can(what)
            }
        };
        when(state.source.agent.is_none(), Action::Restarts(Process::Agent(Host::Source)));
        when(state.destination.agent.is_none(), Action::Restarts(Process::Agent(Host::Destination)));
        when(!state.controller.up, Action::Restarts(Process::Controller { news_lost: false }));
        when(state.source.vm == SourceVm::LetGo, Action::QemuStopsTheGuest);
        let takes_in = state.destination.vm == DestinationVm::Incoming;
        when(state.source.vm == SourceVm::Continues && takes_in, Action::MemoryArrives);
        let sending = matches!(state.source.vm, SourceVm::Sends | SourceVm::LetGo | SourceVm::Continues);
        when(sending && !takes_in, Action::MemoryFails);
        when(self.disks_can_be_over(), Action::DisksAreOver);
        when(self.mirrors_can_fail(), Action::MirrorsFail);
        let away = (state.source.agent.is_some(), state.source.link.up);
        when(state.controller.up && away == (true, false), Action::Connects(Host::Source));
        let away = (state.destination.agent.is_some(), state.destination.link.up);
        when(state.controller.up && away == (true, false), Action::Connects(Host::Destination));
        let hears = |link: bool, news: &[News]| state.controller.up && link && !news.is_empty();
        let news = state.source.agent.as_ref().map_or(&[][..], |agent| &agent.process.news);
        when(hears(state.source.link.up, news), Action::ControllerHears(Host::Source));
        let news = state.destination.agent.as_ref().map_or(&[][..], |agent| &agent.process.news);
        when(hears(state.destination.link.up, news), Action::ControllerHears(Host::Destination));
        for (peer, number) in state.peers.iter().zip(0..) {
            let host = Host::Peer(number);
            when(peer.agent.is_none(), Action::Restarts(Process::Agent(host)));
            when(state.controller.up && peer.agent.is_some() && !peer.link.up, Action::Connects(host));
            when(peer.agent.is_some() && !peer.link.down.is_empty(), Action::PeerHears(number));
            let news = peer.agent.as_ref().map_or(&[][..], |agent| &agent.news);
            when(hears(peer.link.up, news), Action::ControllerHears(host));
            when(peer.sent < self.fabric.frames, Action::Sends(number));
            when(!peer.old_path.is_empty(), Action::ReachesSource(number));
            when(!peer.new_path.is_empty(), Action::ReachesDestination(number));
            let pumped = state.destination.agent.is_some() && self.next_at_gate(number).is_some();
            when(pumped, Action::GatePumps(number));
        }
        let pumped = state.source.agent.is_some() && state.source.port.pumping;
        when(pumped && !state.source.port.line.is_empty(), Action::SourcePumps);
        when(!state.carry.is_empty(), Action::Lands);
        self.controller_timers(&mut when);
    }

    fn controller_timers(&self, when: &mut impl FnMut(bool, Action)) {
        if !self.state.controller.up {
            return;
        }
        let phase = self.phase();
        let deciding = phase < Phase::Committed && !self.is_aborting();
        when(deciding, Action::ControllerTicks(When::Due));
        let again = !deciding && !phase.is_end();
        when(again, Action::ControllerTicks(When::Due));
        when(again, Action::ControllerTicks(When::Overdue));
    }

    /// Nothing is on its way between the controller and anybody who is connected.
    fn is_calm(&self) -> bool {
        let source = self.state.source.agent.as_ref();
        let destination = self.state.destination.agent.as_ref();
        let ends = [
            (&self.state.source.link, source.map(|agent| &agent.process)),
            (&self.state.destination.link, destination.map(|agent| &agent.process)),
        ];
        let peers = self.state.peers.iter().map(|peer| (&peer.link, peer.agent.as_ref()));
        ends.into_iter().chain(peers).all(|(link, process)| {
            !link.up || (link.down.is_empty() && process.is_none_or(|process| process.news.is_empty()))
        })
    }

    pub(crate) fn losses(&self, mut can: impl FnMut(Action)) {
        let state = &self.state;
        let mut when = |possible: bool, what| {
            if possible {
                can(what)
            }
        };
        if !state.call.broken {
            let (down, up) = (state.call.to_destination.len() as u8, state.call.to_source.len() as u8);
            for to_destination in 0..=down {
                (0..=up).for_each(|to_source| when(true, Action::CallBreaks { to_destination, to_source }));
            }
        }
        when(state.question != Question::None, Action::QuestionIsLost);
        let sending = matches!(state.source.vm, SourceVm::Sends | SourceVm::LetGo | SourceVm::Continues);
        when(sending && state.destination.vm == DestinationVm::Incoming, Action::MemoryBreaks);
        when(self.mirrors_can_break(), Action::MirrorsBreak);
        let source = state.source.agent.as_ref().map_or(0, |agent| agent.process.news.len());
        let destination = state.destination.agent.as_ref().map_or(0, |agent| agent.process.news.len());
        let ends =
            [(Host::Source, &state.source.link, source), (Host::Destination, &state.destination.link, destination)];
        let peers = state.peers.iter().zip(0..);
        let peers = peers
            .map(|(peer, number)| (Host::Peer(number), &peer.link, peer.agent.as_ref().map_or(0, |it| it.news.len())));
        for (host, link, news) in ends.into_iter().chain(peers) {
            (0..=news as u8).for_each(|lost| when(link.up, Action::LinkBreaks(host, lost)));
        }
    }

    pub(crate) fn deaths(&self, mut can: impl FnMut(Action)) {
        let state = &self.state;
        let mut when = |possible: bool, what| {
            if possible {
                can(Action::Dies(what))
            }
        };
        when(state.source.agent.is_some(), Process::Agent(Host::Source));
        when(state.destination.agent.is_some(), Process::Agent(Host::Destination));
        for (peer, number) in state.peers.iter().zip(0..) {
            when(peer.agent.is_some(), Process::Agent(Host::Peer(number)));
        }
        when(state.controller.up, Process::Controller { news_lost: false });
        when(state.controller.up && !self.is_calm(), Process::Controller { news_lost: true });
        when(state.source.vm != SourceVm::Gone, Process::SourceQemu);
        let there = !matches!(state.destination.vm, DestinationVm::None | DestinationVm::Gone);
        when(there, Process::DestinationQemu);
    }

    pub(crate) fn die(&mut self, process: Process) {
        self.state.left.crashes -= 1;
        self.fuel = usize::MAX;
        match process {
            Process::Agent(Host::Source) => self.crash_source(),
            Process::Agent(Host::Destination) => self.crash_destination(),
            Process::Agent(Host::Peer(number)) => {
                let peer = &mut self.state.peers[usize::from(number)];
                peer.agent = None;
                peer.link.down.clear();
                self.break_link(Host::Peer(number), 0);
            }
            Process::Controller { news_lost } => self.crash_controller(news_lost),
            Process::SourceQemu => self.kill_source_qemu(),
            Process::DestinationQemu => self.kill_destination_qemu(),
        }
    }

    pub(crate) fn restart(&mut self, process: Process) {
        match process {
            Process::Agent(host) => {
                match host {
                    Host::Source => self.recover_source(),
                    Host::Destination => self.recover_destination(),
                    Host::Peer(number) => {
                        self.state.peers[usize::from(number)].agent = Some(crate::state::Process::default());
                    }
                }
                self.connect_at_once(host);
            }
            Process::Controller { .. } => self.restart_controller(),
            Process::SourceQemu | Process::DestinationQemu => {}
        }
    }

    fn kill_source_qemu(&mut self) {
        let before = self.state.source.vm;
        if !matches!(before, SourceVm::Runs | SourceVm::Completed) {
            self.memory_breaks_at_destination();
        }
        self.state.source.vm = SourceVm::Gone;
        self.state.fate.killed = true;
        self.state.fate.may_lose |= before != SourceVm::Completed;
        self.qemu_says_at_source(&[Word::Failed]);
        if self.state.source.agent.is_none() {
            self.state.fate.may_lose = true;
            self.remove_source_port();
        }
    }

    fn kill_destination_qemu(&mut self) {
        let had_it = matches!(self.state.destination.vm, DestinationVm::Paused | DestinationVm::Runs);
        self.state.destination.vm = DestinationVm::Gone;
        self.state.fate.killed |= had_it;
        self.state.fate.may_lose |= had_it;
        if self.state.destination.agent.is_some() {
            self.state.destination.words.push(Word::Failed);
        } else {
            self.remove_destination_port();
        }
    }

    pub(crate) fn memory_arrives(&mut self) {
        self.state.destination.vm = DestinationVm::Paused;
        if self.state.destination.agent.is_some() {
            self.state.destination.words.push(Word::MemoryIn);
        }
        if self.fabric.seeded == Seeded::QemuResumesAlone {
            self.memory_fails_at_source();
        } else {
            self.state.source.vm = SourceVm::Completed;
        }
    }

    /// QEMU resumes the guest by itself.
    pub(crate) fn memory_fails_at_source(&mut self) {
        self.state.source.vm = SourceVm::Runs;
        self.read_at_source();
        self.qemu_says_at_source(&[Word::Failed]);
    }

    /// So many messages each way are still heard.
    pub(crate) fn break_call(&mut self, to_destination: u8, to_source: u8) {
        let Call { to_destination: down, to_source: up, broken } = &mut self.state.call;
        down.truncate(usize::from(to_destination));
        up.truncate(usize::from(to_source));
        down.push(ToDestination::Lost);
        up.push(crate::state::ToSource::Lost);
        *broken = true;
    }
}
