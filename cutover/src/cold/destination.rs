//! The destination of a cold move.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    DestinationEffect as Do, DestinationEvent as On, DestinationReport as Report, Failure, Generation, Limits, Machine,
};

/// How long the source may take to call after the plan arrived.
const CALL_DEADLINE: Duration = Duration::from_secs(20);

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum At {
    /// Announced; the source has not called yet.
    Expecting,
    /// Room is being made.
    Preparing,
    /// Disks come in.
    Receiving,
    /// The commit is being written.
    Committing,
    /// Owns the guest.
    Open,
    /// What the move needed is being put away.
    Closing,
    /// "Did not take it" is being written.
    Declining,
    /// Being undone.
    Undoing,
    /// Over.
    Ended,
}

/// The destination of a cold move. Its words are those of [`crate::Destination`]; it uses fewer of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ColdDestination {
    at: At,
    generation: Generation,
    limits: Limits,
    disks_in: bool,
    given_up: bool,
    failure: Option<Failure>,
    pub(super) deadline: Option<Duration>,
}

impl ColdDestination {
    /// The destination of a stopped guest that its source owns at `generation`.
    pub fn new(generation: Generation, limits: Limits) -> Self {
        let at = At::Expecting;
        Self { at, generation, limits, disks_in: false, given_up: false, failure: None, deadline: None }
    }

    fn due(&self, now: Duration) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn late(&self) -> Failure {
        let what = match self.at {
            At::Expecting => {
                "the source's agent did not call; see that it reaches this one's --peer address, migrate again"
            }
            _ => "the guest's disks were not here in time; allow more time or bandwidth",
        };
        Failure::new("DEADLINE_EXCEEDED", format!("{what} (it was {:?}); the guest stays with the source", self.at))
    }

    fn commit_if_complete(&mut self) -> Vec<Do> {
        if !(self.disks_in && self.given_up) {
            return vec![];
        }
        self.at = At::Committing;
        self.deadline = None;
        vec![Do::RecordCommit { generation: self.generation.next() }]
    }

    fn decline(&mut self, failure: Failure) -> Vec<Do> {
        self.at = At::Declining;
        self.failure = Some(failure);
        self.deadline = None;
        vec![Do::RecordDecline]
    }

    fn why(&self) -> Failure {
        self.failure.clone().unwrap_or_else(|| Failure::new("ABORTED", "undone"))
    }

    fn end(&mut self, report: Report) -> Vec<Do> {
        self.at = At::Ended;
        vec![Do::Report(report)]
    }

    fn refuse(&mut self, event: On, now: Duration) -> Vec<Do> {
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
}

impl Machine for ColdDestination {
    type Event = On;
    type Effect = Do;

    fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn step(&mut self, event: On, now: Duration) -> Vec<Do> {
        match (self.at, event) {
            (At::Expecting, On::Announced) => {
                self.deadline = Some(now + CALL_DEADLINE);
                vec![Do::Report(Report::Expecting)]
            }
            (At::Expecting, On::SourceCalled) => {
                self.at = At::Preparing;
                self.deadline = Some(now + Duration::from_millis(self.limits.deadline_ms.into()));
                vec![Do::Prepare]
            }
            (At::Preparing, On::Ready) => {
                self.at = At::Receiving;
                vec![Do::TellPrepared]
            }
            (At::Receiving, On::MemoryIn) => {
                self.disks_in = true;
                self.commit_if_complete()
            }
            (At::Receiving, On::SourceGaveUp { generation }) if generation == self.generation => {
                self.given_up = true;
                self.commit_if_complete()
            }
            (At::Receiving, On::SourceGaveUp { generation }) => self.decline(Failure::new(
                "STALE_GENERATION",
                format!(
                    "the source gave up generation {generation}, the plan is for {}; migrate again",
                    self.generation
                ),
            )),
            (At::Committing, On::CommitRecorded) => {
                self.at = At::Open;
                let generation = self.generation.next();
                vec![Do::TellCommitted { generation }, Do::FlipOwn, Do::Report(Report::Committed(generation))]
            }
            (At::Committing, On::CommitFailed(failure)) => self.decline(failure),
            (At::Open, On::SettleOrdered) => {
                self.at = At::Closing;
                vec![Do::Close]
            }
            (At::Closing, On::Closed) => self.end(Report::Settled),
            (At::Declining, On::DeclineRecorded) => {
                self.at = At::Undoing;
                vec![Do::TellDeclined(self.why()), Do::Undo]
            }
            (At::Undoing, On::Undone) => {
                let failure = self.why();
                self.end(Report::Aborted(failure))
            }
            (At::Expecting | At::Preparing | At::Receiving, event) => self.refuse(event, now),
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
