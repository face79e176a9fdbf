//! May this be done? Pure policy: a request and a view of the record in, `Ok` or a typed [`Denial`] out. Nothing is
//! changed and nothing is remembered here, so a refused request leaves nothing behind by construction.

mod create;
mod delete;
mod denial;
mod migrate;
mod power;
mod replica;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

pub use create::{create_endpoint, create_guest, create_host, create_network, enrol};
pub use delete::{delete_endpoint, delete_guest, delete_host, delete_network, disk_fate};
pub use denial::{Denial, Kind};
pub use migrate::{Manner, MigrationRequest, Verdict, cancel, migrate, resolve};
pub use power::{start_guest, stop_guest};
pub use replica::{
    Failover, NewReplica, PromotionRequest, ReplicaFacts, TestRequest, create_replica, delete_replica,
    end_replica_test, promote_replica, test_replica,
};

use serde::{Deserialize, Serialize};

use crate::{
    Boot, Disk, Endpoint, Generation, GuestName, GuestSpec, HostName, InterfaceName, MacAddr, Mandate, Network,
    NetworkName, OwnedGuest, Port, PortId, Power, Queues, ReplicaName,
};

/// A network card as asked for: number and, if the caller left it open, MAC address are still to be allotted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPort {
    /// Network it is to be on.
    pub network: NetworkName,
    /// Its address; `None`: allot one.
    pub mac: Option<MacAddr>,
    /// Its IP addresses.
    pub ips: Vec<std::net::IpAddr>,
}

impl NewPort {
    /// The port, with what was allotted to it; an address that was asked for wins over `mac`.
    pub fn allot(self, id: PortId, mac: MacAddr) -> Port {
        Port { id, network: self.network, mac: self.mac.unwrap_or(mac), ips: self.ips }
    }
}

/// A guest as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewGuest {
    /// Unique name.
    pub name: GuestName,
    /// Virtual processors.
    pub vcpus: u32,
    /// Queues of each network card.
    pub queues: Queues,
    /// RAM, KiB.
    pub memory_kib: u64,
    /// How it boots.
    pub boot: Boot,
    /// Network cards in slot order.
    pub ports: Vec<NewPort>,
    /// Disks in slot order.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// It has a channel to an agent of its own.
    #[serde(default)]
    pub guest_agent: bool,
}

impl NewGuest {
    /// The guest with its ports as allotted; `ports` are in the same order.
    pub fn allot(self, ports: Vec<Port>) -> GuestSpec {
        let Self { name, vcpus, queues, memory_kib, boot, ports: _, disks, guest_agent } = self;
        GuestSpec { name, vcpus, queues, memory_kib, boot, ports, disks, guest_agent }
    }
}

/// An endpoint as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEndpoint {
    /// Unique name, also of its interface.
    pub name: InterfaceName,
    /// Where it is to live.
    pub host: HostName,
    /// Its port.
    pub port: NewPort,
    /// Prefix length of its IPv4 addresses.
    pub prefix_len: u8,
}

impl NewEndpoint {
    /// The endpoint with its port and generation as allotted.
    pub fn allot(self, port: Port, generation: Generation) -> Endpoint {
        Endpoint { name: self.name, host: self.host, port, prefix_len: self.prefix_len, generation }
    }
}

/// What an agent says of its host when it connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Name of the host.
    pub host: HostName,
    /// Its tunnel end point.
    pub vtep: Ipv4Addr,
    /// Its `Peer` service, `address:port`.
    pub peer_endpoint: String,
    /// Memory for guests, KiB.
    pub memory_kib: u64,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Runs no guests.
    pub peer_only: bool,
}

/// How an agent begins its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// What it says of its host.
    pub enrolment: Enrolment,
    /// The highest mandate it has obeyed; `None`: it belongs to no fabric yet.
    pub obeyed: Option<Mandate>,
    /// Every guest the host owns.
    pub guests: Vec<OwnedGuest>,
}

/// A host, as far as policy asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Name.
    pub name: HostName,
    /// Its agent's stream is up.
    pub connected: bool,
    /// Runs no guests.
    pub peer_only: bool,
    /// Its tunnel end point, once known.
    pub vtep: Option<Ipv4Addr>,
    /// Its `Peer` service, once known.
    pub peer_endpoint: Option<String>,
    /// Memory for guests, KiB.
    pub memory_kib: u64,
    /// Of it promised, guests on their way here included, KiB.
    pub memory_used_kib: u64,
    /// Of that, what tests of replicas have, KiB.
    pub memory_of_tests_kib: u64,
}

impl HostFacts {
    /// Memory not promised to any guest, KiB.
    pub fn memory_free_kib(&self) -> u64 {
        self.memory_kib.saturating_sub(self.memory_used_kib)
    }
}

/// A guest, as far as policy asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFacts {
    /// Host that owns it.
    pub host: HostName,
    /// RAM, KiB.
    pub memory_kib: u64,
    /// How many disks it has.
    pub disks: usize,
    /// What is wanted of it.
    pub power: Power,
    /// Last seen running.
    pub running: bool,
    /// Last seen ended, or could not be started.
    pub failed: bool,
    /// Last seen stopped.
    pub stopped: bool,
    /// Migration that moves it now.
    pub migration: Option<String>,
}

/// Who a port belongs to. Reads on after "is used by".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedPort<'a> {
    /// Guest or endpoint.
    pub kind: Kind,
    /// Its name.
    pub owner: &'a str,
    /// The port.
    pub port: &'a Port,
}

/// What policy may see of the record.
pub trait View {
    /// All networks.
    fn networks(&self) -> impl Iterator<Item = &Network>;
    /// All hosts.
    fn hosts(&self) -> impl Iterator<Item = HostFacts>;
    /// Every port there is, guests' and endpoints'.
    fn ports(&self) -> impl Iterator<Item = UsedPort<'_>>;
    /// One network.
    fn network(&self, name: &NetworkName) -> Option<&Network>;
    /// One host.
    fn host(&self, name: &HostName) -> Option<HostFacts>;
    /// One guest.
    fn guest(&self, name: &GuestName) -> Option<GuestFacts>;
    /// One endpoint.
    fn endpoint(&self, name: &InterfaceName) -> Option<&Endpoint>;
    /// What every replica is found by.
    fn replicas(&self) -> impl Iterator<Item = &ReplicaName>;
    /// One replica.
    fn replica(&self, name: &ReplicaName) -> Option<ReplicaFacts>;
    /// Hosts that have a copy of a guest, or may: its own, and those that are still to end one.
    fn holders(&self, guest: &GuestName) -> Vec<HostName>;
    /// A host is still to delete the disks of an earlier guest of that name.
    fn deletes_disks(&self, host: &HostName, guest: &GuestName) -> bool;
    /// What a host is still needed for: a guest, an endpoint, a replica or a migration, in words; `None`: nothing.
    fn host_needed_for(&self, name: &HostName) -> Option<String>;
}
