//! The migrations this host has a part in, by id, and how to reach them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use throughline_cutover::{DestinationEvent, Failure, GuestName, MigrationPlan, SourceEvent, fence};
use throughline_wire::v1::{DiskHere, FromDestination};
use tokio::sync::mpsc;

use crate::{cold::Incoming, host::Host, journal::Promise, lock::lock, slot::Slot, uplink::MigrationNews};

/// Answers to the source go in here.
pub type ToSource = mpsc::UnboundedSender<Result<FromDestination, tonic::Status>>;

/// A source's call.
#[derive(Debug)]
pub struct SourceCall {
    /// The way back.
    pub answers: ToSource,
    /// What it says of the guest's disks.
    pub disks: Vec<DiskHere>,
}

/// A way to reach one migration.
#[derive(Debug, Clone)]
pub enum Move {
    /// This host gives the guest up.
    Source {
        /// Its plan.
        plan: Arc<MigrationPlan>,
        /// Its events.
        events: mpsc::UnboundedSender<SourceEvent>,
        /// What the controller hears of it.
        news: MigrationNews,
    },
    /// This host takes the guest.
    Destination {
        /// Its plan.
        plan: Arc<MigrationPlan>,
        /// Its events.
        events: mpsc::UnboundedSender<DestinationEvent>,
        /// Where the source's call is left.
        caller: Slot<SourceCall>,
        /// The source has called: its token is good for no other call.
        called: Arc<AtomicBool>,
        /// Where the disks of a stopped guest come to.
        incoming: Arc<Incoming>,
        /// What the controller hears of it.
        news: MigrationNews,
    },
}

impl Move {
    /// Its plan.
    pub fn plan(&self) -> &Arc<MigrationPlan> {
        match self {
            Self::Source { plan, .. } | Self::Destination { plan, .. } => plan,
        }
    }

    /// Undo, if that is still possible. A move that has ended does not hear it.
    pub fn abort(&self, failure: Failure) {
        match self {
            Self::Source { events, .. } => drop(events.send(SourceEvent::Abort(failure))),
            Self::Destination { events, .. } => drop(events.send(DestinationEvent::Abort(failure))),
        }
    }

    /// Sends its last step again.
    pub fn repeat_news(&self) {
        match self {
            Self::Source { news, .. } | Self::Destination { news, .. } => news.repeat(),
        }
    }

    /// An operator's word, for a source that waits for its destination's.
    pub fn resolve(&self, guest_stays: bool) {
        if let Self::Source { events, .. } = self {
            let _ = events.send(SourceEvent::Resolved { guest_stays });
        }
    }

    /// Every peer has been told.
    pub fn settle(&self) {
        match self {
            Self::Source { events, .. } => drop(events.send(SourceEvent::SettleOrdered)),
            Self::Destination { events, .. } => drop(events.send(DestinationEvent::SettleOrdered)),
        }
    }
}

/// Moves under way.
#[derive(Debug, Default)]
pub struct Moves {
    by_id: std::sync::Mutex<HashMap<String, Move>>,
    ended: AtomicU64,
}

impl Moves {
    /// The move of that id.
    pub fn get(&self, id: &str) -> Option<Move> {
        self.lock().get(id).cloned()
    }

    /// True if that guest is being moved, either way.
    pub fn concerns(&self, guest: &GuestName) -> bool {
        self.lock().values().any(|one| one.plan().guest.name == *guest)
    }

    /// Enters a move. False: one of that id, or of that guest, is under way already.
    pub fn enter(&self, one: Move) -> bool {
        let mut by_id = self.lock();
        let plan = one.plan().clone();
        if by_id.contains_key(&plan.id) || by_id.values().any(|other| other.plan().guest.name == plan.guest.name) {
            return false;
        }
        by_id.insert(plan.id.clone(), one);
        true
    }

    /// A move has ended.
    pub fn leave(&self, id: &str) {
        self.ended.fetch_add(1, Ordering::AcqRel);
        self.lock().remove(id);
    }

    /// A move did not begin.
    pub fn withdraw(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Sends every move's last step again.
    pub fn repeat_news(&self) {
        self.lock().values().for_each(Move::repeat_news);
    }

    /// How many have ended here.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Move>> {
        lock(&self.by_id)
    }
}

impl Host {
    /// Binds this host to take part in a move, durably: once for each migration.
    ///
    /// # Errors
    /// `ALREADY_DECIDED`, `STALE_GENERATION` when this host knows the guest at a newer one, or the journal's failure; nothing was promised then.
    pub async fn take_part(self: &Arc<Self>, plan: &Arc<MigrationPlan>, promise: Promise) -> Result<(), Failure> {
        let (host, plan) = (self.clone(), plan.clone());
        // The disk may take its time, and others wait for this thread.
        let written = tokio::task::spawn_blocking(move || {
            if let Some(newest) = host.journal.newest(&plan.guest.name)?
                && newest > plan.generation
            {
                return Err(fence::stale_generation(&plan.guest.name, plan.generation, newest));
            }
            if host.journal.begin(&plan.id, Some(&plan), promise)?.is_some() {
                let message = "this host has taken part in this migration before; begin a new one";
                return Err(Failure::new("ALREADY_DECIDED", message));
            }
            Ok(())
        });
        written.await.unwrap_or_else(|panicked| Err(Failure::new("JOURNAL", panicked.to_string())))
    }
}

/// Why a guest under way is not moved a second time.
pub fn already_migrating(guest: &GuestName) -> Failure {
    Failure::new("ALREADY_MIGRATING", format!("guest {guest} is being moved already"))
}
