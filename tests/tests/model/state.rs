//! All there is at one moment: what is durable, what lives only as long as a process, what is on its way.

use throughline_abi::{Sight, Verdict, decide};
pub(crate) use throughline_agent::journal::Promise;

use crate::{disks::Disks, machines::Id};

/// Things on their way, or in line, first come first.
pub(crate) type Queue<T> = Vec<T>;

/// What an agent tells the controller. What the source says on its way, and what the destination says as an owner, makes
/// no difference to anybody's decisions: one word stands for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum News {
    Underway,
    Expecting,
    Owns,
    Settled,
    Aborted,
    /// A peer has rebound.
    Ack,
}

/// What the controller tells an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    Expect,
    Start,
    Abort,
    Settle,
    Rebind,
    /// The whole state it wants, by the record: has the guest moved?
    Desired {
        moved: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ToDestination {
    Prepare,
    GiveUp,
    LineEmpty,
    Abort,
    /// The stream broke.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ToSource {
    Prepared,
    Committed,
    Declined,
    /// The call was not taken.
    Refused,
    Lost,
}

/// What QEMU says to whoever listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    Stopped,
    PreSwitchover,
    MemoryIn,
    Failed,
}

/// A frame for the guest, or a peer's markers: the flows that share a path share its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Frame {
    Data { peer: u8, number: u8 },
    Marker { peer: u8 },
}

/// A host's stream to the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) up: bool,
    pub(crate) down: Queue<Order>,
    /// The desired state that was sent last.
    pub(crate) has: Option<bool>,
}

/// What every agent has while its process lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    /// Its part in the migration, while it has one.
    pub(crate) machine: Option<Id>,
    /// News for the controller. What is first was sent first, and may be lost with the stream.
    pub(crate) news: Queue<News>,
    /// The last step it reported; said again when a stream begins.
    pub(crate) last: Option<News>,
    /// A move has ended here.
    pub(crate) ended: bool,
    /// What the controller wants, and whether a move had ended here when it came.
    pub(crate) desired: Option<(bool, bool)>,
    /// The guest lives here.
    pub(crate) resident: bool,
    /// The newest entry it wrote is the new owner's.
    pub(crate) applied_new: bool,
}

/// A port as `steer`, `land` and the pump see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Port {
    /// There is a tap.
    pub(crate) there: bool,
    /// Programs are attached.
    pub(crate) attached: bool,
    /// One of `throughline_abi::mode`.
    pub(crate) mode: u32,
    /// Frames that wait: in the hold, and, the mode being HOLD at the destination, in each peer's lane of it.
    pub(crate) line: Queue<Frame>,
    /// Frames in the tap's ring.
    pub(crate) ring: Queue<Frame>,
    /// The pump writes back.
    pub(crate) pumping: bool,
    /// Peers whose lanes are open.
    pub(crate) open_lanes: u8,
}

impl Port {
    /// What becomes of a frame. A source's line has one lane; at the gate each peer has its own.
    pub(crate) fn decide(&self, lanes: bool, frame: Frame) -> Verdict {
        if !self.attached {
            return Verdict::Pass;
        }
        let (Frame::Data { peer, .. } | Frame::Marker { peer }) = frame;
        let in_lane = |other: &&Frame| {
            let (Frame::Data { peer: of, .. } | Frame::Marker { peer: of }) = **other;
            !lanes || of == peer
        };
        let ahead = i64::try_from(self.line.iter().filter(in_lane).count()).expect("a handful");
        let lane_open = self.open_lanes & 1 << peer != 0;
        decide(Sight { mode: self.mode, ahead, lane_open, has_room: true, marked: false, group: false })
    }

    /// Programs off: frames pass as if they had never been there. Gives what was left in line.
    pub(crate) fn detach(&mut self) -> Queue<Frame> {
        let left = std::mem::take(&mut self.line);
        *self = Self { there: self.there, ring: std::mem::take(&mut self.ring), ..Self::default() };
        left
    }
}

/// The source's QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceVm {
    Runs,
    /// Runs, memory is being sent.
    Sends,
    /// Sends, and may stop the guest at the end of its slot.
    LetGo,
    /// Stopped, waits for the word to go on.
    PreSwitchover,
    /// Sends the last.
    Continues,
    /// Sent everything; stands.
    Completed,
    Gone,
}

impl SourceVm {
    pub(crate) fn runs(self) -> bool {
        matches!(self, Self::Runs | Self::Sends | Self::LetGo)
    }
}

/// The destination's QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DestinationVm {
    None,
    /// Takes memory in.
    Incoming,
    /// Has everything; stands.
    Paused,
    Runs,
    Gone,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SourceAgent {
    pub(crate) process: Process,
    /// `Start` was heard, and is not acted on yet.
    pub(crate) starting: bool,
    /// It has had QEMU send.
    pub(crate) sending: bool,
    /// The give-up is being written.
    pub(crate) giving_up: bool,
    pub(crate) watches_line: bool,
    pub(crate) awaits_quiet: bool,
    /// The guest's QEMU is gone, and the destination is asked what to write down.
    pub(crate) asks_for_remains: bool,
    /// The mirrors were told to finish.
    pub(crate) ending_mirrors: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct DestinationAgent {
    pub(crate) process: Process,
    pub(crate) committing: bool,
    pub(crate) declining: bool,
    /// `cont` has been sent.
    pub(crate) starting_guest: bool,
    pub(crate) awaits_markers: bool,
    /// Peers whose markers it has seen.
    pub(crate) markers_seen: u8,
    pub(crate) watches_seal: bool,
    /// The source asks, and waits for what is being decided.
    pub(crate) asked: bool,
    /// The source said that its line is empty.
    pub(crate) line_is_empty: bool,
    /// QEMU was told to let nobody write to the disks.
    pub(crate) closing_disks: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SourceHost {
    pub(crate) agent: Option<SourceAgent>,
    pub(crate) promise: Option<Promise>,
    /// The guest is on record here.
    pub(crate) owns: bool,
    pub(crate) vm: SourceVm,
    pub(crate) words: Queue<Word>,
    pub(crate) port: Port,
    pub(crate) link: Link,
    /// Its bridge leads to the new owner: back out of the port by which peers' frames come, so it drops them.
    pub(crate) leads_away: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DestinationHost {
    pub(crate) agent: Option<DestinationAgent>,
    pub(crate) promise: Option<Promise>,
    pub(crate) owns: bool,
    pub(crate) vm: DestinationVm,
    pub(crate) words: Queue<Word>,
    pub(crate) port: Port,
    /// Carried frames and markers land.
    pub(crate) landing: bool,
    pub(crate) link: Link,
    /// Its bridge leads to the tap; otherwise back to the source, and it drops what peers send directly.
    pub(crate) leads_here: bool,
}

/// The controller: its record, which is durable, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Controller {
    pub(crate) up: bool,
    pub(crate) machine: Id,
    /// The record says that the destination owns the guest.
    pub(crate) moved: bool,
}

/// A host that sends to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// Its agent's process, if it lives: only the link's part of it is of interest.
    pub(crate) agent: Option<Process>,
    pub(crate) link: Link,
    /// Its bridge leads to the new owner.
    pub(crate) flipped: bool,
    pub(crate) sent: u8,
    /// The tenant tunnels, to the source and to the destination.
    pub(crate) old_path: Queue<Frame>,
    pub(crate) new_path: Queue<Frame>,
    /// Its markers have landed.
    pub(crate) markers_in: bool,
    /// The number of the frame the guest gets next, if all goes well.
    pub(crate) next: u8,
}

/// The source's call to the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) to_destination: Queue<ToDestination>,
    pub(crate) to_source: Queue<ToSource>,
    /// Nothing more goes in; what is on its way may still arrive.
    pub(crate) broken: bool,
}

/// The source's question what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    None,
    Asked,
    /// The answer is on its way.
    Answer {
        committed: bool,
    },
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Left {
    pub(crate) crashes: u8,
    pub(crate) losses: u8,
    /// Deadlines that pass although something was about to happen.
    pub(crate) haste: u8,
}

/// What went wrong for the guest, and what of it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Fate {
    /// A frame was lost, and nothing excuses it.
    pub(crate) lost: bool,
    /// A frame came twice or past an older one, and nothing excuses it.
    pub(crate) disordered: bool,
    /// It was booted anew.
    pub(crate) reborn: bool,
    /// A QEMU was killed: there may be no guest any more.
    pub(crate) killed: bool,
    /// Frames may be lost: a QEMU died with the guest, or a port with the last of QEMU and agent; or the source settled
    /// without a peer whom nobody could tell.
    pub(crate) may_lose: bool,
    /// Order may be lost: the gate opened without knowing, by a deadline.
    pub(crate) may_disorder: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) source: SourceHost,
    pub(crate) destination: DestinationHost,
    pub(crate) controller: Controller,
    pub(crate) peers: Vec<Peer>,
    pub(crate) call: Call,
    pub(crate) question: Question,
    pub(crate) carry: Queue<Frame>,
    pub(crate) disks: Disks,
    pub(crate) left: Left,
    pub(crate) fate: Fate,
}

impl State {
    /// The guest runs at the source, everybody is connected, and the migration has just been admitted.
    pub(crate) fn new(controller: Id, peers: usize, left: Left) -> Self {
        let link = Link { up: true, down: Queue::new(), has: Some(false) };
        let process = Process { resident: true, ..Process::default() };
        let peer = Peer {
            agent: Some(Process::default()),
            link: link.clone(),
            flipped: false,
            sent: 0,
            old_path: Queue::new(),
            new_path: Queue::new(),
            markers_in: false,
            next: 0,
        };
        Self {
            source: SourceHost {
                agent: Some(SourceAgent { process, ..SourceAgent::default() }),
                promise: None,
                owns: true,
                vm: SourceVm::Runs,
                words: Queue::new(),
                port: Port { there: true, ..Port::default() },
                link: link.clone(),
                leads_away: false,
            },
            destination: DestinationHost {
                agent: Some(DestinationAgent::default()),
                promise: None,
                owns: false,
                vm: DestinationVm::None,
                words: Queue::new(),
                port: Port::default(),
                landing: false,
                link,
                leads_here: false,
            },
            controller: Controller { up: true, machine: controller, moved: false },
            peers: vec![peer; peers],
            call: Call { broken: true, ..Call::default() },
            question: Question::None,
            carry: Queue::new(),
            disks: Disks::default(),
            left,
            fate: Fate::default(),
        }
    }

    /// Down the stream, if it holds.
    pub(crate) fn say_to_destination(&mut self, what: ToDestination) {
        if !self.call.broken {
            self.call.to_destination.push(what);
        }
    }

    pub(crate) fn say_to_source(&mut self, what: ToSource) {
        if !self.call.broken {
            self.call.to_source.push(what);
        }
    }

    /// The source's end of the call is no more.
    pub(crate) fn hang_up_at_source(&mut self) {
        self.call.to_source.clear();
        if !self.call.broken {
            self.call.to_destination.push(ToDestination::Lost);
            self.call.broken = true;
        }
    }

    /// The destination's end of the call is no more.
    pub(crate) fn hang_up_at_destination(&mut self) {
        self.call.to_destination.clear();
        if !self.call.broken {
            self.call.to_source.push(ToSource::Lost);
            self.call.broken = true;
        }
    }
}
