//! What hosts are still to be rid of. Nothing goes from a host because it is not named: an old copy of the record names less
//! than there is. It goes because it is named here, until the host has said that it is gone.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use throughline_cutover::{DiskFate, Generation, GuestName, HostName, PortId, ReplicaId, Vni};

use super::Record;
use crate::store::{Change, Table};

/// What is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// A guest, held at this generation or a lower one.
    Guest {
        /// Its name.
        name: GuestName,
        /// The highest at which it is to end.
        generation: Generation,
        /// What becomes of its disks.
        #[serde(default)]
        disks: DiskFate,
    },
    /// An endpoint.
    Endpoint {
        /// Its port.
        port: PortId,
    },
    /// A network.
    Network {
        /// Its VNI.
        vni: Vni,
    },
    /// A replica that is kept there.
    Replica {
        /// Which.
        id: ReplicaId,
    },
}

/// Something that is to go from some hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removal {
    /// What.
    pub(crate) what: What,
    /// Hosts that have not said that it is gone.
    pub(crate) hosts: BTreeSet<HostName>,
    /// The record's revision from which on it is ordered.
    revision: u64,
}

impl Removal {
    pub(super) fn key(&self) -> String {
        match &self.what {
            What::Guest { name, .. } => {
                let hosts: Vec<_> = self.hosts.iter().map(HostName::as_str).collect();
                format!("guest/{name}/{}", hosts.join(","))
            }
            What::Endpoint { port } => format!("endpoint/{port}"),
            What::Network { vni } => format!("network/{vni}"),
            What::Replica { id } => format!("replica/{id}"),
        }
    }
}

/// What a host says it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report<'a> {
    /// Guests, with their generations.
    pub(crate) guests: &'a [(GuestName, Generation)],
    /// Replicas of which there is anything.
    pub(crate) replicas: &'a [ReplicaId],
    /// The revision of the desired state it answers; 0: it greets, and answers none.
    pub(crate) revision: u64,
    /// All of that was done.
    pub(crate) all_done: bool,
}

impl Record {
    /// What `host` is to be rid of.
    pub(crate) fn removals(&self, host: &HostName) -> impl Iterator<Item = &What> {
        self.removals.values().filter(move |it| it.hosts.contains(host)).map(|it| &it.what)
    }

    /// The highest generation at which `host` is to end a guest.
    pub(crate) fn ended(&self, host: &HostName, guest: &GuestName) -> Option<Generation> {
        self.removals(host).find_map(|what| match what {
            What::Guest { name, generation, .. } if name == guest => Some(*generation),
            _ => None,
        })
    }

    /// Hosts that are to end a guest.
    pub(crate) fn ending<'a>(&'a self, guest: &'a GuestName) -> impl Iterator<Item = &'a HostName> {
        let ends = move |it: &&Removal| matches!(&it.what, What::Guest { name, .. } if name == guest);
        self.removals.values().filter(ends).flat_map(|it| &it.hosts)
    }

    /// `host` is to end a guest held at `generation` or below. `fate`: what becomes of its disks; `None`: as was ordered before,
    /// else they stay.
    pub(crate) fn end_guest(
        &mut self,
        host: HostName,
        name: GuestName,
        generation: Generation,
        fate: Option<DiskFate>,
    ) {
        let (ended, ordered) = (self.ended(&host, &name), self.ordered_fate(&host, &name));
        let disks = fate.or(ordered).unwrap_or_default();
        if ended.is_none_or(|ended| ended < generation) {
            self.order(What::Guest { name, generation, disks }, BTreeSet::from([host]));
        }
    }

    /// Whether `host` is still to delete the disks of a guest of that name.
    pub(crate) fn deletes_disks(&self, host: &HostName, guest: &GuestName) -> bool {
        self.ordered_fate(host, guest) == Some(DiskFate::Delete)
    }

    fn ordered_fate(&self, host: &HostName, guest: &GuestName) -> Option<DiskFate> {
        self.removals(host).find_map(|what| match what {
            What::Guest { name, disks, .. } if name == guest => Some(*disks),
            _ => None,
        })
    }

    /// An endpoint is to go from its host.
    pub(crate) fn end_endpoint(&mut self, host: HostName, port: PortId) {
        self.order(What::Endpoint { port }, BTreeSet::from([host]));
    }

    /// What a host keeps of a replica is to go.
    pub(super) fn remove_kept(&mut self, host: HostName, id: ReplicaId) {
        self.order(What::Replica { id }, BTreeSet::from([host]));
    }

    /// A network is to go from every host.
    pub(crate) fn end_network(&mut self, vni: Vni) {
        let hosts = self.hosts().keys().cloned().collect();
        self.order(What::Network { vni }, hosts);
    }

    /// A network is there again.
    pub(crate) fn revive_network(&mut self, vni: Vni) {
        self.settle_removals(|it| it.what == What::Network { vni }, None);
    }

    /// A host is no more.
    pub(crate) fn forget_removals_of(&mut self, host: &HostName) {
        self.settle_removals(|it| it.hosts.contains(host), Some(host));
    }

    /// Takes note of what is gone from a host by its own word.
    pub(crate) fn confirm_removals(&mut self, host: &HostName, report: Report<'_>) {
        let held = |guest: &GuestName, ended: Generation| {
            report.guests.iter().any(|(name, generation)| name == guest && *generation <= ended)
        };
        let gone = |it: &Removal| {
            let heard = report.revision >= it.revision;
            it.hosts.contains(host)
                && match &it.what {
                    // That it does not have the guest says nothing of the disks: it may have died in between.
                    What::Guest { name, generation, disks: DiskFate::Delete } => {
                        heard && report.all_done && !held(name, *generation)
                    }
                    What::Guest { name, generation, .. } => (heard || report.revision == 0) && !held(name, *generation),
                    What::Replica { id } => heard && report.all_done && !report.replicas.contains(id),
                    What::Endpoint { .. } | What::Network { .. } => heard && report.all_done,
                }
        };
        self.settle_removals(gone, Some(host));
    }

    fn order(&mut self, what: What, hosts: BTreeSet<HostName>) {
        let removal = Removal { what, hosts, revision: self.revision() + 1 };
        if !removal.hosts.is_empty() {
            self.put(Table::Removals, removal.key(), &removal);
            self.removals.insert(removal.key(), removal);
        }
    }

    /// Nothing of these is left to do at one host, or at any.
    fn settle_removals(&mut self, which: impl Fn(&Removal) -> bool, host: Option<&HostName>) {
        let keys: Vec<_> = self.removals.iter().filter(|(_, it)| which(it)).map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        for key in keys {
            let Some(removal) = self.removals.get_mut(&key) else { continue };
            removal.hosts.retain(|it| host.is_some_and(|host| host != it));
            if removal.hosts.is_empty() {
                self.removals.remove(&key);
                self.remove(Table::Removals, &key);
            } else {
                let value = Some(super::to_value(removal));
                self.changes.push(Change { table: Table::Removals, key, value });
            }
        }
        self.release_promotions();
    }
}
