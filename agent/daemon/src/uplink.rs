//! The way up to the controller: news queue here while the stream is down and go out, in order, when it is back.

use std::sync::{Arc, Mutex};

use throughline_cutover::{Failure, Generation, Progress};
use throughline_wire::v1::{self, agent_message::Message};
use tokio::sync::mpsc;

use crate::lock::lock;

/// Sends news to the controller. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Uplink {
    queue: mpsc::UnboundedSender<Message>,
}

/// The other end, read by the link.
pub type UplinkQueue = mpsc::UnboundedReceiver<Message>;

impl Uplink {
    /// A way up and the queue it fills.
    pub fn new() -> (Self, UplinkQueue) {
        let (queue, receiver) = mpsc::unbounded_channel();
        (Self { queue }, receiver)
    }

    /// Sends one message. When nobody reads any more the agent is stopping, and the news is in the journal.
    pub fn send(&self, message: Message) {
        let _ = self.queue.send(message);
    }
}

/// News of one migration, from one end of it.
#[derive(Debug, Clone)]
pub struct MigrationNews {
    uplink: Uplink,
    migration_id: String,
    role: v1::Role,
    last: Arc<Mutex<Option<v1::MigrationUpdate>>>,
}

impl MigrationNews {
    /// News of `migration_id` as `role` sees it.
    pub fn new(uplink: Uplink, migration_id: String, role: v1::Role) -> Self {
        Self { uplink, migration_id, role, last: Arc::default() }
    }

    /// Sends a step and what has been counted so far.
    pub fn step(&self, step: v1::Step, report: v1::CutoverReport) {
        self.send(v1::MigrationUpdate { step: step.into(), report: Some(report), ..self.blank() });
    }

    /// Sends progress of memory.
    pub fn progress(&self, progress: Progress) {
        let step = v1::Step::Progress.into();
        self.send(v1::MigrationUpdate { step, progress: Some(progress.into()), ..self.blank() });
    }

    /// Sends that memory does not converge: the figures, and what is done about it.
    pub fn stalled(&self, figures: Failure, report: v1::CutoverReport) {
        let step = v1::Step::Stalled.into();
        self.send(v1::MigrationUpdate { step, failure: Some(figures.into()), report: Some(report), ..self.blank() });
    }

    /// Sends the commit.
    pub fn committed(&self, generation: Generation, report: v1::CutoverReport) {
        let step = v1::Step::Committed.into();
        self.send(v1::MigrationUpdate { step, generation: generation.0, report: Some(report), ..self.blank() });
    }

    /// Sends that this end has undone its part.
    pub fn aborted(&self, failure: Failure, report: v1::CutoverReport) {
        self.send(self.undone(failure, report));
    }

    /// Sends that nothing of the move is left here, and what could not be kept.
    pub fn settled_less(&self, lost: Failure) {
        let step = v1::Step::Settled.into();
        self.send(v1::MigrationUpdate { step, failure: Some(lost.into()), ..self.blank() });
    }

    /// Will say, with [`MigrationNews::repeat`], that this end has settled. Not before the move has left this host's table:
    /// whoever hears it may begin the next.
    pub fn will_say_settled(&self, report: v1::CutoverReport) {
        let step = v1::Step::Settled.into();
        *lock(&self.last) = Some(v1::MigrationUpdate { step, report: Some(report), ..self.blank() });
    }

    /// Will say, as [`MigrationNews::will_say_settled`], that this end has undone its part.
    pub fn will_say_aborted(&self, failure: Failure, report: v1::CutoverReport) {
        *lock(&self.last) = Some(self.undone(failure, report));
    }

    fn undone(&self, failure: Failure, report: v1::CutoverReport) -> v1::MigrationUpdate {
        let step = v1::Step::Aborted.into();
        v1::MigrationUpdate { step, failure: Some(failure.into()), report: Some(report), ..self.blank() }
    }

    fn blank(&self) -> v1::MigrationUpdate {
        let mut update = v1::MigrationUpdate { migration_id: self.migration_id.clone(), ..Default::default() };
        update.set_role(self.role);
        update
    }

    /// Sends the last step again: the one before a stream broke may not have arrived.
    pub fn repeat(&self) {
        let last = lock(&self.last).clone();
        if let Some(update) = last {
            self.uplink.send(Message::Migration(update));
        }
    }

    fn send(&self, update: v1::MigrationUpdate) {
        if update.step() != v1::Step::Progress {
            *lock(&self.last) = Some(update.clone());
        }
        self.uplink.send(Message::Migration(update));
    }
}
