//! The record: who is there, what was asked for, who owns what. In memory, with each change noted for the store.

mod command;
mod migration;
mod outline;
mod removal;
mod replica;

use std::{collections::BTreeMap, fmt::Display, net::Ipv4Addr};

pub(crate) use migration::{Asked, Happening, MigrationRecord, Snapshot, milliseconds};
pub(crate) use outline::{Known, Outline};
use removal::Removal;
pub(crate) use removal::{Report, What};
pub(crate) use replica::{Pending, ReplicaRecord};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use throughline_cutover::{
    Binding, Endpoint, Generation, GuestName, GuestSpec, HostName, InterfaceName, MacAddr, Mandate, Network,
    NetworkName, Port, PortId, Power, ReplicaName,
    admission::{Denial, Enrolment, Kind, NewPort, UsedPort},
};

use crate::store::{Change, Store, StoreError, Table};

/// First two octets of an allotted MAC address; the second counts up in the rare case that somebody chose the same.
const MAC_PREFIX: [u8; 2] = [0x02, 0x54];
const COUNTERS: &str = "counters";
/// Hosts say which generations and port numbers are in use. No fabric comes to these by itself; a host that says more must not
/// use up what all others need.
const HIGHEST_GENERATION: u64 = 1 << 62;
const HIGHEST_PORT: u32 = 1 << 31;

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    /// Name.
    pub(crate) name: HostName,
    /// What its agent said last; `None`: it has never connected.
    pub(crate) enrolment: Option<Enrolment>,
}

impl HostRecord {
    /// Its tunnel end point, once known.
    pub(crate) fn vtep(&self) -> Option<Ipv4Addr> {
        self.enrolment.as_ref().map(|enrolment| enrolment.vtep)
    }
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestRecord {
    /// As asked for, everything allotted.
    pub(crate) spec: GuestSpec,
    /// Host that owns it.
    pub(crate) host: HostName,
    /// Generation of the ownership.
    pub(crate) generation: Generation,
    /// Migration that moves it now.
    pub(crate) migration: Option<String>,
    /// Its host has been seen to have it: it is not to be started a second time. So are those on record from before that
    /// was noted.
    #[serde(default = "seen")]
    pub(crate) started: bool,
    /// What is wanted of it.
    #[serde(default)]
    pub(crate) power: Power,
    /// How it came to its host, while that has not been seen to have it.
    #[serde(default)]
    pub(crate) promotion: Option<Pending>,
    /// Where it was before a replica of it was last promoted.
    #[serde(default)]
    pub(crate) promoted_from: Option<HostName>,
}

impl GuestRecord {
    /// One that is its host's by no promotion.
    pub(crate) fn new(spec: GuestSpec, host: HostName, generation: Generation, power: Power) -> Self {
        let (migration, promotion, promoted_from) = (None, None, None);
        Self { spec, host, generation, migration, started: false, power, promotion, promoted_from }
    }
}

fn seen() -> bool {
    true
}

/// Numbers that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counters {
    /// Changes of the record.
    revision: u64,
    /// Ports ever made.
    ports: u64,
    /// Migrations ever admitted.
    migrations: u64,
    /// The highest generation ever given to a port or heard of.
    #[serde(default)]
    generation: u64,
}

/// All that the controller knows for good.
#[derive(Debug)]
pub(crate) struct Record {
    mandate: Mandate,
    secret: command::Secret,
    counters: Counters,
    networks: BTreeMap<NetworkName, Network>,
    hosts: BTreeMap<HostName, HostRecord>,
    guests: BTreeMap<GuestName, GuestRecord>,
    endpoints: BTreeMap<InterfaceName, Endpoint>,
    migrations: BTreeMap<String, MigrationRecord>,
    outlines: BTreeMap<u64, Outline>,
    removals: BTreeMap<String, Removal>,
    replicas: BTreeMap<ReplicaName, ReplicaRecord>,
    changes: Vec<Change>,
}

impl Record {
    /// What a store holds.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    pub(crate) fn load(store: &impl Store) -> Result<Self, StoreError> {
        let (mandate, secret) = command::load(store)?;
        let mut record = Self {
            mandate,
            secret,
            counters: one(store, COUNTERS)?.unwrap_or_default(),
            networks: keyed(load(store, Table::Networks)?, |it: &Network| it.name.clone()),
            hosts: keyed(load(store, Table::Hosts)?, |it: &HostRecord| it.name.clone()),
            guests: keyed(load(store, Table::Guests)?, |it: &GuestRecord| it.spec.name.clone()),
            endpoints: keyed(load(store, Table::Endpoints)?, |it: &Endpoint| it.name.clone()),
            migrations: keyed(load(store, Table::Migrations)?, |it: &MigrationRecord| it.id().to_owned()),
            outlines: keyed(load(store, Table::Outlines)?, |it: &Outline| it.number),
            removals: load(store, Table::Removals)?.into_iter().map(|it: Removal| (it.key(), it)).collect(),
            replicas: keyed(load(store, Table::Replicas)?, |it: &ReplicaRecord| it.name.clone()),
            changes: Vec::new(),
        };
        let guests = record.guests.values().map(|guest| guest.generation);
        let newest = guests.chain(record.endpoints.values().map(|it| it.generation)).max();
        newest.into_iter().for_each(|newest| record.saw_generation(newest));
        Ok(record)
    }

    /// A generation that is in use, however it came to be: what is new gets a higher one.
    pub(crate) fn saw_generation(&mut self, generation: Generation) {
        if generation.0 <= HIGHEST_GENERATION {
            self.counters.generation = self.counters.generation.max(generation.0);
        }
    }

    /// A port that exists, whoever made it: its number is not given again.
    pub(crate) fn saw_port(&mut self, port: PortId) {
        if port.get() <= HIGHEST_PORT {
            self.counters.ports = self.counters.ports.max(port.get().into());
        }
    }

    /// A generation above every one the fabric has seen, for an owner whose ports' addresses somebody may have had before.
    pub(crate) fn new_generation(&mut self) -> Generation {
        self.counters.generation += 1;
        Generation(self.counters.generation)
    }

    /// Changes since the last call, the grown revision among them; empty: nothing changed.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        if !self.changes.is_empty() {
            self.counters.revision += 1;
            let counters = self.counters;
            self.put(Table::Meta, COUNTERS, &counters);
        }
        std::mem::take(&mut self.changes)
    }

    /// Grows with each change.
    pub(crate) fn revision(&self) -> u64 {
        self.counters.revision
    }

    /// All networks, by name.
    pub(crate) fn networks(&self) -> &BTreeMap<NetworkName, Network> {
        &self.networks
    }

    /// All hosts, by name.
    pub(crate) fn hosts(&self) -> &BTreeMap<HostName, HostRecord> {
        &self.hosts
    }

    /// All guests, by name.
    pub(crate) fn guests(&self) -> &BTreeMap<GuestName, GuestRecord> {
        &self.guests
    }

    /// All endpoints, by name.
    pub(crate) fn endpoints(&self) -> &BTreeMap<InterfaceName, Endpoint> {
        &self.endpoints
    }

    /// All migrations, by id.
    pub(crate) fn migrations(&self) -> &BTreeMap<String, MigrationRecord> {
        &self.migrations
    }

    /// All replicas, by guest and host.
    pub(crate) fn replicas(&self) -> &BTreeMap<ReplicaName, ReplicaRecord> {
        &self.replicas
    }

    /// Adds or replaces a network.
    pub(crate) fn put_network(&mut self, network: Network) {
        self.put(Table::Networks, &network.name, &network);
        self.networks.insert(network.name.clone(), network);
    }

    /// Forgets a network.
    pub(crate) fn remove_network(&mut self, name: &NetworkName) {
        self.networks.remove(name);
        self.remove(Table::Networks, name);
    }

    /// Adds or replaces a host; one that is the same is no change.
    pub(crate) fn put_host(&mut self, host: HostRecord) {
        if self.hosts.get(&host.name) != Some(&host) {
            self.put(Table::Hosts, &host.name, &host);
            self.hosts.insert(host.name.clone(), host);
        }
    }

    /// Forgets a host.
    pub(crate) fn remove_host(&mut self, name: &HostName) {
        self.hosts.remove(name);
        self.remove(Table::Hosts, name);
    }

    /// Adds or replaces a guest.
    pub(crate) fn put_guest(&mut self, guest: GuestRecord) {
        self.saw_generation(guest.generation);
        self.put(Table::Guests, &guest.spec.name, &guest);
        self.guests.insert(guest.spec.name.clone(), guest);
    }

    /// Changes a guest that is there.
    pub(crate) fn change_guest(&mut self, name: &GuestName, change: impl FnOnce(&mut GuestRecord)) {
        if let Some(mut guest) = self.guests.get(name).cloned() {
            change(&mut guest);
            self.put_guest(guest);
        }
    }

    /// Forgets a guest.
    pub(crate) fn remove_guest(&mut self, name: &GuestName) {
        self.guests.remove(name);
        self.remove(Table::Guests, name);
    }

    /// Adds or replaces an endpoint.
    pub(crate) fn put_endpoint(&mut self, endpoint: Endpoint) {
        self.put(Table::Endpoints, &endpoint.name, &endpoint);
        self.endpoints.insert(endpoint.name.clone(), endpoint);
    }

    /// Forgets an endpoint.
    pub(crate) fn remove_endpoint(&mut self, name: &InterfaceName) {
        self.endpoints.remove(name);
        self.remove(Table::Endpoints, name);
    }

    /// Adds a migration.
    pub(crate) fn put_migration(&mut self, migration: MigrationRecord) {
        self.put(Table::Migrations, migration.id(), &migration);
        self.migrations.insert(migration.id().to_owned(), migration);
    }

    /// A migration to be changed; the change is in memory until [`Record::save_migration`].
    pub(crate) fn migration_mut(&mut self, id: &str) -> Option<&mut MigrationRecord> {
        self.migrations.get_mut(id)
    }

    /// Notes a migration's present state for the store.
    pub(crate) fn save_migration(&mut self, id: &str) {
        if let Some(migration) = self.migrations.get(id) {
            let value = to_value(migration);
            self.changes.push(Change { table: Table::Migrations, key: id.to_owned(), value: Some(value) });
        }
    }

    /// Forgets a migration.
    pub(crate) fn remove_migration(&mut self, id: &str) {
        self.migrations.remove(id);
        self.remove(Table::Migrations, id);
    }

    /// The next migration's number; never given twice.
    pub(crate) fn next_migration(&mut self) -> u64 {
        self.counters.migrations += 1;
        self.counters.migrations
    }

    /// Every port and whose it is.
    pub(crate) fn ports(&self) -> impl Iterator<Item = UsedPort<'_>> {
        let guests = self.guests.values().flat_map(|guest| {
            let owner = guest.spec.name.as_str();
            guest.spec.ports.iter().map(move |port| UsedPort { kind: Kind::Guest, owner, port })
        });
        let endpoints = self.endpoints.values().map(|endpoint| UsedPort {
            kind: Kind::Endpoint,
            owner: endpoint.name.as_str(),
            port: &endpoint.port,
        });
        guests.chain(endpoints)
    }

    /// Every port on a network and the host that owns it.
    pub(crate) fn bindings<'a>(&'a self, network: &'a Network) -> impl Iterator<Item = Binding> + 'a {
        let guests = self
            .guests
            .values()
            .flat_map(|guest| guest.spec.ports.iter().map(move |port| (port, &guest.host, guest.generation)));
        let endpoints = self.endpoints.values().map(|it| (&it.port, &it.host, it.generation));
        let here = guests.chain(endpoints).filter(|(port, ..)| port.network == network.name);
        here.map(|(port, host, generation)| Binding {
            vni: network.vni,
            port: port.clone(),
            host: host.clone(),
            vtep: self.hosts.get(host).and_then(HostRecord::vtep),
            generation,
        })
    }

    /// Gives each port its number and, where none was asked for, its MAC address.
    ///
    /// # Errors
    /// `PORTS_EXHAUSTED`.
    pub(crate) fn allot(&mut self, ports: Vec<NewPort>) -> Result<Vec<Port>, Denial> {
        let mut taken: Vec<(NetworkName, MacAddr)> =
            ports.iter().filter_map(|port| Some((port.network.clone(), port.mac?))).collect();
        let mut allotted = Vec::with_capacity(ports.len());
        for port in ports {
            let number = self.counters.ports + 1;
            let id = PortId::try_from(number).map_err(|_| Denial::PortsExhausted)?;
            let mac = self.free_mac(&port.network, id, &taken);
            self.counters.ports = number;
            let port = port.allot(id, mac);
            taken.push((port.network.clone(), port.mac));
            allotted.push(port);
        }
        Ok(allotted)
    }

    /// A locally administered unicast address made from the port's number, which nobody on the network has.
    fn free_mac(&self, network: &NetworkName, id: PortId, taken: &[(NetworkName, MacAddr)]) -> MacAddr {
        let [a, b, c, d] = id.get().to_be_bytes();
        let in_use = |mac: MacAddr| {
            taken.iter().any(|(on, other)| on == network && *other == mac)
                || self.ports().any(|used| used.port.network == *network && used.port.mac == mac)
        };
        let nth = |n: u8| MacAddr::new([MAC_PREFIX[0], MAC_PREFIX[1].wrapping_add(n), a, b, c, d]);
        (0..=u8::MAX).map(nth).find(|mac| !in_use(*mac)).unwrap_or(nth(0))
    }

    fn put(&mut self, table: Table, key: impl Display, value: &impl Serialize) {
        self.changes.push(Change { table, key: key.to_string(), value: Some(to_value(value)) });
    }

    fn remove(&mut self, table: Table, key: impl Display) {
        self.changes.push(Change { table, key: key.to_string(), value: None });
    }
}

fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("records are plain data with text keys")
}

/// Reads a value as a table of the record has it, by the table's name on disk; whether it is one.
pub fn read_value(table: &str, value: &[u8]) -> bool {
    fn reads<T: DeserializeOwned>(value: &[u8]) -> bool {
        serde_json::from_slice::<T>(value).is_ok()
    }
    match Table::ALL.into_iter().find(|known| known.name() == table) {
        Some(Table::Meta) => reads::<Counters>(value) || command::reads(value),
        Some(Table::Networks) => reads::<Network>(value),
        Some(Table::Hosts) => reads::<HostRecord>(value),
        Some(Table::Guests) => reads::<GuestRecord>(value),
        Some(Table::Endpoints) => reads::<Endpoint>(value),
        Some(Table::Migrations) => reads::<MigrationRecord>(value),
        Some(Table::Outlines) => reads::<Outline>(value),
        Some(Table::Removals) => reads::<Removal>(value),
        Some(Table::Replicas) => reads::<ReplicaRecord>(value),
        None => false,
    }
}

fn read<T: DeserializeOwned>(table: Table, key: String, value: Value) -> Result<(String, T), StoreError> {
    match serde_json::from_value(value) {
        Ok(value) => Ok((key, value)),
        Err(source) => Err(StoreError::Value { table: table.name(), key, source }),
    }
}

/// One value of the meta table.
fn one<T: DeserializeOwned>(store: &impl Store, name: &str) -> Result<Option<T>, StoreError> {
    let found = store.load(Table::Meta)?.into_iter().find(|(key, _)| key == name);
    found.map(|(key, value)| read(Table::Meta, key, value).map(|(_, value)| value)).transpose()
}

fn load<T: DeserializeOwned>(store: &impl Store, table: Table) -> Result<Vec<T>, StoreError> {
    let rows = store.load(table)?.into_iter();
    rows.map(|(key, value)| read(table, key, value).map(|(_, value)| value)).collect()
}

fn keyed<K: Ord, T>(values: Vec<T>, key: impl Fn(&T) -> K) -> BTreeMap<K, T> {
    values.into_iter().map(|value| (key(&value), value)).collect()
}
