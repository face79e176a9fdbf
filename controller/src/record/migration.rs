//! A migration and all that happened to it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use throughline_cutover::{
    Coordinator, CutoverReport, Failure, MigrationPlan, OperatorName, Phase, Progress, StopFirst,
    admission::MigrationRequest,
};

/// Most that is told of one migration without anything coming of it. A whole one has some twenty; an agent that says more and more
/// must not fill the record.
const MOST_TALK: u32 = 256;

/// What of a migration changes over time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Where it is.
    pub(crate) phase: Phase,
    /// Latest progress of memory.
    pub(crate) progress: Option<Progress>,
    /// What the cutover did so far.
    pub(crate) report: CutoverReport,
    /// Why it was aborted, or why settling is late.
    pub(crate) failure: Option<Failure>,
    /// When it ended, milliseconds since 1970; 0: not yet.
    pub(crate) ended_at_ms: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Happening {
    /// Counts from 1.
    pub(crate) sequence: u64,
    /// When, milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// For people; empty for mere progress.
    pub(crate) message: String,
    /// The migration after it.
    pub(crate) after: Snapshot,
}

/// A wish, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// What is asked for.
    pub(crate) request: MigrationRequest,
    /// By which operator; `None`: by somebody unproven.
    pub(crate) requested_by: Option<OperatorName>,
}

/// A migration, its coordinator included, so that it goes on after a restart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MigrationRecord {
    /// Grows with each migration: the order of lists.
    pub(crate) number: u64,
    /// As asked for.
    pub(crate) request: MigrationRequest,
    /// The operator who asked; `None`: somebody unproven, or before that was noted.
    #[serde(default)]
    pub(crate) requested_by: Option<OperatorName>,
    /// When it was accepted, milliseconds since 1970.
    pub(crate) created_at_ms: u64,
    /// When it ended, milliseconds since 1970; 0: not yet.
    pub(crate) ended_at_ms: u64,
    /// Decides what comes next.
    pub(crate) coordinator: Coordinator,
    /// Its guest ran and was stopped to be moved: it is started again when this is over.
    #[serde(default)]
    pub(crate) start_after: bool,
    /// What happened, in order. Of progress reports in a row only the last is kept.
    pub(crate) history: Vec<Happening>,
    sequence: u64,
    /// Happenings with words.
    #[serde(default)]
    told: u32,
}

impl MigrationRecord {
    /// A migration just admitted.
    pub(crate) fn new(number: u64, wish: Asked, plan: MigrationPlan, now: Duration) -> Self {
        let Asked { request, requested_by } = wish;
        Self {
            number,
            request,
            requested_by,
            created_at_ms: milliseconds(now),
            ended_at_ms: 0,
            coordinator: Coordinator::new(plan, now),
            start_after: false,
            history: Vec::new(),
            sequence: 0,
            told: 0,
        }
    }

    /// The same, of a guest that runs and is being stopped to be moved.
    pub(crate) fn after_stop(self, stop: StopFirst) -> Self {
        Self { coordinator: self.coordinator.after_its_stop(stop), start_after: true, ..self }
    }

    /// How its guest was stopped to be moved, if it was.
    pub(crate) fn stopped_first(&self) -> Option<StopFirst> {
        self.request.stop_first.filter(|_| self.start_after)
    }

    /// Its id.
    pub(crate) fn id(&self) -> &str {
        &self.plan().id
    }

    /// What both ends were told.
    pub(crate) fn plan(&self) -> &MigrationPlan {
        self.coordinator.plan()
    }

    /// Nothing can follow.
    pub(crate) fn has_ended(&self) -> bool {
        self.coordinator.phase().is_end()
    }

    /// The number of the last thing that happened.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// As it is now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            phase: self.coordinator.phase(),
            progress: self.coordinator.progress().copied(),
            report: self.coordinator.report(),
            failure: self.coordinator.failure().cloned(),
            ended_at_ms: self.ended_at_ms,
        }
    }

    /// Words of which nothing comes are kept no more.
    pub(crate) fn has_talked_enough(&self) -> bool {
        self.told >= MOST_TALK
    }

    /// Something worth telling happened; `phase` is where the migration was after it.
    pub(crate) fn happened(&mut self, phase: Phase, message: String, now: Duration) {
        if phase.is_end() {
            self.ended_at_ms = milliseconds(now);
        }
        self.told = self.told.saturating_add(1);
        let after = Snapshot { phase, ..self.snapshot() };
        self.push(message, after, now);
    }

    /// Memory got on.
    pub(crate) fn progressed(&mut self, now: Duration) {
        if self.history.last().is_some_and(|last| last.message.is_empty()) {
            self.history.pop();
        }
        self.push(String::new(), self.snapshot(), now);
    }

    /// What happened after `sequence`.
    pub(crate) fn since(&self, sequence: u64) -> &[Happening] {
        let first = self.history.partition_point(|happening| happening.sequence <= sequence);
        &self.history[first..]
    }

    fn push(&mut self, message: String, after: Snapshot, now: Duration) {
        self.sequence += 1;
        self.history.push(Happening { sequence: self.sequence, at_ms: milliseconds(now), message, after });
    }
}

/// Whole milliseconds.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
