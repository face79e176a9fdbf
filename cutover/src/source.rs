//! The source's part of a cutover: it gives the guest up, once, and never takes it back on its own word.
//!
//! ```text
//! Preparing ─ ready, peer prepared ─► Precopy ─ little left ─► Braked ─ given up, on disk; rate down ─► Approaching ─ next to ──┐
//!     │                                  │                      ▲                                           │       nothing left   │
//!     │                                  │                      ▲  └──────────── slot runs out ◄──────────────┘                │
//!     │                                  └─ busy, no better ─► GivingUp ─ on disk ─────────────────────────────────────────────┤
//!     │                                                                                                                        ▼
//!     │          Ended ◄─ removed ─ Removing ◄─ settle, quiet ─ Carrying ◄─ committed ─ Switching ◄─ STOP ─ Pausing ◄─ pass over ─ LastPass ◄─ Arming
//!     └── failed, cancelled, late ──► not told yet: Undoing ─► Ended                       ▲
//!                                         ▲ declined                                       │ committed after all
//!                                     told: Unresolved ────────────────────────────────────┘
//! ```
//!
//! A QEMU that stops by itself all the same, at any time, is armed at once and goes on from `Arming`.
//!
//! The give-up is written while the guest still runs, so that the disk's time is not the guest's pause. Once the
//! destination has been told, only its word lets the guest stay.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Failure, Generation, Limits, Machine, Progress,
    converge::{Approach, Convergence},
};

/// Longest wait for the hold to be in place, and for QEMU to stop once told.
const ARM_DEADLINE: Duration = Duration::from_secs(2);
/// What a switchover may take beyond the caller's longest pause before it counts as failed.
const SWITCH_GRACE: Duration = Duration::from_secs(3);
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
    /// The last pass runs at full rate, the guest runs.
    Approaching,
    /// The give-up is being written, the guest runs and dirties much.
    GivingUp,
    /// The hold is being put in place.
    Arming,
    /// Frames are held, the last pass ends, the guest still runs.
    LastPass,
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
    told: bool,
    uri: Option<String>,
    stopped: bool,
    await_last_pass: bool,
    pre_switchover: bool,
    line_empty: bool,
    settle_ordered: bool,
    convergence: Convergence,
    failure: Option<Failure>,
    deadline: Option<Duration>,
}

impl Source {
    /// The source of a guest it owns at `generation`.
    pub fn new(generation: Generation, limits: Limits) -> Self {
        Self {
            phase: SourcePhase::Preparing,
            generation,
            limits,
            ready: false,
            told: false,
            uri: None,
            stopped: false,
            await_last_pass: false,
            pre_switchover: false,
            line_empty: false,
            settle_ordered: false,
            convergence: Convergence::new(limits),
            failure: None,
            deadline: None,
        }
    }

    /// The source of a guest that was given up, durably, before its agent ended: first of all the destination is asked.
    pub fn given_up_before(generation: Generation, limits: Limits) -> Self {
        Self { phase: SourcePhase::Unresolved, told: true, stopped: true, ..Self::new(generation, limits) }
    }

    /// Where it is.
    pub fn phase(&self) -> SourcePhase {
        self.phase
    }

    /// Before the destination's commit is known.
    fn under_way(phase: SourcePhase) -> bool {
        use SourcePhase::{Approaching, Arming, Braked, GivingUp, LastPass, Pausing, Precopy, Preparing, Switching};
        matches!(phase, Preparing | Precopy | Braked | Approaching | GivingUp | Arming | LastPass | Pausing | Switching)
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
        self.deadline = Some(now + Duration::from_millis(self.limits.deadline_ms.into()));
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
            effects.extend([SourceEffect::Brake, SourceEffect::RecordGiveUp]);
        } else if self.convergence.should_pause(&progress, now) {
            self.phase = SourcePhase::GivingUp;
            effects.extend([SourceEffect::RecordGiveUp, SourceEffect::FullRate]);
        }
        effects
    }

    fn braked(&mut self, progress: Progress, now: Duration) -> Vec<SourceEffect> {
        let mut effects = vec![SourceEffect::Report(SourceReport::Progress(progress))];
        if self.told && self.convergence.is_braked(&progress) {
            self.convergence.approach(now);
            self.phase = SourcePhase::Approaching;
            effects.push(SourceEffect::FullRate);
        }
        effects
    }

    fn approaching(&mut self, progress: Progress, now: Duration) -> Vec<SourceEffect> {
        match self.convergence.judge(&progress, now) {
            Approach::GoOn => vec![],
            Approach::Arm => {
                self.await_last_pass = true;
                self.arm(now)
            }
            Approach::Brake => {
                self.phase = SourcePhase::Braked;
                vec![SourceEffect::Brake]
            }
        }
    }

    fn arm(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Arming;
        self.deadline = Some(now + ARM_DEADLINE);
        vec![SourceEffect::Arm]
    }

    /// An idle guest's QEMU may finish by itself. Frames since the stop wait in the tap's ring, ahead of the hold.
    fn stopped_early(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.stopped = true;
        let mut effects = self.arm(now);
        effects.push(SourceEffect::RecordGiveUp);
        effects
    }

    fn tell(&mut self) -> Vec<SourceEffect> {
        self.told = true;
        vec![SourceEffect::TellGiveUp]
    }

    fn armed(&mut self, now: Duration) -> Vec<SourceEffect> {
        let mut effects = if self.stopped {
            self.paused(now)
        } else if self.await_last_pass {
            self.convergence.armed(now);
            self.phase = SourcePhase::LastPass;
            self.deadline = self.convergence.last_pass_deadline();
            vec![]
        } else {
            self.pause(now)
        };
        effects.push(SourceEffect::Report(SourceReport::Armed));
        effects
    }

    fn pause(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Pausing;
        self.deadline = Some(now + ARM_DEADLINE);
        vec![SourceEffect::Pause]
    }

    fn paused(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Switching;
        self.stopped = true;
        self.deadline = Some(now + SWITCH_GRACE + Duration::from_millis(self.limits.longest_pause_ms.into()));
        let mut effects = Vec::with_capacity(2);
        if self.pre_switchover {
            effects.push(SourceEffect::ContinueSwitchover);
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
            (At::Approaching, On::Progress(progress)) => self.approaching(progress, now),
            (At::Precopy, On::Stopped) => self.stopped_early(now),
            (At::Braked | At::Approaching | At::GivingUp, On::Stopped) => {
                self.stopped = true;
                self.arm(now)
            }
            (At::Braked, On::GiveUpRecorded) => self.tell(),
            (At::GivingUp, On::GiveUpRecorded) => {
                let mut effects = self.tell();
                effects.extend(self.arm(now));
                effects
            }
            (At::Approaching | At::Arming | At::LastPass | At::Pausing | At::Switching, On::GiveUpRecorded) => {
                self.tell()
            }
            (At::Arming, On::Stopped) => {
                self.stopped = true;
                vec![]
            }
            (At::Arming, On::Armed) => self.armed(now),
            (At::LastPass, On::Progress(progress)) if self.convergence.last_pass_over(&progress, now) => {
                self.pause(now)
            }
            (At::LastPass, On::Tick) if self.due(now) => self.pause(now),
            (At::LastPass | At::Pausing, On::Stopped) => self.paused(now),
            (
                At::Braked | At::Approaching | At::GivingUp | At::Arming | At::LastPass | At::Pausing,
                On::PreSwitchover,
            ) => {
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
