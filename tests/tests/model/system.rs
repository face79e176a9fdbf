//! What can happen, and when: the model's actions.

use std::{net::Ipv4Addr, sync::Arc};

use throughline_cutover::{
    Boot, CarryId, Coordinator, Destination, DestinationPhase, End, Generation, GuestSpec, HostName, Limits, MacAddr,
    MarkerPeer, MigrationPlan, OnStall, Port as PlannedPort, PortId, PortPlan, Queues, Source, Vni,
};

use crate::{
    controller, destination,
    disks::Mirrors,
    machines::{NOW, Situations, When},
    source,
    state::{DestinationVm, Left, Question, SourceVm, State, Word},
};

pub(crate) const GENERATION: Generation = Generation(4);
pub(crate) const LIMITS: Limits =
    Limits { longest_pause_ms: 300, bandwidth: 1_250_000_000, deadline_ms: 300_000, on_stall: OnStall::GiveUp };

/// A host, by its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Source,
    Destination,
    Peer(u8),
}

impl Host {
    pub(crate) fn all(peers: usize) -> impl Iterator<Item = Self> {
        [Self::Source, Self::Destination].into_iter().chain((0..peers as u8).map(Self::Peer))
    }
}

pub(crate) fn host_name(host: Host) -> HostName {
    let name = match host {
        Host::Source => "source".to_owned(),
        Host::Destination => "destination".to_owned(),
        Host::Peer(peer) => format!("peer-{peer}"),
    };
    name.parse().expect("a name")
}

/// A fault put in to be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Seeded {
    /// As it ships.
    #[default]
    Nothing,
    /// The destination lets the guest run, and writes its commit after that.
    RunsBeforeItCommits,
    /// A source that told takes a broken stream for a no.
    ResumesWhenLost,
    /// The destination says that it did not commit, and goes on.
    SaysNoAndCommits,
    /// The destination says that nobody else can write to its disks, and somebody can.
    LeavesDisksOpen,
    /// The source has its mirrors cut off instead of finished.
    CutsMirrors,
    /// Not ours: a QEMU that resumes its guest by itself, the other one having everything.
    QemuResumesAlone,
}

/// The model: how large, and what is wrong with it.
#[derive(Clone, Debug)]
pub(crate) struct Fabric {
    pub(crate) sources: Arc<Situations<Source, source::On>>,
    pub(crate) destinations: Arc<Situations<Destination, destination::On>>,
    pub(crate) coordinators: Arc<Situations<Coordinator, controller::On>>,
    pub(crate) seeded: Seeded,
    pub(crate) peers: usize,
    /// Frames that each peer sends.
    pub(crate) frames: u8,
    /// The guest has disks.
    pub(crate) disks: bool,
    pub(crate) left: Left,
    /// Who starts is connected at once, and a controller that starts to everybody. That an agent is at work without a
    /// controller is then seen when the controller is away or a stream broke, not otherwise.
    pub(crate) prompt: bool,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Source(AtSource),
    Destination(AtDestination),
    ControllerHears(Host),
    ControllerTicks(When),
    PeerHears(u8),
    Connects(Host),
    Restarts(Process),
    // QEMU.
    QemuStopsTheGuest,
    MemoryArrives,
    /// QEMU notices that nobody takes its memory in.
    MemoryFails,
    DisksAreOver,
    /// QEMU notices that nobody takes what the guest writes.
    MirrorsFail,
    // The network.
    Sends(u8),
    ReachesSource(u8),
    ReachesDestination(u8),
    SourcePumps,
    GatePumps(u8),
    Lands,
    // What goes wrong.
    Dies(Process),
    /// An agent or the controller dies having done the first so many parts of what this would have had it do.
    DiesAmid(Amid, u8),
    CallBreaks {
        to_destination: u8,
        to_source: u8,
    },
    QuestionIsLost,
    LinkBreaks(Host, u8),
    MemoryBreaks,
    MirrorsBreak,
}

impl Amid {
    fn of(action: Action) -> Option<Self> {
        match action {
            Action::Source(it) => Some(Self::Source(it)),
            Action::Destination(it) => Some(Self::Destination(it)),
            Action::ControllerHears(host) => Some(Self::ControllerHears(host)),
            Action::Restarts(Process::Agent(Host::Source)) => Some(Self::SourceRestarts),
            Action::Restarts(Process::Agent(Host::Destination)) => Some(Self::DestinationRestarts),
            _ => None,
        }
    }
}

impl Action {
    /// Nothing is held up by it: a deadline may pass first.
    fn can_wait(&self) -> bool {
        self.is_timer() || matches!(self, Self::Sends(_))
    }

    /// A deadline that passes.
    fn is_timer(&self) -> bool {
        matches!(
            self,
            Self::ControllerTicks(_) | Self::Source(AtSource::Ticks) | Self::Destination(AtDestination::Ticks)
        )
    }
}

/// What an agent or the controller may die amid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Amid {
    Source(AtSource),
    Destination(AtDestination),
    ControllerHears(Host),
    SourceRestarts,
    DestinationRestarts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Process {
    Agent(Host),
    Controller { news_lost: bool },
    SourceQemu,
    DestinationQemu,
}

/// What the source's agent takes up next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AtSource {
    Begins,
    HearsOrder,
    HearsCall,
    HearsQemu,
    HearsAnswer,
    SeesDisksOver,
    SeesMirrorsFailed,
    MirrorsEnd,
    HearsProgress,
    GiveUpIsWritten,
    SeesLineEmpty,
    SeesQuiet,
    Ticks,
}

/// What the destination's agent takes up next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AtDestination {
    HearsOrder,
    HearsCall,
    HearsQemu,
    DisksClose,
    CommitIsWritten,
    DeclineIsWritten,
    GuestStarts,
    IsAsked,
    Answers,
    SeesMarkers(u8),
    SeesGateEmpty,
    Ticks,
}

/// One step being taken. Its parts are counted: whoever takes it may die after any of them.
pub(crate) struct Hands<'a> {
    pub(crate) fabric: &'a Fabric,
    pub(crate) state: State,
    pub(crate) parts: usize,
    pub(crate) fuel: usize,
}

impl Hands<'_> {
    /// The next part may be done.
    pub(crate) fn part(&mut self) -> bool {
        self.parts += 1;
        self.lives()
    }

    pub(crate) fn lives(&self) -> bool {
        self.parts <= self.fuel
    }
}

fn plan(peers: usize) -> MigrationPlan {
    let end = |host: Host, n: u8| End {
        host: host_name(host),
        vtep: [192, 0, 2, n].into(),
        peer_endpoint: format!("192.0.2.{n}:7701"),
    };
    let port = PlannedPort {
        id: PortId::try_from(1_u32).expect("valid"),
        network: "blue".parse().expect("a name"),
        mac: MacAddr::new([2, 0, 0, 0, 0, 7]),
        ips: vec![],
    };
    let marker = |peer: u8| MarkerPeer {
        host: host_name(Host::Peer(peer)),
        vtep: Ipv4Addr::new(192, 0, 2, 10 + peer),
        index: u32::from(peer),
        secret: Default::default(),
    };
    let spec = GuestSpec {
        name: "web-1".parse().expect("a name"),
        vcpus: 1,
        queues: Queues::ONE,
        memory_kib: 262_136,
        boot: Boot { kernel: "/k".into(), initrd: String::new(), cmdline: String::new() },
        ports: vec![port.clone()],
        disks: vec![],
        guest_agent: false,
    };
    MigrationPlan {
        id: "m".into(),
        token: "t".into(),
        guest: spec,
        generation: GENERATION,
        source: end(Host::Source, 1),
        destination: end(Host::Destination, 2),
        ports: vec![PortPlan {
            port,
            vni: Vni::try_from(7_u32).expect("valid"),
            carry_id: CarryId::try_from(9_u32).expect("valid"),
            marker_mac: MacAddr::new([2, 9, 9, 9, 9, 9]),
            markers: (0..peers as u8).map(marker).collect(),
        }],
        limits: LIMITS,
        cold: false,
        flatten: false,
    }
}

impl Fabric {
    pub(crate) fn new(peers: usize, frames: u8, left: Left) -> Self {
        Self {
            sources: Arc::new(Situations::new()),
            destinations: Arc::new(Situations::new()),
            coordinators: Arc::new(Situations::new()),
            seeded: Seeded::Nothing,
            peers,
            frames,
            disks: false,
            left,
            prompt: true,
        }
    }

    pub(crate) fn with(self, seeded: Seeded) -> Self {
        Self { seeded, ..self }
    }

    /// The same with a guest that has disks.
    pub(crate) fn with_disks(self) -> Self {
        Self { disks: true, ..self }
    }

    /// Admitted, and the destination is about to be told.
    pub(crate) fn beginning(&self) -> State {
        let machine = self.coordinators.enter(&Coordinator::new(plan(self.peers), NOW));
        let mut hands = self.hands(State::new(machine, self.peers, self.left), usize::MAX);
        hands.state.disks.there = self.disks;
        hands.drive_controller(controller::On::Begin, When::Now);
        hands.state
    }

    fn hands(&self, state: State, fuel: usize) -> Hands<'_> {
        Hands { fabric: self, state, parts: 0, fuel }
    }

    /// Whether nothing else is about to happen.
    fn is_idle(&self, state: &State) -> bool {
        let hands = self.hands(state.clone(), usize::MAX);
        let mut idle = true;
        hands.at_source_next(|it| idle &= Action::Source(it).can_wait());
        hands.at_destination_next(|it| idle &= Action::Destination(it).can_wait());
        hands.elsewhere_next(|it| idle &= it.can_wait());
        idle
    }

    /// What comes of an action.
    pub(crate) fn act(&self, state: &State, action: Action) -> State {
        let fuel = if let Action::DiesAmid(_, parts) = action { usize::from(parts) } else { usize::MAX };
        let mut hands = self.hands(state.clone(), fuel);
        if action.is_timer() && !self.is_idle(state) {
            hands.state.left.haste -= 1;
        }
        hands.act(action);
        hands.reconcile();
        hands.disks_follow();
        hands.state
    }

    /// Of how many parts a step is.
    fn parts_of(&self, state: &State, amid: Amid) -> u8 {
        let mut hands = self.hands(state.clone(), usize::MAX);
        hands.take_up(amid);
        u8::try_from(hands.parts).expect("a few")
    }

    /// What can happen next without anything going wrong. Deadlines pass when nothing else can happen; earlier, so many times.
    pub(crate) fn go_on(&self, state: &State, actions: &mut Vec<Action>) {
        let hands = self.hands(state.clone(), usize::MAX);
        hands.at_source_next(|it| actions.push(Action::Source(it)));
        hands.at_destination_next(|it| actions.push(Action::Destination(it)));
        hands.elsewhere_next(|it| actions.push(it));
        if state.left.haste == 0 && !actions.iter().all(Action::can_wait) {
            actions.retain(|it| !it.is_timer());
        }
    }

    /// What can go wrong next.
    pub(crate) fn go_wrong(&self, state: &State, actions: &mut Vec<Action>) {
        let hands = self.hands(state.clone(), usize::MAX);
        if state.left.losses > 0 {
            hands.losses(|it| actions.push(it));
        }
        if state.left.crashes == 0 {
            return;
        }
        hands.deaths(|it| actions.push(it));
        let mut sound = Vec::new();
        self.go_on(state, &mut sound);
        for amid in sound.into_iter().filter_map(Amid::of) {
            actions.extend((1..self.parts_of(state, amid)).map(|done| Action::DiesAmid(amid, done)));
        }
    }
}

impl Hands<'_> {
    fn act(&mut self, action: Action) {
        match action {
            Action::Source(it) => self.take_up(Amid::Source(it)),
            Action::Destination(it) => self.take_up(Amid::Destination(it)),
            Action::ControllerHears(host) => self.take_up(Amid::ControllerHears(host)),
            Action::ControllerTicks(when) => self.drive_controller(controller::On::Tick, when),
            Action::PeerHears(peer) => self.peer_hears_order(peer),
            Action::Connects(host) => self.connect(host),
            Action::Restarts(process) => self.restart(process),
            Action::QemuStopsTheGuest => {
                self.state.source.vm = SourceVm::PreSwitchover;
                self.qemu_says_at_source(&[Word::Stopped, Word::PreSwitchover]);
            }
            Action::MemoryArrives => self.memory_arrives(),
            Action::MemoryFails => self.memory_fails_at_source(),
            Action::DisksAreOver => self.disks_are_over(),
            Action::MirrorsFail => self.state.disks.mirrors = Mirrors::Failed,
            Action::Sends(peer) => self.send_frame(peer),
            Action::ReachesSource(peer) => self.arrive_at_source(peer),
            Action::ReachesDestination(peer) => self.arrive_at_destination(peer),
            Action::SourcePumps => self.pump_at_source(),
            Action::GatePumps(peer) => self.pump_at_gate(peer),
            Action::Lands => self.land(),
            Action::Dies(process) => self.die(process),
            Action::DiesAmid(amid, _) => {
                self.take_up(amid);
                self.die(match amid {
                    Amid::Source(_) | Amid::SourceRestarts => Process::Agent(Host::Source),
                    Amid::Destination(_) | Amid::DestinationRestarts => Process::Agent(Host::Destination),
                    Amid::ControllerHears(_) => Process::Controller { news_lost: false },
                });
            }
            Action::CallBreaks { to_destination, to_source } => {
                self.state.left.losses -= 1;
                self.break_call(to_destination, to_source);
            }
            Action::QuestionIsLost => {
                self.state.left.losses -= 1;
                self.state.question = Question::None;
            }
            Action::LinkBreaks(host, news) => {
                self.state.left.losses -= 1;
                self.link(host).down.clear();
                self.break_link(host, usize::from(news));
            }
            Action::MemoryBreaks => {
                self.state.left.losses -= 1;
                self.memory_breaks_at_destination();
                self.memory_fails_at_source();
            }
            Action::MirrorsBreak => {
                self.state.left.losses -= 1;
                self.state.disks.mirrors = Mirrors::Failed;
            }
        }
    }

    /// The agents see to it that their hosts are as they are wanted.
    fn reconcile(&mut self) {
        if self.state.source.agent.is_some() {
            self.reconcile_source();
        }
        if self.state.destination.agent.is_some() {
            self.reconcile_destination();
        }
    }

    fn take_up(&mut self, amid: Amid) {
        match amid {
            Amid::Source(it) => self.take_up_at_source(it),
            Amid::Destination(it) => self.take_up_at_destination(it),
            Amid::ControllerHears(host) => self.controller_hears(host),
            Amid::SourceRestarts => self.restart(Process::Agent(Host::Source)),
            Amid::DestinationRestarts => self.restart(Process::Agent(Host::Destination)),
        }
    }

    fn take_up_at_source(&mut self, what: AtSource) {
        match what {
            AtSource::Begins => self.source_begins(),
            AtSource::HearsOrder => self.source_hears_order(),
            AtSource::HearsCall => self.source_hears_call(),
            AtSource::HearsQemu => self.source_hears_qemu(),
            AtSource::HearsAnswer => self.source_hears_answer(),
            AtSource::SeesDisksOver => self.drive_source(source::On::DisksMirrored, When::Now),
            AtSource::SeesMirrorsFailed => self.drive_source(source::On::MirrorFailed, When::Now),
            AtSource::MirrorsEnd => self.mirrors_end(),
            AtSource::HearsProgress => self.drive_source(source::On::Progress, When::Later),
            AtSource::GiveUpIsWritten => self.give_up_is_written(),
            AtSource::SeesLineEmpty => {
                self.state.source.agent.as_mut().expect("alive").watches_line = false;
                self.drive_source(source::On::LineEmpty, When::Now);
            }
            AtSource::SeesQuiet => {
                self.state.source.agent.as_mut().expect("alive").awaits_quiet = false;
                self.drive_source(source::On::Quiet, When::Now);
            }
            AtSource::Ticks if self.state.source.agent.as_ref().is_some_and(|it| it.asks_for_remains) => self.ask(),
            AtSource::Ticks => self.drive_source(source::On::Tick, When::Due),
        }
    }

    fn take_up_at_destination(&mut self, what: AtDestination) {
        match what {
            AtDestination::HearsOrder => self.destination_hears_order(),
            AtDestination::HearsCall => self.destination_hears_call(),
            AtDestination::HearsQemu => self.destination_hears_qemu(),
            AtDestination::DisksClose => self.disks_close(),
            AtDestination::CommitIsWritten => self.commit_is_written(),
            AtDestination::DeclineIsWritten => self.decline_is_written(),
            AtDestination::GuestStarts => self.guest_starts(),
            AtDestination::IsAsked => self.destination_is_asked(),
            AtDestination::Answers => self.destination_answers(),
            AtDestination::SeesMarkers(peer) => {
                self.state.destination.agent.as_mut().expect("alive").markers_seen |= 1 << peer;
                self.drive_destination(destination::On::MarkersIn(peer), When::Now);
            }
            AtDestination::SeesGateEmpty => {
                self.state.destination.agent.as_mut().expect("alive").watches_seal = false;
                self.drive_destination(destination::On::Sealed, When::Now);
            }
            AtDestination::Ticks => {
                let gated = self.destination_phase() == Some(DestinationPhase::Gated);
                // Open without knowing, unless it is `cont` that is tried again.
                self.state.fate.may_disorder |= gated && self.state.destination.vm == DestinationVm::Runs;
                self.drive_destination(destination::On::Tick, When::Due);
            }
        }
    }
}
