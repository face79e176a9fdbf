//! The audit log: who did what, when, to which object, from where, with what outcome. One JSON object a line, in a file that
//! is only appended to.
//!
//! A change is on disk here before its caller has the answer; while it cannot be written, nothing is changed any more.
//! Refusals are written without anybody waiting, and one that repeats within a minute is counted, not written again: a caller
//! who is turned away a thousand times must not fill the disk.
//!
//! Names in it are of checked types, or they are left out. So nobody can write a line of their own.

mod entry;
mod file;
mod repeats;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use entry::{Line, Who};
pub(crate) use entry::{Object, Outcome};
use file::Order;
use repeats::Repeats;
use throughline_cutover::{Failure, GuestName, HostName, OperatorName};
use throughline_identity::{Caller, Identity};
use tokio::{sync::oneshot, time::Instant};

use crate::{guard::Deed, store::StoreError};

/// Who calls, and from where.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    who: Who,
    from: Option<SocketAddr>,
}

impl Visitor {
    /// `None`: the connection does not say.
    pub(crate) fn new(caller: Option<&Caller>, from: Option<SocketAddr>) -> Self {
        Self { who: Who::of(caller), from }
    }
}

/// The way to the log. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    orders: mpsc::Sender<Order>,
    kept: Arc<AtomicBool>,
    repeats: Arc<Mutex<Repeats>>,
}

impl Audit {
    /// Opens the log in the state directory.
    ///
    /// # Errors
    /// When it cannot be appended to.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let kept = Arc::new(AtomicBool::new(true));
        let orders = file::start(state_dir, kept.clone())?;
        Ok(Self { orders, kept, repeats: Arc::default() })
    }

    /// All that was to be written is.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    /// A change begins. One that nobody waits for any more is written all the same.
    pub(crate) fn begin(&self, visitor: Visitor, did: &'static str, deed: Deed) -> Entry {
        Entry { audit: self.clone(), open: Some((visitor, did, deed)) }
    }

    /// Somebody was turned away.
    pub(crate) fn refused(&self, visitor: &Visitor, did: &'static str, reason: &str) {
        let line = Line::new(visitor.who.clone(), visitor.from, did, Object::default(), Outcome::refused(reason));
        self.write_unless_repeated(line);
    }

    /// A migration has ended.
    pub(crate) fn ended(
        &self,
        asked_by: Option<&OperatorName>,
        object: Object,
        failure: Option<&Failure>,
        moved: bool,
    ) {
        let who = asked_by.map_or(Who::Unproven, |name| Who::Known(Identity::Operator(name.clone())));
        let outcome = Outcome::ended(moved, failure.map(|failure| failure.reason.as_str()));
        self.post(&Line::new(who, None, "Migration", object, outcome));
    }

    /// A host says that it has a guest that was never given to it.
    pub(crate) fn doubted(&self, host: &HostName, guest: &GuestName) {
        let who = Who::Known(Identity::Agent(host.clone()));
        let object = Object { host: Some(host.clone()), ..Object::guest(guest) };
        self.write_unless_repeated(Line::new(who, None, "Claim", object, Outcome::refused("CLAIM_NOT_BELIEVED")));
    }

    /// Everything handed in so far is written, or cannot be.
    pub(crate) async fn flush(&self) {
        self.lock().drain().iter().for_each(|line| self.post(line));
        let (done, written) = oneshot::channel();
        let _ = self.orders.send(Order { text: String::new(), done: Some(done) });
        let _ = written.await;
    }

    fn write_unless_repeated(&self, line: Line) {
        let due = self.lock().take(line, Instant::now());
        due.iter().for_each(|line| self.post(line));
    }

    fn post(&self, line: &Line) {
        let _ = self.orders.send(Order { text: line.text(), done: None });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Repeats> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change whose outcome is not known yet.
#[derive(Debug)]
pub(crate) struct Entry {
    audit: Audit,
    open: Option<(Visitor, &'static str, Deed)>,
}

impl Entry {
    /// Writes the outcome, and waits until it is on disk. If it cannot be written, it has happened all the same: the daemon's
    /// log has it, and [`Audit::is_kept`] says so.
    pub(crate) async fn end(mut self, outcome: Outcome) {
        let Some(line) = self.line(outcome) else { return };
        let (done, written) = oneshot::channel();
        let _ = self.audit.orders.send(Order { text: line.text(), done: Some(done) });
        // The thread that writes answers in any case, or is gone with the process.
        let _ = written.await;
    }

    /// As a refusal that may repeat.
    pub(crate) fn repeat(mut self, outcome: Outcome) {
        if let Some(line) = self.line(outcome) {
            self.audit.write_unless_repeated(line);
        }
    }

    fn line(&mut self, outcome: Outcome) -> Option<Line> {
        let (visitor, did, deed) = self.open.take()?;
        Some(Line::new(visitor.who, visitor.from, did, deed.object(), outcome))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(line) = self.line(Outcome::Unanswered) {
            self.audit.post(&line);
        }
    }
}
