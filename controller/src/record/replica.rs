//! Replicas on record, and guests that became one.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use throughline_cutover::{
    DiskFate, DiskFormat, DiskPlace, GuestName, HostName, Promotion, ReplicaId, ReplicaName, ReplicaToken, Terms,
    admission::Failover,
};

use super::{GuestRecord, Record};
use crate::store::Table;

/// A replica. What is there of it only its hosts know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaRecord {
    /// Drawn when it was made.
    pub(crate) id: ReplicaId,
    /// Of which guest, and where.
    pub(crate) name: ReplicaName,
    /// Lets the guest's host in where it is kept.
    pub(crate) token: ReplicaToken,
    /// How often, how many, how fast.
    pub(crate) terms: Terms,
}

/// A promotion that the guest's new host has not been seen to have done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// What its disks are made from.
    pub(crate) promotion: Promotion,
    /// Hosts that are to have ended their copies before.
    pub(crate) after: BTreeSet<HostName>,
}

impl GuestRecord {
    /// Its host may be told of it: nobody else that can be asked has a copy.
    pub(crate) fn is_due(&self) -> bool {
        self.promotion.as_ref().is_none_or(|pending| pending.after.is_empty())
    }

    /// Whatever and wherever they were: a replica is kept as qcow2 in its host's directory, and begins as no image.
    fn take_disks_of_a_replica(&mut self) {
        for disk in &mut self.spec.disks {
            (disk.format, disk.image, disk.place, disk.over) =
                (DiskFormat::Qcow2, String::new(), DiskPlace::Directory, false);
        }
    }
}

impl Record {
    /// Adds a replica.
    pub(crate) fn put_replica(&mut self, replica: ReplicaRecord) {
        self.put(Table::Replicas, &replica.name, &replica);
        self.replicas.insert(replica.name.clone(), replica);
    }

    /// Forgets a replica; its host is to delete what there is of it.
    pub(crate) fn end_replica(&mut self, name: &ReplicaName) {
        if let Some(replica) = self.forget_replica(name) {
            self.remove_kept(name.host.clone(), replica.id);
        }
    }

    /// Forgets a replica, and leaves what there is of it.
    pub(crate) fn forget_replica(&mut self, name: &ReplicaName) -> Option<ReplicaRecord> {
        let replica = self.replicas.remove(name)?;
        self.remove(Table::Replicas, name);
        Some(replica)
    }

    /// A guest becomes its replica's host's, its disks those of a point. Whoever may have it is to end it, and to keep its disks.
    pub(crate) fn promote(&mut self, replica: &ReplicaRecord, failover: Failover) {
        let ReplicaName { guest: name, host } = &replica.name;
        let Some(GuestRecord { host: before, generation: held, .. }) = self.guests.get(name).cloned() else { return };
        let generation = self.new_generation();
        if before != *host {
            self.end_guest(before.clone(), name.clone(), held, Some(DiskFate::Keep));
        }
        let promotion = Promotion { replica: replica.id.clone(), point: failover.point };
        self.change_guest(name, |guest| {
            guest.take_disks_of_a_replica();
            guest.promoted_from = if before == *host { guest.promoted_from.take() } else { Some(before) };
            (guest.host, guest.generation, guest.started) = (host.clone(), generation, false);
            guest.promotion = Some(Pending { promotion, after: failover.after });
        });
    }

    /// A guest's host has been seen to have it: what it was promoted from has served. `true`: it was not seen before.
    pub(crate) fn took(&mut self, host: &HostName, name: &GuestName) -> bool {
        let news = self.guests.get(name).is_some_and(|guest| guest.host == *host && !guest.started);
        if news {
            self.change_guest(name, |guest| (guest.started, guest.promotion) = (true, None));
        }
        news
    }

    /// Promotions that waited for copies that have been ended wait no more.
    pub(super) fn release_promotions(&mut self) {
        let pending = self.guests.values().filter(|guest| !guest.is_due());
        for name in pending.map(|guest| guest.spec.name.clone()).collect::<Vec<_>>() {
            let still: BTreeSet<_> = self.ending(&name).cloned().collect();
            self.change_guest(&name, |guest| {
                if let Some(pending) = &mut guest.promotion {
                    pending.after.retain(|host| still.contains(host));
                }
            });
        }
    }
}
