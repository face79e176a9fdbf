//! Replicas of guests of this host: sent, each in its rhythm, for as long as they are wanted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use throughline_cutover::{Failure, GuestName, ReplicaId, Replication};
use throughline_hypervisor::Guest;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{Instrument as _, info, info_span, warn};

use super::{
    rhythm::Course,
    sending::send,
    turns::{Taken, Turn},
};
use crate::{host::Host, lock::lock, resident::hypervisor_failure};

/// Those that the controller wants sent from here.
#[derive(Debug, Default)]
pub struct Senders {
    by_id: Mutex<BTreeMap<ReplicaId, Arc<Sender>>>,
    /// Of every guest that was asked for: whatever is or was sent of it, there is one.
    turns: Mutex<BTreeMap<GuestName, Arc<Turn>>>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Sender {
    guest: GuestName,
    wanted: watch::Sender<Replication>,
    turn: Arc<Turn>,
    sent: Mutex<Sent>,
}

/// How it gets on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Bytes of the point under way that are over, and in all; 0: none is under way.
    pub(super) copied: u64,
    pub(super) total: u64,
    /// Why the last try failed.
    pub(super) failure: Option<Failure>,
}

impl Sender {
    pub(super) fn sent(&self) -> Sent {
        lock(&self.sent).clone()
    }

    /// The point under way has come so far.
    pub(super) fn comes_along(&self, copied: u64, total: u64) {
        let mut sent = lock(&self.sent);
        (sent.copied, sent.total) = (copied, total);
    }

    fn is_over(&self, failure: Option<Failure>) {
        *lock(&self.sent) = Sent { copied: 0, total: 0, failure };
    }
}

impl Senders {
    /// All of them, by their ids.
    pub(super) fn all(&self) -> Vec<(ReplicaId, Arc<Sender>)> {
        lock(&self.by_id).iter().map(|(id, sender)| (id.clone(), sender.clone())).collect()
    }

    /// Sends it as told from now on.
    pub(super) fn send(&self, host: &Arc<Host>, wanted: Replication) {
        let turn = self.turn(&wanted.guest);
        let mut all = lock(&self.by_id);
        if let Some(sender) = all.get(&wanted.id) {
            sender.wanted.send_if_modified(|before| std::mem::replace(before, wanted.clone()) != wanted);
            return;
        }
        let sender = Arc::new(Sender {
            guest: wanted.guest.clone(),
            wanted: watch::Sender::new(wanted.clone()),
            turn,
            sent: Mutex::default(),
        });
        let span = info_span!("replica", id = %wanted.id, guest = %wanted.guest, keeper = %wanted.keeper.host);
        tokio::spawn(go_on(host.clone(), wanted.id.clone(), sender.clone()).instrument(span));
        all.insert(wanted.id, sender);
    }

    /// None but these is sent any more.
    pub(super) fn retain(&self, host: &Arc<Host>, wanted: &[ReplicaId]) {
        let mut all = lock(&self.by_id);
        let gone: Vec<_> = all.keys().filter(|id| !wanted.contains(id)).cloned().collect();
        for (id, sender) in gone.into_iter().filter_map(|id| all.remove_entry(&id)) {
            // It may be waiting until its next point is due.
            sender.wanted.send_modify(|_| {});
            tokio::spawn(forget(host.clone(), id, sender));
        }
    }

    fn turn(&self, guest: &GuestName) -> Arc<Turn> {
        lock(&self.turns).entry(guest.clone()).or_default().clone()
    }

    fn has(&self, id: &ReplicaId, sender: &Arc<Sender>) -> bool {
        lock(&self.by_id).get(id).is_some_and(|now| Arc::ptr_eq(now, sender))
    }

    /// The turn with the disks of a guest of this host: no point of them is under way until it is dropped.
    pub async fn take_turn(&self, guest: &GuestName) -> Taken {
        self.turn(guest).take().await
    }
}

/// What it left in the guest's QEMU would be of no use to another; what another has there is not its.
async fn forget(host: Arc<Host>, id: ReplicaId, sender: Arc<Sender>) {
    let _turn = sender.turn.take().await;
    let Some(resident) = host.resident(&sender.guest).await else { return };
    let forgotten = async {
        match resident.vm.replica_begun().await? {
            Some(record) if record.replica.to_string() != id.as_str() => Ok(()),
            _ => resident.vm.forget_replica().await,
        }
    };
    if let Err(error) = forgotten.await {
        warn!(guest = %sender.guest, %error, "what a replica has left in its QEMU stays until there is another or it ends");
    }
}

/// Sends point after point until it is not wanted any more.
async fn go_on(host: Arc<Host>, id: ReplicaId, sender: Arc<Sender>) {
    let mut wanted = sender.wanted.subscribe();
    let mut course = Course::default();
    while host.senders.has(&id, &sender) {
        let replication = wanted.borrow_and_update().clone();
        tokio::select! {
            () = sleep_until(course.next(replication.rhythm, Instant::now())) => {}
            told = wanted.changed() => match told {
                Ok(()) => continue,
                Err(_) => return,
            },
        }
        if host.senders.has(&id, &sender) {
            once(&host, &replication, &sender, &mut course).await;
        }
    }
}

/// One try at a point.
async fn once(host: &Arc<Host>, replication: &Replication, sender: &Arc<Sender>, course: &mut Course) {
    let began = Instant::now();
    // Neither is a failure: it is another's turn, or the guest does not run here.
    let Some(_turn) = sender.turn.try_for_a_point() else { return course.is_idle(began) };
    if host.moves.concerns(&sender.guest) {
        return course.is_idle(began);
    }
    let resident = host.resident(&sender.guest).await.filter(|it| it.generation() >= replication.generation);
    let Some(resident) = resident else { return course.is_idle(began) };
    let sent = tokio::select! {
        sent = send(host, replication, &resident, sender) => sent,
        () = sender.turn.is_wanted() => {
            info!("a point is given up: the guest moves, or ends");
            give_up(&resident.vm).await;
            sender.is_over(None);
            return course.is_idle(Instant::now());
        }
    };
    let now = Instant::now();
    let failure = match sent {
        Ok(point) => {
            course.made(began, now);
            info!(point = point.number, took = ?began.elapsed(), "a point is at the replica");
            None
        }
        Err(failure) => {
            course.failed(now);
            warn!(%failure, "no point; it is tried again");
            give_up(&resident.vm).await;
            Some(failure)
        }
    };
    sender.is_over(failure);
    host.look_again.notify_one();
}

async fn give_up(vm: &Guest) {
    if let Err(error) = vm.abandon_point().await.map_err(hypervisor_failure) {
        warn!(%error, "a point that was given up is still in QEMU's hands; it is tried again");
    }
}
