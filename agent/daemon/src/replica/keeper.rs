//! Replicas that this host keeps: a QEMU each, and what is known of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use throughline_cutover::{Failure, GuestName, Keeping, Point, Promotion, ReplicaId};
use throughline_hypervisor::{DiskFd, Guest, Keeper, RunDir};
use tokio::sync::{Mutex as Turn, MutexGuard, Notify};
use tracing::info;

use super::{point_name, testing::Testing};
use crate::{
    disks::{DiskError, Replicas, as_kept},
    host::Host,
    lock::lock,
    resident::hypervisor_failure,
};

/// Those that the controller wants kept here.
#[derive(Debug, Default)]
pub struct Keepers {
    kept: Mutex<BTreeMap<ReplicaId, Arc<Kept>>>,
    /// What became of those that were promoted since this agent began: the number of the point that its guest has begun from.
    became: Mutex<BTreeMap<ReplicaId, u64>>,
}

/// One of them.
#[derive(Debug)]
pub struct Kept {
    id: ReplicaId,
    wanted: Mutex<Keeping>,
    seen: Mutex<Seen>,
    /// Its QEMU, if this agent has it, for one at a time.
    pub(super) qemu: Turn<Option<Guest>>,
    /// For whoever makes or deletes points, or needs them to stay as they are for a moment. Taken after [`Kept::qemu`], if both are.
    pub(super) points_change: Turn<()>,
    pub(super) testing: Testing,
    /// Rung when whoever sends must let go: a later call has come, or nobody may send any more.
    pub(super) superseded: Notify,
}

/// What there is of it.
#[derive(Debug, Clone, Default)]
struct Seen {
    points: Vec<Point>,
    failure: Option<Failure>,
}

impl Keepers {
    /// That replica, if it is wanted here.
    pub fn get(&self, id: &ReplicaId) -> Option<Arc<Kept>> {
        lock(&self.kept).get(id).cloned()
    }

    /// A guest of this host has begun from that point.
    pub(super) fn has_become(&self, id: &ReplicaId, point: u64) {
        lock(&self.became).insert(id.clone(), point);
    }

    /// That a guest which is this host's already is so by that very promotion, as far as this agent knows.
    ///
    /// # Errors
    /// `PROMOTED_BEFORE`.
    pub fn check(&self, promotion: &Promotion) -> Result<(), Failure> {
        match lock(&self.became).get(&promotion.replica) {
            Some(point) if *point != promotion.point => {
                let message = format!(
                    "this host has begun the guest from point {point} before it was promoted by point {}, which is gone; promote it \
                     by point {point} again to go on with it",
                    promotion.point
                );
                Err(Failure::new("PROMOTED_BEFORE", message))
            }
            _ => Ok(()),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Kept>> {
        lock(&self.kept).values().cloned().collect()
    }

    /// It is to be kept as told; gives what there is of it.
    pub(super) fn keep(&self, keeping: Keeping) -> Arc<Kept> {
        let mut all = lock(&self.kept);
        let kept = all.entry(keeping.id.clone()).or_insert_with(|| Arc::new(Kept::new(keeping.clone())));
        kept.is_told(keeping);
        kept.clone()
    }

    /// It is not wanted here, or is to go: nobody may send.
    pub(super) fn forget(&self, id: &ReplicaId) -> Option<Arc<Kept>> {
        let kept = lock(&self.kept).remove(id)?;
        kept.superseded.notify_waiters();
        Some(kept)
    }
}

impl Kept {
    fn new(wanted: Keeping) -> Self {
        Self {
            id: wanted.id.clone(),
            wanted: Mutex::new(wanted),
            seen: Mutex::default(),
            qemu: Turn::default(),
            points_change: Turn::default(),
            testing: Testing::default(),
            superseded: Notify::new(),
        }
    }

    fn is_told(&self, wanted: Keeping) {
        let sender = wanted.source.clone();
        let before = std::mem::replace(&mut *lock(&self.wanted), wanted);
        if before.source != sender {
            self.superseded.notify_waiters();
        }
    }

    /// Which it is.
    pub fn id(&self) -> &ReplicaId {
        &self.id
    }

    /// As it is to be kept.
    pub fn wanted(&self) -> Keeping {
        lock(&self.wanted).clone()
    }

    /// Points that are there, oldest first, as far as this agent has seen; and why the last one could not be made.
    pub(super) fn seen(&self) -> (Vec<Point>, Option<Failure>) {
        let Seen { points, failure } = lock(&self.seen).clone();
        (points, failure)
    }

    pub(super) fn has_points(&self, points: Vec<Point>) {
        *lock(&self.seen) = Seen { points, failure: None };
    }

    pub(super) fn failed(&self, failure: Failure) {
        lock(&self.seen).failure = Some(failure);
    }

    /// Whether there is somebody who may send.
    pub(super) fn is_open(&self, host: &Host) -> bool {
        let is_wanted = host.keepers.get(&self.id).is_some_and(|now| std::ptr::eq(Arc::as_ptr(&now), self));
        is_wanted && lock(&self.wanted).source.is_some()
    }

    /// Its QEMU: the one that runs, or one that is started over its files, blank ones if there are none.
    ///
    /// # Errors
    /// The store's and QEMU's; `REPLICA_PROMOTED` if nobody may send: its files are about to be another's.
    pub(super) async fn running(&self, host: &Host, qemu: &mut Option<Guest>) -> Result<Guest, Failure> {
        if !self.is_open(host) {
            return Err(Failure::new("REPLICA_PROMOTED", "the replica is being promoted or removed; nobody may send"));
        }
        if let Some(vm) = &*qemu
            && vm.run_state().await.is_ok()
        {
            return Ok(vm.clone());
        }
        let _changing = self.points_change.lock().await;
        let vm = match host.find_keeper(&self.id).await? {
            Some(vm) => vm,
            None => host.start_keeper(&self.wanted()).await?,
        };
        self.has_points(self.points_of(&vm).await?);
        Ok(qemu.insert(vm).clone())
    }

    /// Looks what points there are: by its QEMU, or in its files if nobody may send. Nothing is made if there is nothing.
    ///
    /// # Errors
    /// The store's and QEMU's.
    pub(super) async fn look(&self, host: &Host) -> Result<(), Failure> {
        let mut qemu = self.qemu.lock().await;
        let id = self.id.clone();
        if !host.with_replicas(move |replicas| Ok(replicas.ids()?.contains(&id))).await? {
            return Ok(());
        }
        if self.is_open(host) {
            return self.running(host, &mut qemu).await.map(drop);
        }
        host.end_keeper(&self.id).await?;
        let (id, spec, replicas) = (self.id.clone(), self.wanted().spec, host.replicas.clone());
        let names = host.with_disks(move |store| match &replicas {
            Some(replicas) => store.points_left(replicas, &id, &spec.name, &spec.disks),
            None => Ok(Vec::new()),
        });
        let names = names.await?;
        let read = |name: &String| point_name::read(&self.id, &name.parse().ok()?);
        let mut points: Vec<_> = names.iter().filter_map(read).collect();
        points.sort_by_key(|point| point.number);
        self.has_points(points);
        Ok(())
    }

    /// What its QEMU says that there is.
    pub(super) async fn points_of(&self, vm: &Guest) -> Result<Vec<Point>, Failure> {
        let points = vm.points().await.map_err(hypervisor_failure)?;
        let mut points: Vec<_> = points.iter().filter_map(|it| point_name::read(&self.id, &it.name)).collect();
        points.sort_by_key(|point| point.number);
        Ok(points)
    }

    /// Ends its QEMU, if one runs. Whoever sends has let go then, and no other is started until what is given is dropped.
    ///
    /// # Errors
    /// QEMU's.
    pub(super) async fn rest(&self, host: &Host) -> Result<MutexGuard<'_, Option<Guest>>, Failure> {
        self.superseded.notify_waiters();
        let mut qemu = self.qemu.lock().await;
        match qemu.take() {
            Some(vm) => drop(vm.quit().await.map_err(hypervisor_failure)?),
            None => host.end_keeper(&self.id).await?,
        }
        Ok(qemu)
    }
}

impl Host {
    /// Does something with the replicas that this host keeps.
    ///
    /// # Errors
    /// `DISKS_NOT_KEPT` on a host that runs no guests; else those of `job`.
    pub(super) async fn with_replicas<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Replicas) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, Failure> {
        let Some(replicas) = self.replicas.clone() else {
            let message = format!("{} runs no guests and keeps no replicas", self.name());
            return Err(Failure::new("DISKS_NOT_KEPT", message));
        };
        let done = tokio::task::spawn_blocking(move || job(&replicas)).await;
        done.map_err(|panicked| Failure::new("DISK_STORE", panicked.to_string()))?.map_err(Failure::from)
    }

    /// Beside guests', so that no two QEMUs have one user; no guest has such a name.
    fn keeper_dir(&self, id: &ReplicaId) -> RunDir {
        RunDir::new(self.config.state_dir.join("guests").join(format!(".{id}")))
    }

    async fn find_keeper(&self, id: &ReplicaId) -> Result<Option<Guest>, Failure> {
        let found = Guest::adopt(keeper_name(id), self.keeper_dir(id), &self.confinement).await;
        found.map_err(hypervisor_failure)
    }

    async fn start_keeper(&self, wanted: &Keeping) -> Result<Guest, Failure> {
        let (id, disks) = (wanted.id.clone(), wanted.spec.disks.clone());
        let number = {
            let id = id.clone();
            move |name: &str| Some(point_name::read(&id, &name.parse().ok()?)?.number)
        };
        let files = self.with_replicas(move |replicas| replicas.open(&id, &disks, number)).await?;
        let disks = as_kept(&wanted.spec.disks).into_iter().zip(files).map(|(disk, image)| DiskFd {
            name: disk.name,
            format: disk.format,
            bus: disk.bus,
            image: image.into(),
            below: None,
        });
        let (name, run_dir) = (keeper_name(&wanted.id), self.keeper_dir(&wanted.id));
        let keeper = Keeper { name, run_dir, disks: disks.collect() };
        let vm = Guest::keep(keeper, &self.confinement).await.map_err(hypervisor_failure)?;
        info!(replica = %wanted.id, guest = %wanted.spec.name, pid = vm.pid(), "a replica is kept");
        Ok(vm)
    }

    /// Ends the QEMU that keeps a replica, if one runs.
    ///
    /// # Errors
    /// QEMU's.
    pub(super) async fn end_keeper(&self, id: &ReplicaId) -> Result<(), Failure> {
        match self.find_keeper(id).await? {
            Some(vm) => vm.quit().await.map(drop).map_err(hypervisor_failure),
            None => Ok(()),
        }
    }
}

/// What its QEMU calls itself.
fn keeper_name(id: &ReplicaId) -> GuestName {
    let name = format!("replica-{id}");
    name.parse().or_else(|_| id.as_str().parse()).expect("an id is a name")
}
