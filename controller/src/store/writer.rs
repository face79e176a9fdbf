//! Commits in order, off the driver's task, so that a slow disk delays answers but never a decision.

use std::{sync::mpsc as blocking, thread};

use tokio::sync::mpsc;

use super::{Change, Store, StoreError};

/// Changes that belong together, numbered.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) changes: Vec<Change>,
}

/// What became durable: every batch up to this number.
pub(crate) type Outcome = Result<u64, StoreError>;

/// The way to the thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    batches: blocking::Sender<Batch>,
}

impl Writer {
    /// Starts the thread. It ends when the writer is dropped, all batches written, or at the first failure.
    pub(crate) fn start(store: impl Store) -> (Self, mpsc::UnboundedReceiver<Outcome>) {
        let (batches, queue) = blocking::channel();
        let (outcomes, receiver) = mpsc::unbounded_channel();
        thread::spawn(move || write(store, &queue, &outcomes));
        (Self { batches }, receiver)
    }

    /// Hands a batch over. A dead thread shows as the end of the outcomes.
    pub(crate) fn submit(&self, batch: Batch) {
        let _ = self.batches.send(batch);
    }
}

/// Whatever has queued up meanwhile goes into one commit.
fn write(mut store: impl Store, queue: &blocking::Receiver<Batch>, outcomes: &mpsc::UnboundedSender<Outcome>) {
    while let Ok(mut batch) = queue.recv() {
        while let Ok(next) = queue.try_recv() {
            batch.number = next.number;
            batch.changes.extend(next.changes);
        }
        let outcome = store.commit(&batch.changes).map(|()| batch.number);
        let failed = outcome.is_err();
        if outcomes.send(outcome).is_err() || failed {
            return;
        }
    }
}
