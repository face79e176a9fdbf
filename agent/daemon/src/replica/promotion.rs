//! A guest fails over to this host: its replica becomes its disks.

use std::sync::Arc;

use throughline_cutover::{Failure, Generation, GuestSpec, OwnedGuest, Promotion, ReplicaId, Vni};
use tracing::{info, warn};

use super::point_name;
use crate::host::Host;

impl Host {
    /// Makes a replica, as it was at a point, the disks of a guest that this host does not have yet, and owns the guest as one that is stopped.
    /// From then on the replica is of no more use. To be called again if it failed.
    ///
    /// # Errors
    /// The store's, `DISK_POINT` among them: the guest is not this host's then, and has no other disks.
    pub async fn promote(
        self: &Arc<Self>,
        spec: &GuestSpec,
        generation: Generation,
        promotion: &Promotion,
        vnis: Vec<Vni>,
    ) -> Result<(), Failure> {
        let id = promotion.replica.clone();
        let kept = self.keepers.get(&id);
        if let Some(kept) = &kept {
            kept.testing.end().await;
        }
        // Its files are to be nobody's until they are the guest's.
        let _rests = match &kept {
            Some(kept) => Some(kept.rest(self).await?),
            None => {
                self.end_keeper(&id).await?;
                None
            }
        };
        let (guest, disks, replicas) = (spec.name.clone(), spec.disks.clone(), self.replicas.clone());
        let (replica, number) = (id.clone(), promotion.point);
        self.with_disks(move |store| {
            let Some(replicas) = &replicas else { return Ok(()) };
            store.promote(replicas, &replica, &guest, &disks, |name| is_point(&replica, name, number))
        })
        .await?;
        self.journal.own(&OwnedGuest { spec: spec.clone(), generation, vnis, stopped: true, asked: false })?;
        info!(guest = %spec.name, %generation, replica = %id, point = promotion.point, "fails over to this host");
        // There is no other any more that the guest could still go back to.
        if let Some(kept) = &kept {
            kept.has_points(kept.seen().0.into_iter().filter(|point| point.number == promotion.point).collect());
        }
        self.keepers.has_become(&id, promotion.point);
        let (guest, disks) = (spec.name.clone(), spec.disks.clone());
        if let Err(failure) = self.with_disks(move |store| store.forget_points(&guest, &disks)).await {
            warn!(guest = %spec.name, %failure, "its disks still have the points of the replica that they were, which take room");
        }
        Ok(())
    }
}

/// Whether a snapshot of that name is the replica's point of that number.
fn is_point(replica: &ReplicaId, name: &str, number: u64) -> bool {
    let point = name.parse().ok().and_then(|name| point_name::read(replica, &name));
    point.is_some_and(|point| point.number == number)
}
