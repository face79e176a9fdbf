//! The source's part of a cutover: it gives the guest up, once, and never takes it back on its own word.
//!
//! ```text
//! Preparing ─ ready, peer prepared ─► Precopy ─ near the end, give-up on disk, a slot ends ─► Arming ─ armed ─► Pausing
//!     │                                  │                                                      │                 │ STOP
//!     │                                  │                                                      │                 ▼
//!     │   Ended ◄─ removed ─ Removing ◄─ settle, quiet ─ Carrying ◄─ committed ─ told ◄─ pre-switchover ─ Switching
//!     └── failed, cancelled, late ──► not told yet: Undoing ─► Ended    ▲
//!                                         ▲ declined                    │ committed after all
//!                                     told: Unresolved ─────────────────┘
//! ```
//!
//! The give-up is written while the guest still runs, so that the disk's time is not the guest's pause. The destination
//! is told when QEMU is about to send its last word; from then on only the destination's lets the guest stay.
//!
//! Of a guest with disks these are copied first, in *Mirroring*, between *Preparing* and *Precopy*: see `source/disks.rs`.

mod disks;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Failure, Generation, Limits, Machine, Progress,
    converge::Convergence,
    stall::{Remedy, Stall},
};
use disks::Disks;

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
    /// Disks are copied, the guest runs; what it writes goes to both ends.
    Mirroring,
    /// Memory moves, the guest runs.
    Precopy,
    /// The hold is being put in place.
    Arming,
    /// Frames are held, QEMU has been let go: the guest runs until the end of the slot.
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
    /// The destination waits for memory.
    PeerPrepared,
    /// How copying the disks is getting on, all of them together.
    DiskProgress {
        /// Bytes that are over.
        copied: u64,
        /// Bytes to copy.
        total: u64,
    },
    /// Every disk is over, and what the guest writes goes to both ends.
    DisksMirrored,
    /// A disk's copy failed; the guest's own writes did not.
    MirrorFailed(Failure),
    /// No mirror is left, and all that was written is on the destination's disks.
    MirrorsEnded,
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
    /// An operator's word, in place of that of a destination that is gone for good.
    Resolved {
        /// It goes on here; otherwise it runs over there.
        guest_stays: bool,
    },
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
    /// Have what the guest writes go to the destination's disks too, and copy the rest. Answers: `DiskProgress`, then
    /// `DisksMirrored`; `MirrorFailed` at any time until the mirrors have ended.
    MirrorDisks,
    /// Begin to copy memory to where the destination said, and to report `Progress`.
    StartPrecopy,
    /// Have QEMU send next to nothing until it is let go: what is left gets no less, going over it again and again.
    Brake,
    /// Have it send as fast as the caller allows again, and look what was dirtied meanwhile.
    Unbrake,
    /// Have it take this share of its processors' time from the guest, percent, as long as it copies memory.
    Throttle {
        /// More than before.
        percent: u8,
    },
    /// Steer frames to the hold. Answer: `Armed`.
    Arm,
    /// Let QEMU stop the guest at the end of its slot, and finish. Answer: `Stopped`, then `PreSwitchover`.
    Pause,
    /// Tell the destination what the guest's ports have joined. Nobody waits for it.
    TellMemberships,
    /// Write down that the guest is given up. Answer: `GiveUpRecorded`.
    RecordGiveUp,
    /// Tell the destination so.
    TellGiveUp,
    /// The guest stands: let its mirrors finish. Answer: `MirrorsEnded` or `MirrorFailed`.
    EndMirrors,
    /// Let QEMU send the devices' state.
    ContinueSwitchover,
    /// Send the line down the carry tunnel: first what is in the tap's own ring, then the hold. Answer: `LineEmpty`.
    ReleaseToCarry,
    /// Tell the destination that the line is empty.
    TellLineEmpty,
    /// Ask the destination to undo; told or not.
    TellAbort(Failure),
    /// Ask the destination, by a new call, whether it committed. Answer: `PeerCommitted`, `PeerDeclined` or `PeerLost`.
    Resolve,
    /// Wait until nothing is carried any more. Answer: `Quiet`.
    AwaitQuiet,
    /// Stop QEMU, close the ports, delete the devices, write it down, delete the disks. Answer: `Removed`.
    RemoveGuest,
    /// Cancel QEMU's migration, abandon the mirrors, resume the guest if it is paused, release the hold into its own tap, close
    /// the ports. Answer: `Undone`.
    Undo,
    /// Tell the controller.
    Report(SourceReport),
}

/// What the controller hears from the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceReport {
    /// The guest's disks, if it has any, and its memory are being copied.
    Precopy,
    /// How it is getting on.
    Progress(Progress),
    /// It does not converge: the figures, and what is done about it.
    Stalled(Failure),
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
    giving_up: bool,
    /// Since when the give-up is on disk.
    given_up: Option<Duration>,
    told: bool,
    invited: bool,
    pre_switchover: bool,
    line_empty: bool,
    settle_ordered: bool,
    disks: Disks,
    convergence: Convergence,
    /// What QEMU was told to take from the guest, percent.
    throttle: u8,
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
            giving_up: false,
            given_up: None,
            told: false,
            invited: false,
            pre_switchover: false,
            line_empty: false,
            settle_ordered: false,
            disks: Disks::default(),
            convergence: Convergence::new(limits),
            throttle: 0,
            failure: None,
            deadline: None,
            last_moment: None,
        }
    }

    /// The same, of a guest whose disks are to be mirrored before its memory moves, if it has any.
    #[must_use]
    pub fn with_disks(self, there: bool) -> Self {
        Self { disks: Disks::new(there), ..self }
    }

    /// The source of a guest that was given up, durably, before its agent ended: first of all the destination is asked.
    pub fn given_up_before(generation: Generation, limits: Limits) -> Self {
        let phase = SourcePhase::Unresolved;
        Self { phase, told: true, ..Self::new(generation, limits) }
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
            On::Abort(failure) | On::MemoryFailed(failure) | On::MirrorFailed(failure) => self.abandon(failure, now),
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
        if self.phase == SourcePhase::Mirroring {
            return self.disks.late();
        }
        let (reason, what) = match self.phase {
            SourcePhase::Arming => {
                ("CUTOVER_TIMED_OUT", "the guest's frames could not be held in time; see this agent's log")
            }
            SourcePhase::Pausing => ("CUTOVER_TIMED_OUT", "QEMU did not stop the guest when told to; migrate again"),
            SourcePhase::Switching if self.disks.are_ending() && !self.told => (
                "CUTOVER_TIMED_OUT",
                "what the guest wrote last did not get to the destination's disks in time; see that the hosts reach each other, \
                 migrate again",
            ),
            SourcePhase::Switching => (
                "CUTOVER_TIMED_OUT",
                "the last memory did not get to the destination in time; see that the hosts reach each other, migrate again",
            ),
            SourcePhase::Preparing => (
                "DEADLINE_EXCEEDED",
                "the two ends were not ready in time; see the destination agent's log, or allow more time",
            ),
            _ => ("DEADLINE_EXCEEDED", "memory was not over in time; allow more time or bandwidth, or a longer pause"),
        };
        Failure::new(reason, format!("{what} (it was {:?}; {}); the guest runs on here", self.phase, self.convergence))
    }

    fn begin(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.last_moment = Some(now + Duration::from_millis(self.limits.deadline_ms.into()));
        self.deadline = self.last_moment;
        vec![SourceEffect::CallPeer, SourceEffect::PrepareDatapath]
    }

    /// Disks first: memory would be dirtied again while they are copied.
    fn copy_if_ready(&mut self) -> Vec<SourceEffect> {
        if !(self.ready && self.invited) {
            return vec![];
        }
        let begin = if self.disks.are_there() { self.mirror() } else { self.precopy() };
        vec![begin, SourceEffect::Report(SourceReport::Precopy)]
    }

    fn precopy(&mut self) -> SourceEffect {
        self.phase = SourcePhase::Precopy;
        SourceEffect::StartPrecopy
    }

    fn progress(&mut self, progress: Progress, now: Duration) -> Vec<SourceEffect> {
        self.convergence.look(&progress, now);
        let expected_pause_us = self.convergence.expected_pause_us();
        let progress = self.disks.told_with(Progress { expected_pause_us, ..progress });
        let mut effects = vec![SourceEffect::Report(SourceReport::Progress(progress))];
        if let Some(stall) = self.convergence.stalled() {
            effects.extend(self.stalled(&stall, now));
            if self.phase != SourcePhase::Precopy {
                return effects;
            }
        }
        if !self.giving_up && self.convergence.is_near() {
            self.giving_up = true;
            effects.push(SourceEffect::RecordGiveUp);
        }
        if self.convergence.should_unbrake(now) {
            effects.push(SourceEffect::Unbrake);
        } else if self.given_up.is_some() && self.convergence.should_brake(now) {
            effects.push(SourceEffect::Brake);
        }
        effects.extend(self.arm_in_time(now));
        effects
    }

    /// The next step of the caller's policy, or the end of the move.
    fn stalled(&mut self, stall: &Stall, now: Duration) -> Vec<SourceEffect> {
        let Some(remedy) = self.limits.on_stall.remedy(stall, self.throttle) else {
            return self.abandon(
                Failure::new(
                    "NOT_CONVERGING",
                    format!(
                        "{stall}; the guest runs on here; move it when it is less busy, or allow more bandwidth, a longer \
                         pause, or that it is slowed"
                    ),
                ),
                now,
            );
        };
        self.convergence.begin_anew();
        let mut effects = Vec::with_capacity(2);
        let step = match remedy {
            Remedy::Throttle(percent) => {
                self.throttle = percent;
                effects.push(SourceEffect::Throttle { percent });
                format!("its processors are slowed by {percent} % from now on")
            }
            Remedy::Allow(pause_ms) => {
                self.limits.longest_pause_ms = pause_ms;
                self.convergence.allow(pause_ms);
                format!("{pause_ms} ms are allowed from now on")
            }
        };
        effects.push(SourceEffect::Report(SourceReport::Stalled(Failure::new(
            "NOT_CONVERGING",
            format!("{stall}; {step}"),
        ))));
        effects
    }

    fn arm_in_time(&mut self, now: Duration) -> Vec<SourceEffect> {
        if self.given_up.is_some_and(|given_up| self.convergence.should_arm(given_up, now)) {
            self.phase = SourcePhase::Arming;
            self.deadline = Some(now + ARM_DEADLINE);
            return vec![SourceEffect::Arm];
        }
        let arm_at = self.given_up.and_then(|_| self.convergence.arm_at(now));
        self.deadline = arm_at.into_iter().chain(self.last_moment).min();
        vec![]
    }

    /// Should never be: QEMU was not let go. Nothing is lost if the guest runs on here, for the one frame that a stopped
    /// QEMU may have read waits in this QEMU.
    fn stopped_too_soon(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.abandon(
            Failure::new(
                "STOPPED_TOO_SOON",
                "the guest was stopped before its frames could be held, by QEMU or by somebody at its monitor; \
                 it runs on here; migrate again",
            ),
            now,
        )
    }

    fn armed(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Pausing;
        self.deadline = Some(now + ARM_DEADLINE);
        vec![SourceEffect::Pause, SourceEffect::TellMemberships, SourceEffect::Report(SourceReport::Armed)]
    }

    fn paused(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.phase = SourcePhase::Switching;
        self.deadline = Some(now + SWITCH_GRACE + Duration::from_millis(self.limits.longest_pause_ms.into()));
        let mut effects = if self.pre_switchover { self.switch() } else { vec![] };
        effects.push(SourceEffect::Report(SourceReport::Paused));
        effects
    }

    /// The destination is not told before it has all that was written.
    fn switch(&mut self) -> Vec<SourceEffect> {
        if self.disks.are_there() { self.end_mirrors() } else { self.give_up() }
    }

    fn give_up(&mut self) -> Vec<SourceEffect> {
        self.told = true;
        vec![SourceEffect::TellGiveUp, SourceEffect::ContinueSwitchover]
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
                self.copy_if_ready()
            }
            (At::Preparing, On::PeerPrepared) => {
                self.invited = true;
                self.copy_if_ready()
            }
            (At::Mirroring, On::DiskProgress { copied, total }) => self.disk_progress(copied, total),
            (At::Mirroring, On::DisksMirrored) => self.disks_mirrored(),
            (At::Precopy, On::Progress(progress)) => self.progress(progress, now),
            (At::Precopy, On::GiveUpRecorded) => {
                self.given_up = Some(now);
                vec![]
            }
            (At::Precopy, On::Tick) if self.last_moment.is_none_or(|moment| now < moment) => self.arm_in_time(now),
            (At::Mirroring | At::Precopy | At::Arming, On::Stopped) => self.stopped_too_soon(now),
            (At::Arming, On::Armed) => self.armed(now),
            (At::Pausing, On::Stopped) => self.paused(now),
            (At::Pausing, On::PreSwitchover) => {
                self.pre_switchover = true;
                vec![]
            }
            (At::Switching, On::PreSwitchover) if !self.told => self.switch(),
            (At::Switching, On::MirrorsEnded) if self.disks.are_ending() && !self.told => self.give_up(),
            (At::Switching | At::Unresolved, On::PeerCommitted { generation }) if self.told => {
                self.committed(generation)
            }
            (At::Unresolved, On::PeerDeclined(failure)) => self.undo(failure),
            (At::Unresolved, On::Resolved { guest_stays: true }) => self.undo(Failure::new(
                "RESOLVED_BY_OPERATOR",
                "the destination was gone; by an operator's word the guest runs on at the source",
            )),
            (At::Unresolved, On::Resolved { guest_stays: false }) => self.committed(self.generation.next()),
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
