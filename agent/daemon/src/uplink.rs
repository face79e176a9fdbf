//! The way up to the controller: news queue here while the stream is down and go out, in order, when it is back.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use throughline_cutover::{Failure, Generation, Progress};
use throughline_wire::v1::{self, agent_message::Message};
use tokio::sync::Notify;

use crate::lock::lock;

/// Sends news to the controller. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Uplink(Arc<Waiting>);

/// The other end, read by the link.
#[derive(Debug)]
pub struct UplinkQueue(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    messages: Mutex<VecDeque<Message>>,
    more: Notify,
}

impl Uplink {
    /// A way up and the queue it fills.
    pub fn new() -> (Self, UplinkQueue) {
        let waiting = Arc::<Waiting>::default();
        (Self(waiting.clone()), UplinkQueue(waiting))
    }

    /// Sends one message. What it makes old goes: the controller may be away for days, and guests and moves go on meanwhile.
    pub fn send(&self, message: Message) {
        let mut messages = lock(&self.0.messages);
        messages.retain(|earlier| !replaces(&message, earlier));
        messages.push_back(message);
        self.0.more.notify_one();
    }
}

impl UplinkQueue {
    /// The next message, when there is one. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = lock(&self.0.messages).pop_front() {
                return Some(message);
            }
            self.0.more.notified().await;
        }
    }
}

/// Whether nobody needs `earlier` any more once there is `later`.
fn replaces(later: &Message, earlier: &Message) -> bool {
    match (later, earlier) {
        (Message::Observed(_), Message::Observed(_)) => true,
        (Message::Migration(later), Message::Migration(earlier)) => {
            earlier.step() == v1::Step::Progress
                && (&later.migration_id, later.role) == (&earlier.migration_id, earlier.role)
        }
        _ => false,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn news(uplink: &Uplink, id: &str) -> MigrationNews {
        MigrationNews::new(uplink.clone(), id.to_owned(), v1::Role::Source)
    }

    #[tokio::test]
    async fn what_waits_for_the_controller_does_not_grow_with_time() {
        let (uplink, mut queue) = Uplink::new();
        let (one, two) = (news(&uplink, "m-1"), news(&uplink, "m-2"));
        one.step(v1::Step::Precopy, v1::CutoverReport::default());
        for revision in 0..1000 {
            uplink.send(Message::Observed(v1::ObservedState { revision, ..Default::default() }));
            one.progress(Progress { transferred: revision, ..Progress::default() });
            two.progress(Progress::default());
        }
        one.step(v1::Step::Armed, v1::CutoverReport::default());
        let mut came = Vec::new();
        for _ in 0..4 {
            came.push(match queue.recv().await.unwrap() {
                Message::Observed(observed) => format!("observed {}", observed.revision),
                Message::Migration(update) => format!("{} {:?}", update.migration_id, update.step()),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(came, ["m-1 Precopy", "observed 999", "m-2 Progress", "m-1 Armed"]);
        let more = tokio::time::timeout(std::time::Duration::from_millis(10), queue.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }
}
