//! The destination's part of a cutover: it takes the guest once the source has given it up, durably, and not before.
//!
//! ```text
//! Expecting ─ source called ─► Preparing ─ ready ─► Receiving ─ memory in, given up ─► Committing ─ on disk ─► Gated
//!     │                            │                    │                                  ║ point of         │ line empty,
//!     └────────────────────────────┴────────┬───────────┘                                  ║ no return        │ all markers in
//!                                        Declining ─ on disk ─► Undoing ─► Ended           ║                  ▼ or deadline
//!                                                               Ended ◄─ closed ─ Closing ◄═ settle ═ Open ◄─ Opening
//! ```
//!
//! While it is `Gated` with an empty line, each peer whose markers are in is let in by itself.
//!
//! The source writes to a guest's disks here until it gives the guest up. They are closed to it then, and only after that is
//! there a commit: nobody else writes to them once the guest runs here.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Failure, Generation, Limits, Machine, MigrationPlan};

/// How long the source may take to call after the plan arrived.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// How long the gate waits for markers once the source's line is empty. Well under TCP's 200 ms (RFC 6298's practical minimum RTO).
pub const MARKER_DEADLINE: Duration = Duration::from_millis(100);
/// How long the gate waits to hear that the line is empty, from the last frame that came of it. Only a source that died after
/// commit lets it come to this.
const LINE_DEADLINE: Duration = Duration::from_secs(2);
/// And how long from the guest's first moment here, however much still comes: a line that never ends must not keep
/// everybody else out.
const LONGEST_LINE: Duration = Duration::from_secs(30);
/// How often `cont` is tried again after commit.
const RUN_AGAIN: Duration = Duration::from_millis(100);

/// Where the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationPhase {
    /// Announced by the controller; the source has not called yet.
    Expecting,
    /// Taps, programs and QEMU are being made ready.
    Preparing,
    /// Memory comes in.
    Receiving,
    /// The commit is being written.
    Committing,
    /// Owns and runs the guest; what comes the new way waits.
    Gated,
    /// The gate's line drains into the tap.
    Opening,
    /// The gate is open.
    Open,
    /// The programs are being detached.
    Closing,
    /// "Did not take it" is being written.
    Declining,
    /// Being undone.
    Undoing,
    /// Over.
    Ended,
}

/// A peer the gate of one port waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GatePeer {
    /// The port, by its place in the plan.
    pub port: u32,
    /// The peer's number on that port.
    pub peer: u32,
}

impl GatePeer {
    /// All that a plan names.
    pub fn all(plan: &MigrationPlan) -> BTreeSet<Self> {
        let ports = (0..).zip(&plan.ports);
        ports.flat_map(|(port, plan)| plan.markers.iter().map(move |peer| Self { port, peer: peer.index })).collect()
    }
}

/// What happens to the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationEvent {
    /// The controller announced the migration.
    Announced,
    /// The source called and proved itself.
    SourceCalled,
    /// Everything is in place, and memory may come.
    Ready,
    /// Making ready failed.
    NotReady(Failure),
    /// QEMU has memory and devices.
    MemoryIn,
    /// QEMU failed or is gone.
    MemoryFailed(Failure),
    /// Frames are held at the source: the guest is about to stand. May be missing.
    SourceArmed,
    /// The source gave the guest up.
    SourceGaveUp {
        /// At this generation.
        generation: Generation,
    },
    /// The commit is on disk.
    CommitRecorded,
    /// Nobody can write to the guest's disks from outside any more. If that fails, it is `MemoryFailed`.
    DisksClosed,
    /// The commit could not be written: it did not happen.
    CommitFailed(Failure),
    /// `cont` was answered.
    Running,
    /// `cont` failed.
    RunFailed,
    /// Frames of the source's line have come since the last time.
    LineMoves,
    /// The source's line is empty.
    LineEmpty,
    /// A peer's markers are in on one port.
    MarkersIn(GatePeer),
    /// The gate's own line is empty: direct frames pass.
    Sealed,
    /// Every peer has been told.
    SettleOrdered,
    /// Programs detached, nothing of the move left.
    Closed,
    /// The source wants it undone.
    SourceAborted(Failure),
    /// The stream from the source broke.
    SourceLost,
    /// The source asks whether this end committed.
    Asked,
    /// The controller or an operator wants it undone.
    Abort(Failure),
    /// The refusal is on disk.
    DeclineRecorded,
    /// All undo effects are done.
    Undone,
    /// Time has passed.
    Tick,
}

/// What the destination's agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationEffect {
    /// Create taps (muted), hold, carry, landing; make room for the disks; start QEMU incoming; open the disks to the source; read
    /// back. Answer: `Ready` or `NotReady`.
    Prepare,
    /// Tell the source where to send memory and disks, and how.
    TellPrepared,
    /// Let nobody write to the guest's disks from outside any more. Answer: `DisksClosed` or `MemoryFailed`.
    CloseDisks,
    /// Have the commit as good as written: the guest still runs, and will stand still while the rest is done. No answer, and
    /// nothing is promised.
    DraftCommit,
    /// Write down that this host owns the guest. Answer: `CommitRecorded`.
    RecordCommit {
        /// At this generation.
        generation: Generation,
    },
    /// Direct frames wait from now on.
    RaiseGate,
    /// Tell the source to release its line.
    TellCommitted {
        /// At this generation.
        generation: Generation,
    },
    /// `cont`. Answer: `Running` or `RunFailed`.
    Run,
    /// This host's own bridge leads to the tap; its markers go down the old path.
    FlipOwn,
    /// GARP, NA, RARP, and the guest's own.
    Announce,
    /// Tell the source that the guest runs.
    TellRunning,
    /// Watch for markers, and for what comes of the line. Answers: `MarkersIn`, one for each, and `LineMoves`.
    AwaitMarkers,
    /// Let in what waits of one peer on one port, and what it sends from now on; the others still wait.
    LetIn(GatePeer),
    /// Let the gate's line into the tap, all that is left of it. Answer: `Sealed`.
    OpenGate,
    /// Tell the source that the gate is open.
    TellGateOpen,
    /// Detach the programs, close the landing. Answer: `Closed`.
    Close,
    /// Write down that this host did not take the guest. Answer: `DeclineRecorded`.
    RecordDecline,
    /// Tell the source so.
    TellDeclined(Failure),
    /// Kill QEMU, remove tap, hold, landing, what came of the disks. Answer: `Undone`.
    Undo,
    /// Tell the controller.
    Report(DestinationReport),
}

/// What the controller hears from the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationReport {
    /// The source may call.
    Expecting,
    /// Owns the guest.
    Committed(Generation),
    /// The guest runs.
    Running,
    /// The gate is open.
    GateOpen,
    /// Nothing of the move is left here.
    Settled,
    /// Undone; nothing is left here.
    Aborted(Failure),
}

/// The destination of one migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Destination {
    phase: DestinationPhase,
    generation: Generation,
    limits: Limits,
    memory_in: bool,
    given_up: bool,
    /// The source can write to the guest's disks.
    disks_open: bool,
    running: bool,
    /// Its QEMU ended after commit: there is nothing to let run.
    gone: bool,
    line_empty: bool,
    /// When the line is waited for no longer.
    line_until: Option<Duration>,
    awaited: BTreeSet<GatePeer>,
    markers_in: BTreeSet<GatePeer>,
    settle_ordered: bool,
    /// An earlier agent of this host came as far as this.
    taken_up: bool,
    failure: Option<Failure>,
    deadline: Option<Duration>,
}

impl Destination {
    /// The destination of a guest its source owns at `generation`, whose gates wait for the markers of `awaited`.
    pub fn new(generation: Generation, limits: Limits, awaited: BTreeSet<GatePeer>) -> Self {
        Self {
            phase: DestinationPhase::Expecting,
            generation,
            limits,
            memory_in: false,
            given_up: false,
            disks_open: false,
            running: false,
            gone: false,
            line_empty: false,
            line_until: None,
            awaited,
            markers_in: BTreeSet::new(),
            settle_ordered: false,
            taken_up: false,
            failure: None,
            deadline: None,
        }
    }

    /// The same, of a guest whose disks the source is to write to until it gives the guest up, if it has any.
    #[must_use]
    pub fn with_disks(self, there: bool) -> Self {
        Self { disks_open: there, ..self }
    }

    /// The destination of a guest that it owned, durably, when its agent ended; `open`: its gate was open by then.
    pub fn committed_before(generation: Generation, limits: Limits, awaited: BTreeSet<GatePeer>, open: bool) -> Self {
        let phase = if open { DestinationPhase::Opening } else { DestinationPhase::Gated };
        Self { phase, taken_up: true, ..Self::new(generation, limits, awaited) }
    }

    /// Where it is.
    pub fn phase(&self) -> DestinationPhase {
        self.phase
    }

    /// True from the durable commit on.
    pub fn committed(&self) -> bool {
        use DestinationPhase::{Closing, Gated, Open, Opening};
        matches!(self.phase, Gated | Opening | Open | Closing)
            || (self.phase == DestinationPhase::Ended && self.failure.is_none())
    }

    /// Before commit: may still say no.
    fn declinable(phase: DestinationPhase) -> bool {
        use DestinationPhase::{Expecting, Preparing, Receiving};
        matches!(phase, Expecting | Preparing | Receiving)
    }

    fn refuse(&mut self, event: DestinationEvent, now: Duration) -> Vec<DestinationEffect> {
        use DestinationEvent as On;
        match event {
            On::NotReady(failure) | On::MemoryFailed(failure) | On::SourceAborted(failure) | On::Abort(failure) => {
                self.decline(failure)
            }
            On::SourceLost | On::Asked => self.decline(Failure::new(
                "SOURCE_LOST",
                "the source's agent went away before the destination committed; the guest stays with the source",
            )),
            On::Tick if self.due(now) => self.decline(self.late()),
            _ => vec![],
        }
    }

    fn late(&self) -> Failure {
        let what = match self.phase {
            DestinationPhase::Expecting => {
                "the source's agent did not call; see that it reaches this one's --peer address, migrate again"
            }
            DestinationPhase::Preparing => "this host was not ready in time; see this agent's log",
            _ => "the guest was not here in time; allow more time or bandwidth",
        };
        Failure::new("DEADLINE_EXCEEDED", format!("{what} (it was {:?}); the guest stays with the source", self.phase))
    }

    fn due(&self, now: Duration) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn source_gave_up(&mut self, generation: Generation) -> Vec<DestinationEffect> {
        if generation != self.generation {
            return self.decline(Failure::new(
                "STALE_GENERATION",
                format!(
                    "the source gave up generation {generation}, the plan is for {}; migrate again",
                    self.generation
                ),
            ));
        }
        let again = std::mem::replace(&mut self.given_up, true);
        match self.disks_open {
            true if again => vec![],
            true => vec![DestinationEffect::CloseDisks],
            false => self.commit_if_complete(),
        }
    }

    fn commit_if_complete(&mut self) -> Vec<DestinationEffect> {
        if !(self.memory_in && self.given_up) || self.disks_open {
            return vec![];
        }
        self.phase = DestinationPhase::Committing;
        self.deadline = None;
        vec![DestinationEffect::RecordCommit { generation: self.generation.next() }]
    }

    fn committed_now(&mut self, now: Duration) -> Vec<DestinationEffect> {
        self.phase = DestinationPhase::Gated;
        self.deadline = Some(now + LINE_DEADLINE);
        let generation = self.generation.next();
        vec![
            DestinationEffect::RaiseGate,
            DestinationEffect::TellCommitted { generation },
            DestinationEffect::Run,
            DestinationEffect::FlipOwn,
            DestinationEffect::AwaitMarkers,
            DestinationEffect::Report(DestinationReport::Committed(generation)),
        ]
    }

    /// What an earlier agent may not have done is done again; a gate that was open stays so.
    fn take_up(&mut self, now: Duration) -> Vec<DestinationEffect> {
        self.taken_up = false;
        if self.phase == DestinationPhase::Gated {
            return self.committed_now(now);
        }
        self.deadline = Some(now + RUN_AGAIN);
        let generation = self.generation.next();
        vec![
            DestinationEffect::Run,
            DestinationEffect::FlipOwn,
            DestinationEffect::OpenGate,
            DestinationEffect::Report(DestinationReport::Committed(generation)),
        ]
    }

    fn runs(&mut self, now: Duration) -> Vec<DestinationEffect> {
        if self.running {
            return vec![];
        }
        self.running = true;
        self.await_markers(now);
        let mut effects = vec![
            DestinationEffect::TellRunning,
            DestinationEffect::Announce,
            DestinationEffect::Report(DestinationReport::Running),
        ];
        effects.extend(self.close_if_done());
        effects
    }

    /// What still waits for the guest is let through as if it ran, and the move ends.
    fn guest_is_gone(&mut self, now: Duration) -> Vec<DestinationEffect> {
        self.gone = true;
        self.await_markers(now);
        self.close_if_done()
    }

    fn await_markers(&mut self, now: Duration) {
        self.line_until = Some(now + LONGEST_LINE);
        let gated = self.phase == DestinationPhase::Gated;
        self.deadline = gated.then_some(now + if self.line_empty { MARKER_DEADLINE } else { LINE_DEADLINE });
    }

    /// Nobody tries `cont` again once the move has ended.
    fn awaits_guest(&self) -> bool {
        !self.running && !self.gone
    }

    /// Whose markers are in is let in once nothing is in line at the source; with the last of them the gate opens.
    fn let_in(&mut self, peers: &[GatePeer]) -> Vec<DestinationEffect> {
        if !self.line_empty {
            return vec![];
        }
        if self.awaited.is_subset(&self.markers_in) {
            return self.open();
        }
        peers.iter().map(|peer| DestinationEffect::LetIn(*peer)).collect()
    }

    fn line_moves(&mut self, now: Duration) -> Vec<DestinationEffect> {
        if !self.awaits_guest() && !self.line_empty {
            self.deadline = self.line_until.into_iter().chain([now + LINE_DEADLINE]).min();
        }
        vec![]
    }

    fn source_line_is_empty(&mut self, now: Duration) -> Vec<DestinationEffect> {
        self.line_empty = true;
        if !self.awaits_guest() {
            self.deadline = Some(now + MARKER_DEADLINE);
        }
        let peers: Vec<GatePeer> = self.markers_in.iter().copied().collect();
        self.let_in(&peers)
    }

    fn open(&mut self) -> Vec<DestinationEffect> {
        self.phase = DestinationPhase::Opening;
        if !self.awaits_guest() {
            self.deadline = None;
        }
        vec![DestinationEffect::OpenGate]
    }

    fn sealed(&mut self) -> Vec<DestinationEffect> {
        self.phase = DestinationPhase::Open;
        let mut effects = vec![DestinationEffect::TellGateOpen, DestinationEffect::Report(DestinationReport::GateOpen)];
        effects.extend(self.close_if_done());
        effects
    }

    fn close_if_done(&mut self) -> Vec<DestinationEffect> {
        if self.phase != DestinationPhase::Open || !self.settle_ordered || self.awaits_guest() {
            return vec![];
        }
        self.phase = DestinationPhase::Closing;
        vec![DestinationEffect::Close]
    }

    fn decline(&mut self, failure: Failure) -> Vec<DestinationEffect> {
        self.phase = DestinationPhase::Declining;
        self.failure = Some(failure);
        self.deadline = None;
        vec![DestinationEffect::RecordDecline]
    }

    fn why(&self) -> Failure {
        self.failure.clone().unwrap_or_else(|| Failure::new("ABORTED", "undone"))
    }

    fn end(&mut self, report: DestinationReport) -> Vec<DestinationEffect> {
        self.phase = DestinationPhase::Ended;
        self.deadline = None;
        vec![DestinationEffect::Report(report)]
    }
}

impl Machine for Destination {
    type Event = DestinationEvent;
    type Effect = DestinationEffect;

    fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn step(&mut self, event: DestinationEvent, now: Duration) -> Vec<DestinationEffect> {
        use DestinationEvent as On;
        use DestinationPhase as At;
        match (self.phase, event) {
            (At::Expecting, On::Announced) => {
                self.deadline = Some(now + CALL_DEADLINE);
                vec![DestinationEffect::Report(DestinationReport::Expecting)]
            }
            (At::Expecting, On::SourceCalled) => {
                self.phase = At::Preparing;
                self.deadline = Some(now + Duration::from_millis(self.limits.deadline_ms.into()));
                vec![DestinationEffect::Prepare]
            }
            (At::Preparing, On::Ready) => {
                self.phase = At::Receiving;
                vec![DestinationEffect::TellPrepared]
            }
            (At::Receiving, On::MemoryIn) => {
                self.memory_in = true;
                self.commit_if_complete()
            }
            (At::Receiving, On::SourceArmed) => vec![DestinationEffect::DraftCommit],
            (At::Receiving, On::SourceGaveUp { generation }) => self.source_gave_up(generation),
            (At::Receiving, On::DisksClosed) if self.given_up => {
                self.disks_open = false;
                self.commit_if_complete()
            }
            (At::Committing, On::CommitRecorded) => self.committed_now(now),
            (At::Gated | At::Opening, On::Announced) if self.taken_up => self.take_up(now),
            (At::Committing, On::CommitFailed(failure)) => self.decline(failure),
            (At::Gated | At::Opening | At::Open, On::Running) => self.runs(now),
            // Too late to decline.
            (At::Committing, On::MemoryFailed(_)) => {
                self.gone = true;
                vec![]
            }
            (At::Gated | At::Opening | At::Open, On::MemoryFailed(_)) if !self.gone => self.guest_is_gone(now),
            (At::Gated | At::Opening | At::Open, On::RunFailed) if self.awaits_guest() => {
                self.deadline = Some(now + RUN_AGAIN);
                vec![]
            }
            (At::Gated, On::LineMoves) => self.line_moves(now),
            (At::Gated, On::LineEmpty) if !self.line_empty => self.source_line_is_empty(now),
            (At::Gated, On::MarkersIn(peer)) if self.awaited.contains(&peer) && self.markers_in.insert(peer) => {
                self.let_in(&[peer])
            }
            (At::Gated | At::Opening | At::Open, On::Tick) if self.due(now) && self.awaits_guest() => {
                self.deadline = None;
                vec![DestinationEffect::Run]
            }
            (At::Gated, On::Tick) if self.due(now) => self.open(),
            (At::Opening, On::Sealed) => self.sealed(),
            (At::Gated | At::Opening | At::Open, On::SettleOrdered) => {
                self.settle_ordered = true;
                self.close_if_done()
            }
            (At::Closing, On::Closed) => self.end(DestinationReport::Settled),
            (At::Declining, On::DeclineRecorded) => {
                self.phase = At::Undoing;
                vec![DestinationEffect::TellDeclined(self.why()), DestinationEffect::Undo]
            }
            (At::Undoing, On::Undone) => {
                let failure = self.why();
                self.end(DestinationReport::Aborted(failure))
            }
            (phase, event) if Self::declinable(phase) => self.refuse(event, now),
            _ => vec![],
        }
    }

    fn tick() -> DestinationEvent {
        DestinationEvent::Tick
    }

    fn ended(&self) -> bool {
        self.phase == DestinationPhase::Ended
    }
}
