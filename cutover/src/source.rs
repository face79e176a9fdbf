//! The source's part of a cutover: it gives the guest up, once, and never takes it back on its own word.
//!
//! ```text
//!                                                              ┌── disarmed ── Disarming ◄── far from it ── Landing ◄── too long ──┐
//!                                                              ▼                                                                   │
//! Preparing ─ ready, peer prepared ─► Precopy ─ little left ─► Braked ─ given up, on disk; a slot ends ─► Arming ─ armed ─► Flight ┤
//!     │                                  ▲  │                      │                                       ▲ │                     │
//!     │                 undone, prepared │  └─ busy, no better ────┼──────► GivingUp ─ on disk ────────────┘ │ (armed: Pausing)    │ near: told
//!     │                    again         │                         ▼                                         ▼                     ▼
//!     │                               Retreating ◄──────────── STOP, by QEMU itself ◄────────────────────────┘                  Pausing
//!     │                                                                                                                            │ STOP
//!     │          Ended ◄─ removed ─ Removing ◄─ settle, quiet ─ Carrying ◄─ committed ─ Switching ◄─────────────────────────────────┘
//!     └── failed, cancelled, late ──► not told yet: Undoing ─► Ended                       ▲
//!                                         ▲ declined                                       │ committed after all
//!                                     told: Unresolved ────────────────────────────────────┘
//! ```
//!
//! A QEMU that stops by itself before the port is armed is taken back at once and begins again: its guest would lose a
//! frame. After that it may stop when it likes.
//!
//! The give-up is written while the guest still runs, so that the disk's time is not the guest's pause. The destination
//! is told when the guest is paused; from then on only its word lets the guest stay.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Failure, Generation, Limits, Machine, Progress,
    converge::{Convergence, Course},
};

/// Longest wait for the hold to be in place, and for QEMU to stop once told.
const ARM_DEADLINE: Duration = Duration::from_secs(2);
/// What a switchover may take beyond the caller's longest pause before it counts as failed.
const SWITCH_GRACE: Duration = Duration::from_secs(3);
/// How long a QEMU that was held back with next to nothing left may take to stop the guest.
const LANDING_DEADLINE: Duration = Duration::from_millis(20);
/// How often QEMU may stop the guest too soon before that is the end of the migration.
const ATTEMPTS: u32 = 4;
/// How often a destination that no longer answers is asked whether it committed.
const RESOLVE_EVERY: Duration = Duration::from_millis(500);

/// Where the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourcePhase {
    /// Both ends make ready.
    Preparing,
    /// Memory moves, the guest runs.
    Precopy,
    /// Little is left and held back, the give-up is being written, the guest runs.
    Braked,
    /// QEMU stopped too soon: the guest is made to run on, both ends make ready once more.
    Retreating,
    /// The give-up is being written, the guest runs and dirties much.
    GivingUp,
    /// The hold is being put in place.
    Arming,
    /// Frames are held, what is left goes at full rate, the guest still runs.
    Flight,
    /// Held back again, frames still held.
    Landing,
    /// What was held goes to the guest.
    Disarming,
    /// QEMU has been told to stop.
    Pausing,
    /// The guest is paused, the last memory moves, the destination may commit.
    Switching,
    /// Told, and something went wrong: only the destination's word lets the guest resume here.
    Unresolved,
    /// The destination owns the guest; frames that still arrive are carried.
    Carrying,
    /// Settled; the guest's remains are being removed.
    Removing,
    /// Being undone.
    Undoing,
    /// Over.
    Ended,
}

/// What happens to the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceEvent {
    /// The controller ordered it.
    Begin,
    /// The ports' programs are attached and read back.
    Ready,
    /// The destination listens for memory.
    PeerPrepared {
        /// In QEMU's form.
        uri: String,
    },
    /// How memory is getting on.
    Progress(Progress),
    /// Every port's frames are held.
    Armed,
    /// What is left after `BrakeAgain`.
    HeldBack(Progress),
    /// Frames pass again, none is held.
    Disarmed,
    /// QEMU's STOP.
    Stopped,
    /// QEMU has everything but the last word: `pre-switchover`.
    PreSwitchover,
    /// The give-up is on disk.
    GiveUpRecorded,
    /// QEMU's migration failed, was cancelled, or QEMU is gone.
    MemoryFailed(Failure),
    /// The destination owns the guest.
    PeerCommitted {
        /// At this generation.
        generation: Generation,
    },
    /// The destination does not own the guest and never will by this migration.
    PeerDeclined(Failure),
    /// The stream to the destination broke.
    PeerLost,
    /// Nothing is left in line.
    LineEmpty,
    /// Every peer has been told.
    SettleOrdered,
    /// Nothing has been carried for a while.
    Quiet,
    /// An operator or the controller wants it undone.
    Abort(Failure),
    /// All undo effects are done.
    Undone,
    /// The guest runs on, nothing is held.
    Retreated,
    /// The guest's remains are gone.
    Removed,
    /// Time has passed.
    Tick,
}

/// What the source's agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceEffect {
    /// Attach the programs, set up the carry. Answer: `Ready`.
    PrepareDatapath,
    /// Open the stream to the destination. Answer: `PeerPrepared`, `PeerDeclined` or `PeerLost`.
    CallPeer,
    /// Begin to copy memory and to report `Progress`.
    StartPrecopy {
        /// Where to.
        uri: String,
    },
    /// Hold back what is left of memory, so that QEMU does not stop the guest before the port is armed.
    Brake,
    /// The same, and see what is left then. Answer: `HeldBack`.
    BrakeAgain,
    /// Let what is held into the guest's tap, and what comes pass. Answer: `Disarmed`.
    Disarm,
    /// Send as fast as it goes: the last pass, a brake's worth at most, and what is left at the pause.
    FullRate,
    /// Steer frames to the hold. Answer: `Armed`.
    Arm,
    /// Stop the guest, upon which QEMU finishes. Answer: `Stopped`, then `PreSwitchover`.
    Pause,
    /// Write down that the guest is given up. Answer: `GiveUpRecorded`.
    RecordGiveUp,
    /// Tell the destination so.
    TellGiveUp,
    /// Ask the destination to make ready for memory once more. Answer: `PeerPrepared`, `PeerDeclined` or `PeerLost`.
    TellAgain,
    /// Cancel QEMU's migration, resume the guest, let what is held into its own tap; stay prepared. Answer: `Retreated`.
    Retreat,
    /// Let QEMU send the devices' state.
    ContinueSwitchover,
    /// Send the line down the carry tunnel: first what is in the tap's own ring, then the hold. Answer: `LineEmpty`.
    ReleaseToCarry,
    /// Tell the destination that the line is empty.
    TellLineEmpty,
    /// Ask the destination to undo.
    TellAbort(Failure),
    /// Ask the destination, by a new call, whether it committed. Answer: `PeerCommitted`, `PeerDeclined` or `PeerLost`.
    Resolve,
    /// Wait until nothing is carried any more. Answer: `Quiet`.
    AwaitQuiet,
    /// Stop QEMU, close the ports, delete the devices, write it down. Answer: `Removed`.
    RemoveGuest,
    /// Cancel QEMU's migration, resume the guest if it is paused, release the hold into its own tap, close the ports. Answer: `Undone`.
    Undo,
    /// Tell the controller.
    Report(SourceReport),
}

/// What the controller hears from the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceReport {
    /// Memory is being copied.
    Precopy,
    /// How it is getting on.
    Progress(Progress),
    /// Frames are held.
    Armed,
    /// The guest is paused.
    Paused,
    /// The line is empty.
    LineEmpty,
    /// Nothing of the guest is left here.
    Settled,
    /// Undone; the guest is as before.
    Aborted(Failure),
}

/// The source of one migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Source {
    phase: SourcePhase,
    generation: Generation,
    limits: Limits,
    ready: bool,
    given_up: bool,
    told: bool,
    attempts: u32,
    uri: Option<String>,
    take_off: bool,
    pre_switchover: bool,
    line_empty: bool,
    settle_ordered: bool,
    convergence: Convergence,
    failure: Option<Failure>,
    deadline: Option<Duration>,
    /// For everything before commit.
    last_moment: Option<Duration>,
}

impl Source {
    /// The source of a guest it owns at `generation`.
    pub fn new(generation: Generation, limits: Limits) -> Self {
        Self {
            phase: SourcePhase::Preparing,
            generation,
            limits,
            ready: false,
            given_up: false,
            told: false,
            attempts: 1,
            uri: None,
            take_off: false,
            pre_switchover: false,
            line_empty: false,
            settle_ordered: false,
            convergence: Convergence::new(limits),
            failure: None,
            deadline: None,
            last_moment: None,
        }
    }

    /// The source of a guest that was given up, durably, before its agent ended: first of all the destination is asked.
    pub fn given_up_before(generation: Generation, limits: Limits) -> Self {
        let phase = SourcePhase::Unresolved;
        Self { phase, given_up: true, told: true, ..Self::new(generation, limits) }
    }

    /// Where it is.
    pub fn phase(&self) -> SourcePhase {
        self.phase
    }

    /// Before the destination's commit is known.
    fn under_way(phase: SourcePhase) -> bool {
        use SourcePhase::{Carrying, Ended, Removing, Undoing, Unresolved};
        !matches!(phase, Unresolved | Carrying | Removing | Undoing | Ended)
    }

    fn go_wrong(&mut self, event: SourceEvent, now: Duration) -> Vec<SourceEffect> {
        use SourceEvent as On;
        match event {
            On::Tick if self.due(now) => self.abandon(self.late(), now),
            On::Abort(failure) | On::MemoryFailed(failure) => self.abandon(failure, now),
            On::PeerDeclined(failure) => self.undo(failure),
            On::PeerLost if self.told => self.unresolved(now),
            On::PeerLost => self.undo(Failure::new(
                "DESTINATION_LOST",
                "the destination's agent went away before commit; the guest runs on here; migrate again when it is back",
            )),
            _ => vec![],
        }
    }

    fn due(&self, now: Duration) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn late(&self) -> Failure {
        Failure::new(
            "DEADLINE_EXCEEDED",
            format!("the migration did not get past {:?} in time; {}", self.phase, self.convergence),
        )
    }

    fn begin(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.last_moment = Some(now + Duration::from_millis(self.limits.deadline_ms.into()));
        self.deadline = self.last_moment;
        vec![SourceEffect::CallPeer, SourceEffect::PrepareDatapath]
    }

    fn precopy_if_ready(&mut self) -> Vec<SourceEffect> {
        match (self.ready, self.uri.clone()) {
            (true, Some(uri)) => {
                self.phase = SourcePhase::Precopy;
                vec![SourceEffect::StartPrecopy { uri }, SourceEffect::Report(SourceReport::Precopy)]
            }
            _ => vec![],
        }
    }

    fn progress(&mut self, progress: Progress, now: Duration) -> Vec<SourceEffect> {
        let mut effects = vec![SourceEffect::Report(SourceReport::Progress(progress))];
        if self.convergence.should_brake(&progress) {
            self.phase = SourcePhase::Braked;
            effects.push(SourceEffect::Brake);
            effects.extend(self.give_up());
        } else if self.convergence.should_pause(&progress, now) {
            self.phase = SourcePhase::GivingUp;
            effects.push(SourceEffect::FullRate);
            effects.extend(self.give_up());
            if self.given_up {
                effects.extend(self.arm(now));
            }
        }
        effects
    }

    /// Written once, however often it begins again.
    fn give_up(&self) -> Option<SourceEffect> {
        (!self.given_up).then_some(SourceEffect::RecordGiveUp)
    }

    fn braked(&mut self, progress: Progress, now: Duration) -> Vec<SourceEffect> {
        if self.convergence.should_arm(&progress, now) && self.given_up {
            self.take_off = true;
            return self.arm(now);
        }
        vec![SourceEffect::Report(SourceReport::Progress(progress))]
    }

    fn arm(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Arming;
        self.deadline = Some(now + ARM_DEADLINE);
        vec![SourceEffect::Arm]
    }

    /// QEMU stopped the guest before frames were held. Nothing is lost if the guest runs on here: the one frame it may have
    /// read since waits in this QEMU.
    fn begin_again(&mut self) -> Vec<SourceEffect> {
        if self.attempts >= ATTEMPTS {
            return self.undo(Failure::new(
                "STOPPED_TOO_SOON",
                format!(
                    "QEMU stopped the guest before its frames could be held, {ATTEMPTS} times; the guest runs on here; \
                     migrate again when this host is less busy"
                ),
            ));
        }
        self.attempts += 1;
        self.phase = SourcePhase::Retreating;
        self.deadline = self.last_moment;
        (self.ready, self.uri, self.take_off, self.pre_switchover) = (false, None, false, false);
        self.convergence.begin_again();
        vec![SourceEffect::TellAgain, SourceEffect::Retreat]
    }

    fn tell(&mut self) -> Vec<SourceEffect> {
        self.told = true;
        vec![SourceEffect::TellGiveUp]
    }

    fn armed(&mut self, now: Duration) -> Vec<SourceEffect> {
        if !self.take_off {
            return self.pause(now);
        }
        self.convergence.take_off(now);
        self.phase = SourcePhase::Flight;
        self.deadline = self.convergence.flight_deadline();
        vec![SourceEffect::FullRate]
    }

    fn flight(&mut self, progress: Option<&Progress>, now: Duration) -> Vec<SourceEffect> {
        match self.convergence.course(progress, now) {
            Course::GoOn => {
                self.deadline = self.convergence.flight_deadline();
                vec![]
            }
            Course::Pause => self.pause(now),
            Course::Brake => {
                self.phase = SourcePhase::Landing;
                self.deadline = Some(now + LANDING_DEADLINE);
                vec![SourceEffect::BrakeAgain]
            }
        }
    }

    /// With next to nothing left QEMU may be about to stop the guest, so the port stays armed for that.
    fn held_back(&mut self, progress: &Progress) -> Vec<SourceEffect> {
        if !self.convergence.may_disarm(progress) {
            return vec![];
        }
        self.phase = SourcePhase::Disarming;
        self.deadline = self.last_moment;
        vec![SourceEffect::Disarm]
    }

    fn pause(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Pausing;
        self.deadline = Some(now + ARM_DEADLINE);
        // Told first: gathering what goes with it is not for the time in which the guest stands.
        let mut effects = self.tell();
        effects.extend([SourceEffect::Report(SourceReport::Armed), SourceEffect::Pause]);
        effects
    }

    /// The guest stands, armed: by our word or by QEMU's own.
    fn paused(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Switching;
        self.deadline = Some(now + SWITCH_GRACE + Duration::from_millis(self.limits.longest_pause_ms.into()));
        let mut effects = Vec::with_capacity(4);
        if self.pre_switchover {
            effects.push(SourceEffect::ContinueSwitchover);
        }
        if !self.told {
            effects.extend(self.tell());
            effects.push(SourceEffect::Report(SourceReport::Armed));
        }
        effects.push(SourceEffect::Report(SourceReport::Paused));
        effects
    }

    fn committed(&mut self, generation: Generation) -> Vec<SourceEffect> {
        if generation != self.generation.next() {
            // Not our successor: the record has moved on without this migration. Never resume; wait for the controller.
            self.deadline = None;
            return vec![];
        }
        self.phase = SourcePhase::Carrying;
        self.deadline = None;
        vec![SourceEffect::ReleaseToCarry]
    }

    fn line_is_empty(&mut self) -> Vec<SourceEffect> {
        if self.line_empty {
            return vec![];
        }
        self.line_empty = true;
        let mut effects = vec![SourceEffect::TellLineEmpty, SourceEffect::Report(SourceReport::LineEmpty)];
        effects.extend(self.settle_if_empty());
        effects
    }

    fn settle_if_empty(&self) -> Vec<SourceEffect> {
        if self.settle_ordered && self.line_empty { vec![SourceEffect::AwaitQuiet] } else { vec![] }
    }

    fn unresolved(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Unresolved;
        self.deadline = Some(now + RESOLVE_EVERY);
        vec![SourceEffect::Resolve]
    }

    /// Once told, only the destination can say no.
    fn abandon(&mut self, failure: Failure, now: Duration) -> Vec<SourceEffect> {
        let mut effects = vec![SourceEffect::TellAbort(failure.clone())];
        if self.told {
            self.phase = SourcePhase::Unresolved;
            self.deadline = Some(now + RESOLVE_EVERY);
        } else {
            effects.extend(self.undo(failure));
        }
        effects
    }

    fn undo(&mut self, failure: Failure) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Undoing;
        self.failure = Some(failure);
        self.deadline = None;
        vec![SourceEffect::Undo]
    }

    fn end(&mut self, report: SourceReport) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Ended;
        self.deadline = None;
        vec![SourceEffect::Report(report)]
    }
}

impl Machine for Source {
    type Event = SourceEvent;
    type Effect = SourceEffect;

    fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn step(&mut self, event: SourceEvent, now: Duration) -> Vec<SourceEffect> {
        use SourceEvent as On;
        use SourcePhase as At;
        match (self.phase, event) {
            (At::Preparing, On::Begin) => self.begin(now),
            (At::Preparing, On::Ready) => {
                self.ready = true;
                self.precopy_if_ready()
            }
            (At::Preparing, On::PeerPrepared { uri }) => {
                self.uri = Some(uri);
                self.precopy_if_ready()
            }
            (At::Precopy, On::Progress(progress)) => self.progress(progress, now),
            (At::Braked, On::Progress(progress)) => self.braked(progress, now),
            (At::Precopy | At::Braked | At::GivingUp | At::Arming | At::Disarming, On::Stopped) => self.begin_again(),
            (At::Braked | At::Retreating | At::Precopy, On::GiveUpRecorded) => {
                self.given_up = true;
                vec![]
            }
            (At::GivingUp, On::GiveUpRecorded) => {
                self.given_up = true;
                self.arm(now)
            }
            // What QEMU said before it was taken back.
            (At::Retreating, On::MemoryFailed(_)) => vec![],
            (At::Retreating, On::Retreated) => {
                self.ready = true;
                self.precopy_if_ready()
            }
            (At::Retreating, On::PeerPrepared { uri }) => {
                self.uri = Some(uri);
                self.precopy_if_ready()
            }
            (At::Arming, On::Armed) => self.armed(now),
            (At::Flight, On::Progress(progress)) => self.flight(Some(&progress), now),
            (At::Flight, On::Tick) if self.due(now) => self.flight(None, now),
            (At::Landing, On::HeldBack(progress)) => self.held_back(&progress),
            // Still next to nothing left, and QEMU did not stop it: so it is stopped, and nothing holds QEMU back.
            (At::Landing, On::Tick) if self.due(now) => {
                let mut effects = vec![SourceEffect::FullRate];
                effects.extend(self.pause(now));
                effects
            }
            (At::Disarming, On::Disarmed) => {
                self.phase = At::Braked;
                vec![]
            }
            (At::Flight | At::Landing | At::Pausing, On::Stopped) => self.paused(now),
            (At::Flight | At::Landing | At::Pausing, On::PreSwitchover) => {
                self.pre_switchover = true;
                vec![]
            }
            (At::Switching, On::PreSwitchover) => vec![SourceEffect::ContinueSwitchover],
            (At::Switching | At::Unresolved, On::PeerCommitted { generation }) if self.told => {
                self.committed(generation)
            }
            (At::Unresolved, On::PeerDeclined(failure)) => self.undo(failure),
            (At::Unresolved, On::Begin) => self.unresolved(now),
            (At::Unresolved, On::Tick) if self.due(now) => self.unresolved(now),
            (At::Carrying, On::LineEmpty) => self.line_is_empty(),
            (At::Carrying, On::SettleOrdered) => {
                self.settle_ordered = true;
                self.settle_if_empty()
            }
            (At::Carrying, On::Quiet) => {
                self.phase = At::Removing;
                vec![SourceEffect::RemoveGuest]
            }
            (At::Removing, On::Removed) => self.end(SourceReport::Settled),
            (At::Undoing, On::Undone) => {
                let failure = self.failure.take().unwrap_or_else(|| Failure::new("ABORTED", "undone"));
                self.end(SourceReport::Aborted(failure))
            }
            (phase, event) if Self::under_way(phase) => self.go_wrong(event, now),
            _ => vec![],
        }
    }

    fn tick() -> SourceEvent {
        SourceEvent::Tick
    }

    fn ended(&self) -> bool {
        self.phase == SourcePhase::Ended
    }
}
