//! A network in which everything that takes time takes as long as the schedule says: peers, tunnels, rings, pumps, the word
//! between the agents. What is decided is decided by the code that ships: `decide` for every frame, the machines for when
//! the line is released and for whom the gate opens.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use throughline_abi::{MARKERS, Sight, Verdict, are_all_in, decide, mode};
use throughline_cutover::{
    Destination, DestinationEffect, DestinationEvent, Failure, GatePeer, Generation, Limits, Machine as _, Source,
    SourceEffect, SourceEvent,
};

const GENERATION: Generation = Generation(4);
/// Nothing here is waited for, so no deadline passes.
const NOW: Duration = Duration::ZERO;
/// Queues of a path, one a flow: what is in one says nothing of what is in the other.
pub(crate) const QUEUES: usize = 2;

type Path = [VecDeque<Frame>; QUEUES];

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A frame of one of a peer's flows, by number.
    Data { peer: usize, flow: usize, number: u32 },
    /// One of a peer's markers, by sequence.
    Marker { peer: usize, sequence: u32 },
}

/// A port as `steer` and the pump see it.
#[derive(Debug, Default)]
struct Port {
    mode: u32,
    open_lanes: u32,
    /// Frames in line, by lane, as the programs and the pump count them.
    lanes: Vec<i64>,
    /// The hold's queues.
    hold: Vec<VecDeque<Frame>>,
    /// The tap's own ring.
    ring: VecDeque<Frame>,
    /// Lanes from which the pump has written a frame back that it has not subtracted yet.
    written_back: Vec<usize>,
}

impl Port {
    fn new(mode: u32, lanes: usize) -> Self {
        Self { mode, lanes: vec![0; lanes], hold: vec![VecDeque::new(); lanes], ..Self::default() }
    }

    fn decide(&self, lane: usize) -> Verdict {
        decide(Sight {
            mode: self.mode,
            ahead: self.lanes[lane],
            lane_open: self.open_lanes & 1 << lane != 0,
            has_room: true,
            marked: false,
            group: false,
        })
    }

    fn divert(&mut self, lane: usize, frame: Frame) {
        self.lanes[lane] += 1;
        self.hold[lane].push_back(frame);
    }

    fn line(&self) -> i64 {
        self.lanes.iter().sum()
    }
}

/// What may be taken out of the world to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Without {
    /// Nothing: as it ships.
    Nothing,
    /// The gate: direct frames pass at once.
    TheGate,
    /// The seal: a line being released does not keep later frames behind it.
    TheSeal,
    /// The markers: a peer is let in when it says that it has flipped.
    TheMarkers,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Guest {
    #[default]
    AtSource,
    Paused,
    AtDestination,
}

#[derive(Debug, Default)]
struct Peer {
    sent: [u32; QUEUES],
    flipped: bool,
    /// The tenant tunnel to the source, and to the destination.
    old_path: Path,
    new_path: Path,
    markers_seen: u64,
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    without: Without,
    commits: bool,
    guest: Guest,
    peers: Vec<Peer>,
    source: Port,
    destination: Port,
    carry: VecDeque<Frame>,
    source_machine: Source,
    destination_machine: Destination,
    to_source: VecDeque<SourceEvent>,
    to_destination: VecDeque<DestinationEvent>,
    /// Peers may flip: the controller has heard of the commit.
    rebound: bool,
    releasing: bool,
    line_was_empty: bool,
    opening: bool,
    sealed: bool,
    delivered: Vec<[Vec<u32>; QUEUES]>,
}

impl World {
    /// `commits`: whether the destination takes the guest, or declines.
    pub(crate) fn new(peers: usize, commits: bool, without: Without) -> Self {
        let awaited: BTreeSet<_> = (0..peers as u32).map(|peer| GatePeer { port: 0, peer }).collect();
        let mut destination_machine = Destination::new(GENERATION, Limits::default(), awaited);
        for event in [DestinationEvent::Announced, DestinationEvent::SourceCalled, DestinationEvent::Ready] {
            destination_machine.step(event, NOW);
        }
        let mut source_machine = Source::given_up_before(GENERATION, Limits::default());
        source_machine.step(SourceEvent::Begin, NOW);
        Self {
            without,
            commits,
            guest: Guest::AtSource,
            peers: (0..peers).map(|_| Peer::default()).collect(),
            source: Port::new(mode::PASS, 1),
            destination: Port::new(mode::MUTE, peers + 1),
            carry: VecDeque::new(),
            source_machine,
            destination_machine,
            to_source: VecDeque::new(),
            to_destination: VecDeque::new(),
            rebound: false,
            releasing: false,
            line_was_empty: false,
            opening: false,
            sealed: false,
            delivered: vec![Default::default(); peers],
        }
    }

    /// One thing happens, if it can: `what` and `who` are the schedule's whim.
    pub(crate) fn happen(&mut self, what: u8, who: usize) {
        let who = who % self.peers.len();
        match what % 16 {
            0 | 1 => self.send(who, usize::from(what % 2)),
            2 | 3 => self.flip(who),
            4 | 5 => self.arrive_at_source(who, usize::from(what % 2)),
            6 | 7 => self.arrive_at_destination(who, usize::from(what % 2)),
            8 => self.read(),
            9 => self.pump_source(),
            10 => self.pump_destination(who),
            11 => self.land(),
            12 => self.hear_at_source(),
            13 => self.hear_at_destination(),
            14 => self.arm_or_stop(),
            _ => self.look(),
        }
    }

    /// Everything that is under way ends: nothing new is sent.
    pub(crate) fn come_to_rest(&mut self) {
        let (mut rounds, mut quiet) = (0, 0);
        while quiet < 20 {
            rounds += 1;
            assert!(rounds < 100_000, "something waits for ever: {self:#?}");
            self.arm_or_stop();
            for peer in 0..self.peers.len() {
                (3..=15).filter(|what| *what != 14).for_each(|what| self.happen(what, peer));
                self.pump_destination(peer + 1);
            }
            self.pump_destination(0);
            quiet = if self.is_at_rest() { quiet + 1 } else { 0 };
        }
    }

    fn is_at_rest(&self) -> bool {
        let mut paths = self.peers.iter().flat_map(|peer| peer.old_path.iter().chain(&peer.new_path));
        let paths = paths.all(VecDeque::is_empty);
        let ports = [&self.source, &self.destination];
        let lines = ports.iter().all(|port| port.line() == 0 && port.hold.iter().all(VecDeque::is_empty));
        let ring = match self.guest {
            Guest::AtSource => self.source.ring.is_empty(),
            Guest::AtDestination => self.destination.ring.is_empty(),
            Guest::Paused => false,
        };
        let words = self.to_source.is_empty() && self.to_destination.is_empty();
        // A gate that never opens is not at rest either.
        let over = self.releasing && self.sealed == self.commits;
        paths && lines && ring && words && self.carry.is_empty() && over
    }

    /// What each flow's frames came to, in the order in which the guest got them, and how many were sent.
    pub(crate) fn fates(&self) -> impl Iterator<Item = (&[u32], u32)> {
        let sent = self.peers.iter().flat_map(|peer| peer.sent);
        self.delivered.iter().flatten().map(Vec::as_slice).zip(sent)
    }

    fn send(&mut self, who: usize, flow: usize) {
        let peer = &mut self.peers[who];
        let frame = Frame::Data { peer: who, flow, number: peer.sent[flow] };
        peer.sent[flow] += 1;
        let path = if peer.flipped { &mut peer.new_path } else { &mut peer.old_path };
        path[flow].push_back(frame);
    }

    fn flip(&mut self, who: usize) {
        let peer = &mut self.peers[who];
        if !self.rebound || peer.flipped {
            return;
        }
        peer.flipped = true;
        for sequence in 0..MARKERS {
            peer.old_path[sequence as usize % QUEUES].push_back(Frame::Marker { peer: who, sequence });
        }
        if self.without == Without::TheMarkers {
            self.to_destination.push_back(DestinationEvent::MarkersIn(GatePeer { port: 0, peer: who as u32 }));
        }
    }

    fn arm_or_stop(&mut self) {
        match (self.source.mode, self.guest) {
            (mode::PASS, Guest::AtSource) => self.source.mode = mode::HOLD,
            (mode::HOLD, Guest::AtSource) if self.to_source.is_empty() && !self.releasing => {
                self.guest = Guest::Paused;
                let ends = if self.commits {
                    [DestinationEvent::SourceGaveUp { generation: GENERATION }, DestinationEvent::MemoryIn]
                } else {
                    let failure = Failure::new("TEST", "declines");
                    [DestinationEvent::Abort(failure), DestinationEvent::DeclineRecorded]
                };
                self.to_destination.extend(ends);
            }
            _ => {}
        }
    }

    fn arrive_at_source(&mut self, who: usize, queue: usize) {
        let Some(frame) = self.peers[who].old_path[queue].pop_front() else { return };
        match self.source.decide(0) {
            Verdict::Pass => self.source.ring.push_back(frame),
            Verdict::Carry => self.carry.push_back(frame),
            Verdict::Divert if self.releasing && self.without == Without::TheSeal => self.let_out(frame),
            Verdict::Divert => self.source.divert(0, frame),
            verdict => panic!("{verdict:?} at the source"),
        }
    }

    fn arrive_at_destination(&mut self, who: usize, queue: usize) {
        let Some(frame) = self.peers[who].new_path[queue].pop_front() else { return };
        let lane = who + 1;
        match self.destination.decide(lane) {
            Verdict::Divert if self.without == Without::TheGate => self.destination.ring.push_back(frame),
            Verdict::Pass => self.destination.ring.push_back(frame),
            Verdict::Divert => self.destination.divert(lane, frame),
            verdict => panic!("{verdict:?} at the destination"),
        }
    }

    /// Where the source's line goes.
    fn let_out(&mut self, frame: Frame) {
        if self.source.mode == mode::RELEASE { &mut self.source.ring } else { &mut self.carry }.push_back(frame);
    }

    /// Writing back and subtracting are two steps, and anything may happen between them.
    fn pump_source(&mut self) {
        if self.source.written_back.pop().is_some() {
            self.source.lanes[0] -= 1;
        } else if self.releasing
            && let Some(frame) = self.source.hold[0].pop_front()
        {
            self.let_out(frame);
            self.source.written_back.push(0);
        }
    }

    fn pump_destination(&mut self, lane: usize) {
        let port = &mut self.destination;
        if let Some(lane) = port.written_back.pop() {
            port.lanes[lane] -= 1;
        } else if (self.opening || port.open_lanes & 1 << lane != 0)
            && let Some(frame) = port.hold[lane].pop_front()
        {
            port.ring.push_back(frame);
            port.written_back.push(lane);
        }
    }

    fn land(&mut self) {
        match self.carry.pop_front() {
            Some(Frame::Marker { peer, sequence }) => {
                self.peers[peer].markers_seen |= 1 << sequence;
                if are_all_in(self.peers[peer].markers_seen) {
                    let peer = GatePeer { port: 0, peer: peer as u32 };
                    self.to_destination.push_back(DestinationEvent::MarkersIn(peer));
                }
            }
            // Marked by `land`: it has had its turn.
            Some(frame) => self.destination.ring.push_back(frame),
            None => {}
        }
    }

    fn read(&mut self) {
        let ring = match self.guest {
            Guest::AtSource => &mut self.source.ring,
            Guest::AtDestination => &mut self.destination.ring,
            Guest::Paused => return,
        };
        match ring.pop_front() {
            Some(Frame::Data { peer, flow, number }) => self.delivered[peer][flow].push(number),
            Some(Frame::Marker { .. }) | None => {}
        }
    }

    /// The agents look at their lines.
    fn look(&mut self) {
        if self.releasing && !self.line_was_empty && self.source.line() == 0 {
            self.line_was_empty = true;
            self.to_source.push_back(SourceEvent::LineEmpty);
        }
        if self.opening && !self.sealed && self.destination.line() == 0 {
            self.sealed = true;
            self.to_destination.push_back(DestinationEvent::Sealed);
        }
    }

    fn hear_at_source(&mut self) {
        let Some(event) = self.to_source.pop_front() else { return };
        for effect in self.source_machine.step(event, NOW) {
            match effect {
                SourceEffect::ReleaseToCarry => {
                    // What is in the departed guest's ring goes to the front of the line.
                    self.source.lanes[0] += self.source.ring.len() as i64;
                    while let Some(frame) = self.source.ring.pop_back() {
                        self.source.hold[0].push_front(frame);
                    }
                    self.source.mode = mode::CARRY;
                    self.releasing = true;
                }
                SourceEffect::TellLineEmpty => self.to_destination.push_back(DestinationEvent::LineEmpty),
                SourceEffect::Undo => {
                    self.guest = Guest::AtSource;
                    self.source.mode = mode::RELEASE;
                    self.releasing = true;
                }
                _ => {}
            }
        }
    }

    fn hear_at_destination(&mut self) {
        let Some(event) = self.to_destination.pop_front() else { return };
        for effect in self.destination_machine.step(event, NOW) {
            match effect {
                DestinationEffect::RecordCommit { .. } => {
                    self.to_destination.push_back(DestinationEvent::CommitRecorded);
                }
                DestinationEffect::RaiseGate => self.destination.mode = mode::HOLD,
                DestinationEffect::TellCommitted { generation } => {
                    self.to_source.push_back(SourceEvent::PeerCommitted { generation });
                }
                DestinationEffect::Run => {
                    self.guest = Guest::AtDestination;
                    self.to_destination.push_back(DestinationEvent::Running);
                }
                DestinationEffect::Report(_) if self.destination_machine.committed() => self.rebound = true,
                DestinationEffect::LetIn(peer) => self.destination.open_lanes |= 1 << (peer.peer + 1),
                DestinationEffect::OpenGate => {
                    self.destination.mode = mode::RELEASE;
                    self.opening = true;
                }
                DestinationEffect::TellDeclined(failure) => {
                    self.to_source.push_back(SourceEvent::PeerDeclined(failure));
                }
                _ => {}
            }
        }
    }
}
