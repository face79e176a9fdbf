//! What callers and policy may see.

use throughline_cutover::{
    Endpoint, Failure, Generation, GuestName, GuestSpec, HostName, InterfaceName, Network, NetworkName, ReplicaName,
    admission::{GuestFacts, HostFacts, Kind, ReplicaFacts, UsedPort, View},
};

use super::{Core, Seen};
use crate::record::HostRecord;

/// Whether a guest runs, as its host's agent last saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum GuestState {
    /// Not reported yet.
    #[default]
    Unknown,
    /// Asked for, not running yet.
    Starting,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Ended, or could not be started.
    Failed,
    /// To stop, and not stopped yet.
    Stopping,
    /// Stopped.
    Stopped,
}

/// What an agent last said of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observation {
    /// Whether it runs.
    pub(crate) state: GuestState,
    /// For people.
    pub(crate) detail: String,
}

/// A host as callers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostView {
    /// As recorded.
    pub(crate) record: HostRecord,
    /// Its agent's stream is up.
    pub(crate) connected: bool,
    /// Memory promised to guests, KiB.
    pub(crate) memory_used_kib: u64,
    /// Why it does not obey.
    pub(crate) refusal: Option<Failure>,
}

/// A guest as callers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestView {
    /// As asked for, everything allotted.
    pub(crate) spec: GuestSpec,
    /// Host that owns it.
    pub(crate) host: HostName,
    /// Generation of the ownership.
    pub(crate) generation: Generation,
    /// As last observed.
    pub(crate) observation: Observation,
    /// Migration that moves it now.
    pub(crate) migration: Option<String>,
    /// Its host has it, the record does not know it.
    pub(crate) unknown: bool,
    /// Where it was before a replica of it was last promoted.
    pub(crate) promoted_from: Option<HostName>,
}

impl Core {
    /// A host on record, or one of another fabric that has shown up.
    pub(super) fn find_host(&self, name: &HostName) -> Option<HostView> {
        if let Some(record) = self.record.hosts().get(name) {
            return Some(self.host_view(record));
        }
        let enrolment = Some(self.strangers.get(name)?.enrolment.clone());
        Some(self.host_view(&HostRecord { name: name.clone(), enrolment }))
    }

    pub(super) fn host_view(&self, record: &HostRecord) -> HostView {
        HostView {
            record: record.clone(),
            connected: self.links.is_connected(&record.name),
            memory_used_kib: self.memory_used_kib(&record.name),
            refusal: self.refusal(&record.name),
        }
    }

    pub(super) fn guest_view(&self, name: &GuestName) -> Option<GuestView> {
        let recorded = self.record.guests().get(name).map(|guest| GuestView {
            spec: guest.spec.clone(),
            host: guest.host.clone(),
            generation: guest.generation,
            observation: self.observed.get(name).cloned().unwrap_or_default(),
            migration: guest.migration.clone(),
            unknown: false,
            promoted_from: guest.promoted_from.clone(),
        });
        recorded.or_else(|| {
            self.unknown.get(name).map(|it| GuestView {
                spec: it.owned.spec.clone(),
                host: it.host.clone(),
                generation: it.owned.generation,
                observation: it.observation.clone(),
                migration: None,
                unknown: true,
                promoted_from: None,
            })
        })
    }

    /// Memory of the guests a host owns, of those on their way to it, and of those that tests run there.
    fn memory_used_kib(&self, host: &HostName) -> u64 {
        let owned = self.record.guests().values().filter(|guest| guest.host == *host);
        let owned: u64 = owned.map(|guest| guest.spec.memory_kib).sum();
        let live = self.live.keys().filter_map(|id| self.record.migrations().get(id)).map(|it| it.plan());
        let coming = live.filter(|plan| {
            let owner = self.record.guests().get(&plan.guest.name).map(|guest| &guest.host);
            plan.destination.host == *host && owner != Some(host)
        });
        let unknown = self.unknown.values().filter(|it| it.host == *host).map(|it| it.owned.spec.memory_kib);
        owned
            + self.memory_of_tests_kib(host)
            + unknown.sum::<u64>()
            + coming.map(|plan| plan.guest.memory_kib).sum::<u64>()
    }

    fn host_facts(&self, host: &HostRecord) -> HostFacts {
        let enrolment = host.enrolment.as_ref();
        HostFacts {
            name: host.name.clone(),
            connected: self.links.is_connected(&host.name),
            peer_only: enrolment.is_some_and(|it| it.peer_only),
            vtep: host.vtep(),
            peer_endpoint: enrolment.map(|it| it.peer_endpoint.clone()),
            memory_kib: enrolment.map_or(0, |it| it.memory_kib),
            memory_used_kib: self.memory_used_kib(&host.name),
            memory_of_tests_kib: self.memory_of_tests_kib(&host.name),
        }
    }
}

impl View for Core {
    fn networks(&self) -> impl Iterator<Item = &Network> {
        self.record.networks().values()
    }

    fn hosts(&self) -> impl Iterator<Item = HostFacts> {
        self.record.hosts().values().map(|host| self.host_facts(host))
    }

    fn ports(&self) -> impl Iterator<Item = UsedPort<'_>> {
        let unknown = self.unknown.values().flat_map(|it| {
            let owner = it.owned.spec.name.as_str();
            it.owned.spec.ports.iter().map(move |port| UsedPort { kind: Kind::Guest, owner, port })
        });
        self.record.ports().chain(unknown)
    }

    fn network(&self, name: &NetworkName) -> Option<&Network> {
        self.record.networks().get(name)
    }

    fn host(&self, name: &HostName) -> Option<HostFacts> {
        self.record.hosts().get(name).map(|host| self.host_facts(host))
    }

    fn guest(&self, name: &GuestName) -> Option<GuestFacts> {
        self.record.guests().get(name).map(|guest| GuestFacts {
            host: guest.host.clone(),
            memory_kib: guest.spec.memory_kib,
            disks: guest.spec.disks.len(),
            power: guest.power,
            running: self.observed.get(name).is_some_and(|it| it.state == GuestState::Running),
            failed: self.observed.get(name).is_some_and(|it| it.state == GuestState::Failed),
            stopped: self.observed.get(name).is_some_and(|it| it.state == GuestState::Stopped),
            migration: guest.migration.clone(),
        })
    }

    fn endpoint(&self, name: &InterfaceName) -> Option<&Endpoint> {
        self.record.endpoints().get(name)
    }

    fn replicas(&self) -> impl Iterator<Item = &ReplicaName> {
        self.record.replicas().keys()
    }

    fn replica(&self, name: &ReplicaName) -> Option<ReplicaFacts> {
        self.record.replicas().get(name)?;
        let points = self.replicas.get(name).map(Seen::certain_points).unwrap_or_default();
        Some(ReplicaFacts { name: name.clone(), points, tested: self.is_tested(name) })
    }

    fn holders(&self, guest: &GuestName) -> Vec<HostName> {
        let own = self.record.guests().get(guest).map(|it| &it.host);
        own.into_iter().chain(self.record.ending(guest)).cloned().collect()
    }

    fn deletes_disks(&self, host: &HostName, guest: &GuestName) -> bool {
        self.record.deletes_disks(host, guest)
    }

    fn host_needed_for(&self, name: &HostName) -> Option<String> {
        let guest = self.record.guests().values().find(|guest| guest.host == *name);
        let unknown = self.unknown.values().find(|it| it.host == *name);
        let endpoint = self.record.endpoints().values().find(|endpoint| endpoint.host == *name);
        let replica = self.record.replicas().keys().find(|replica| replica.host == *name);
        let live = self.live.keys().filter_map(|id| self.record.migrations().get(id));
        let migration =
            live.map(|it| it.plan()).find(|plan| plan.source.host == *name || plan.destination.host == *name);
        guest
            .map(|guest| format!("guest {}", guest.spec.name))
            .or_else(|| unknown.map(|it| format!("guest {}, which the record does not know", it.owned.spec.name)))
            .or_else(|| endpoint.map(|endpoint| format!("endpoint {}", endpoint.name)))
            .or_else(|| replica.map(|replica| format!("a replica of guest {}", replica.guest)))
            .or_else(|| migration.map(|plan| format!("migration {}", plan.id)))
    }
}
