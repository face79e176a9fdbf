//! The source of a cold move.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Failure, Generation, Limits, Machine, Progress, SourceEffect as Do, SourceEvent as On, SourceReport as Report,
};

/// How long the destination may take to commit, once told, before it is asked.
const COMMIT_DEADLINE: Duration = Duration::from_secs(3);
/// How often a destination that does not answer is asked whether it committed.
const RESOLVE_EVERY: Duration = Duration::from_millis(500);

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum At {
    /// The destination makes room.
    Preparing,
    /// Disks are copied and compared.
    Copying,
    /// The give-up is being written.
    GivingUp,
    /// The destination may commit.
    Told,
    /// Told, and something went wrong: only the destination's word lets the guest stay.
    Unresolved,
    /// The destination owns it; peers are being told.
    Settling,
    /// What is left here is being removed.
    Removing,
    /// Being undone.
    Undoing,
    /// Over.
    Ended,
}

/// The source of a cold move. Its words are those of [`crate::Source`]; it uses fewer of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ColdSource {
    at: At,
    generation: Generation,
    limits: Limits,
    copied: u64,
    total: u64,
    failure: Option<Failure>,
    pub(super) deadline: Option<Duration>,
}

impl ColdSource {
    /// The source of a stopped guest it owns at `generation`.
    pub fn new(generation: Generation, limits: Limits) -> Self {
        Self { at: At::Preparing, generation, limits, copied: 0, total: 0, failure: None, deadline: None }
    }

    /// The source of one that was given up, durably, before its agent ended.
    pub fn given_up_before(generation: Generation, limits: Limits) -> Self {
        Self { at: At::Unresolved, ..Self::new(generation, limits) }
    }

    fn due(&self, now: Duration) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn late(&self) -> Failure {
        let Self { copied, total, .. } = self;
        let what = if self.at == At::Preparing {
            "the destination was not ready in time; see its agent's log, or allow more time".to_owned()
        } else {
            format!("the disks were not over in time: {copied} of {total} bytes were; allow more time or bandwidth")
        };
        Failure::new("DEADLINE_EXCEEDED", format!("{what}; the guest stays here, stopped"))
    }

    fn unresolved(&mut self, now: Duration) -> Vec<Do> {
        self.at = At::Unresolved;
        self.deadline = Some(now + RESOLVE_EVERY);
        vec![Do::Resolve]
    }

    fn abandon(&mut self, failure: Failure) -> Vec<Do> {
        let mut effects = vec![Do::TellAbort(failure.clone())];
        effects.extend(self.undo(failure));
        effects
    }

    fn undo(&mut self, failure: Failure) -> Vec<Do> {
        self.at = At::Undoing;
        self.failure = Some(failure);
        self.deadline = None;
        vec![Do::Undo]
    }

    fn committed(&mut self, generation: Generation) -> Vec<Do> {
        if generation == self.generation.next() {
            self.deadline = None;
            self.at = At::Settling;
        }
        vec![]
    }

    fn end(&mut self, report: Report) -> Vec<Do> {
        self.at = At::Ended;
        self.deadline = None;
        vec![Do::Report(report)]
    }

    fn go_wrong(&mut self, event: On, now: Duration) -> Vec<Do> {
        match event {
            On::Tick if self.due(now) => self.abandon(self.late()),
            On::Abort(failure) | On::MirrorFailed(failure) => self.abandon(failure),
            On::PeerDeclined(failure) => self.undo(failure),
            On::PeerLost => self.undo(Failure::new(
                "DESTINATION_LOST",
                "the destination's agent went away before commit; the guest stays here, stopped; migrate again when it is back",
            )),
            _ => vec![],
        }
    }
}

impl Machine for ColdSource {
    type Event = On;
    type Effect = Do;

    fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn step(&mut self, event: On, now: Duration) -> Vec<Do> {
        match (self.at, event) {
            (At::Preparing, On::Begin) => {
                self.deadline = Some(now + Duration::from_millis(self.limits.deadline_ms.into()));
                vec![Do::CallPeer]
            }
            (At::Preparing, On::PeerPrepared) => {
                self.at = At::Copying;
                vec![Do::MirrorDisks, Do::Report(Report::Precopy)]
            }
            (At::Copying, On::DiskProgress { copied, total }) => {
                (self.copied, self.total) = (copied, total);
                let progress = Progress { disk_copied: copied, disk_total: total, ..Progress::default() };
                vec![Do::Report(Report::Progress(progress))]
            }
            (At::Copying, On::DisksMirrored) => {
                self.at = At::GivingUp;
                vec![Do::RecordGiveUp]
            }
            (At::GivingUp, On::GiveUpRecorded) => {
                self.at = At::Told;
                self.deadline = Some(now + COMMIT_DEADLINE);
                vec![Do::TellGiveUp]
            }
            (At::Told | At::Unresolved, On::PeerCommitted { generation }) => self.committed(generation),
            (At::Told | At::Unresolved, On::PeerDeclined(failure)) => self.undo(failure),
            (At::Told, On::PeerLost) => self.unresolved(now),
            (At::Told, On::Abort(failure)) => {
                let mut effects = vec![Do::TellAbort(failure)];
                effects.extend(self.unresolved(now));
                effects
            }
            (At::Unresolved, On::Resolved { guest_stays: true }) => self.undo(Failure::new(
                "RESOLVED_BY_OPERATOR",
                "the destination was gone; by an operator's word the guest stays at the source",
            )),
            (At::Unresolved, On::Resolved { guest_stays: false }) => self.committed(self.generation.next()),
            (At::Unresolved, On::Begin) => self.unresolved(now),
            (At::Told | At::Unresolved, On::Tick) if self.due(now) => self.unresolved(now),
            (At::Settling, On::SettleOrdered) => {
                self.at = At::Removing;
                vec![Do::RemoveGuest]
            }
            (At::Removing, On::Removed) => self.end(Report::Settled),
            (At::Undoing, On::Undone) => {
                let failure = self.failure.take().unwrap_or_else(|| Failure::new("ABORTED", "undone"));
                self.end(Report::Aborted(failure))
            }
            (At::Preparing | At::Copying | At::GivingUp, event) => self.go_wrong(event, now),
            _ => vec![],
        }
    }

    fn tick() -> On {
        On::Tick
    }

    fn ended(&self) -> bool {
        self.at == At::Ended
    }
}
