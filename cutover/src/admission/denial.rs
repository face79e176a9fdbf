//! Every way to say no.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use crate::{Failure, GuestName, HostName, InterfaceName, MacAddr, NetworkName, OperatorName, ReplicaName, Vni};

/// A kind of thing that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A network.
    Network,
    /// A host.
    Host,
    /// A guest.
    Guest,
    /// An endpoint.
    Endpoint,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Host => "host",
            Self::Guest => "guest",
            Self::Endpoint => "endpoint",
        })
    }
}

/// Why a request is refused. The text says what is wrong and what to do; [`Denial::reason`] is for scripts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the error texts say what each variant and its values mean")]
pub enum Denial {
    #[error("{kind} {name} already exists; choose another name or delete it first")]
    NameInUse { field: String, kind: Kind, name: String },
    #[error("VNI {vni} is used by network {network}; choose another")]
    VniInUse { vni: Vni, network: NetworkName },
    #[error("MAC address {mac} is used by {owner} on network {network}; choose another or leave it empty")]
    MacInUse { field: String, mac: MacAddr, network: NetworkName, owner: String },
    #[error("IP address {ip} is used by {owner} on network {network}; choose another")]
    IpInUse { field: String, ip: IpAddr, network: NetworkName, owner: String },
    #[error("tunnel end point {vtep} is used by host {host}; give each host its own underlay address")]
    VtepInUse { vtep: Ipv4Addr, host: HostName },
    #[error("peer endpoint {endpoint} is used by host {host}; give each agent its own --peer-listen")]
    PeerEndpointInUse { endpoint: String, host: HostName },
    #[error("there is no network {name}; create it first")]
    UnknownNetwork { field: String, name: NetworkName },
    #[error("there is no host {name}; start its agent or list the hosts there are")]
    UnknownHost { field: String, name: HostName },
    #[error("there is no guest {name}; list the guests there are")]
    UnknownGuest { field: String, name: GuestName },
    #[error("there is no endpoint {name}; list the endpoints there are")]
    UnknownEndpoint { name: InterfaceName },
    #[error("there is no migration with this id; list the migrations there are")]
    UnknownMigration,
    #[error("host {host} is not announced and this controller admits no others; create it first")]
    HostNotEnrolled { host: HostName },
    #[error("the agent of host {host} is not connected; start it or choose another host")]
    HostDown { field: String, host: HostName },
    #[error("host {host} runs no guests (peer only); choose another host")]
    HostPeerOnly { field: String, host: HostName },
    #[error(
        "host {host} has {free_kib} KiB free, {asked_kib} KiB are needed; choose another host or free memory there{}", of_tests(*tests_kib)
    )]
    NotEnoughMemory { field: String, host: HostName, asked_kib: u64, free_kib: u64, tests_kib: u64 },
    #[error("guest {guest} is on host {host} already; choose another host")]
    SameHost { field: String, guest: GuestName, host: HostName },
    #[error(
        "guest {guest} is being moved by migration {migration}; wait for its end, or cancel it and, if its destination is gone for good, resolve it"
    )]
    AlreadyMigrating { guest: GuestName, migration: String },
    #[error(
        "there is no replica of guest {guest} at host {host}; list the replicas there are",
        guest = replica.guest, host = replica.host
    )]
    UnknownReplica { replica: ReplicaName },
    #[error(
        "host {host} keeps a replica of guest {guest} already; choose another host or delete it first",
        guest = replica.guest, host = replica.host
    )]
    ReplicaExists { replica: ReplicaName },
    #[error(
        "host {host} keeps a replica of guest {guest}; delete it first, if what it has is not needed",
        guest = replica.guest, host = replica.host
    )]
    GuestHasReplica { replica: ReplicaName },
    #[error(
        "host {host} keeps a replica of guest {guest}, which cannot move there; choose another host or delete the replica first",
        guest = replica.guest, host = replica.host
    )]
    ReplicaAtDestination { replica: ReplicaName },
    #[error(
        "the replica at host {host} is becoming the disks of guest {guest}; wait until it runs there, or promote again",
        guest = replica.guest, host = replica.host
    )]
    ReplicaPromoted { replica: ReplicaName },
    #[error(
        "guest {guest} moves stopped, so its disks go as the files they are; leave out flatten, or move it as it runs"
    )]
    FlattensStopped { guest: GuestName },
    #[error(
        "the replica of guest {guest} at host {host} is being tested; wait until that is over, or end it",
        guest = replica.guest, host = replica.host
    )]
    TestUnderWay { replica: ReplicaName },
    #[error(
        "the replica of guest {guest} at host {host} is not being tested, so there is nothing to end",
        guest = replica.guest, host = replica.host
    )]
    NoTest { replica: ReplicaName },
    #[error("guest {guest} has no disk, so there is nothing to keep; create it again where it is needed")]
    GuestHasNoDisk { guest: GuestName },
    #[error("{whose} has as many replicas as may be ({most}); delete one first")]
    TooManyReplicas { whose: String, most: usize },
    #[error(
        "host {host} has told of no restore point of guest {guest} since it is connected; look again in a moment, or promote another replica",
        guest = replica.guest, host = replica.host
    )]
    NoPoint { replica: ReplicaName },
    #[error(
        "the replica of guest {guest} at host {host} has no point {point}; see which it has, or name none for the newest",
        guest = replica.guest, host = replica.host
    )]
    UnknownPoint { replica: ReplicaName, point: u64 },
    #[error(
        "host {host}, which has guest {guest}, is connected; migrate the guest, or promote even if it is connected: its copy is ended first"
    )]
    SourceConnected { guest: GuestName, host: HostName },
    #[error("host {host} is still to end an earlier copy of guest {guest}; wait until it has")]
    CopyNotEnded { guest: GuestName, host: HostName },
    #[error("guest {guest} has disks ({disks}); say whether they are to be deleted with it or kept on its host")]
    DiskFateNeeded { guest: GuestName, disks: usize },
    #[error(
        "host {host} is still to delete the disks of an earlier guest {guest}; wait until it has, or use another host or name"
    )]
    DisksBeingDeleted { field: String, guest: GuestName, host: HostName },
    #[error("guest {guest} neither runs nor is stopped; see its state and detail; wait until it does, or stop it")]
    GuestNotRunning { guest: GuestName },
    #[error(
        "guest {guest} has failed, see its detail; stop it, so that its host notes that it does not run, then start it"
    )]
    GuestFailed { guest: GuestName },
    #[error("network {network} is used by {owner}; delete that first")]
    NetworkInUse { network: NetworkName, owner: String },
    #[error("host {host} is needed for {what}; move or delete that first")]
    HostInUse { host: HostName, what: String },
    #[error("the agent of host {host} is connected; stop it first")]
    HostConnected { host: HostName },
    #[error("migration {migration} has committed or ended and cannot be undone; migrate the guest back instead")]
    TooLate { migration: String },
    #[error(
        "no host can take guest {guest}: it needs one that is connected, runs guests and has {asked_kib} KiB free; add or free one"
    )]
    NoDestination { guest: GuestName, asked_kib: u64 },
    #[error("this request id began migration {migration}, which has another guest or destination; use a new id")]
    RequestIdReused { migration: String },
    #[error("operator {operator} has {most} migrations under way, which is the most; wait until one has ended")]
    TooManyMigrations { operator: OperatorName, most: u32 },
    #[error("all port numbers have been used; this fabric cannot make another port")]
    PortsExhausted,
    #[error(
        "migration {migration} is not being undone, so there is nothing to resolve; cancel it first if it has not committed"
    )]
    NotUnresolved { migration: String },
    #[error(
        "the agent of {host}, the destination of migration {migration}, is connected and decides itself; wait for its word"
    )]
    DestinationConnected { migration: String, host: HostName },
    #[error("this controller has stood down and commands nobody: {0}")]
    StoodDown(Failure),
    #[error("{0}")]
    OtherFabric(Failure),
    #[error("{0}")]
    TermUnproved(Failure),
}

/// What ends soonest of what is in a host's memory.
fn of_tests(tests_kib: u64) -> String {
    match tests_kib {
        0 => String::new(),
        _ => format!(
            " (tests of replicas have {tests_kib} KiB: `throughline replica list` shows them, `replica test --end` ends one)"
        ),
    }
}

impl Denial {
    /// The stable code of this denial.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NameInUse { .. } => "NAME_IN_USE",
            Self::VniInUse { .. } => "VNI_IN_USE",
            Self::MacInUse { .. } => "MAC_IN_USE",
            Self::IpInUse { .. } => "IP_IN_USE",
            Self::VtepInUse { .. } => "VTEP_IN_USE",
            Self::PeerEndpointInUse { .. } => "PEER_ENDPOINT_IN_USE",
            Self::UnknownNetwork { .. } => "UNKNOWN_NETWORK",
            Self::UnknownHost { .. } => "UNKNOWN_HOST",
            Self::UnknownGuest { .. } => "UNKNOWN_GUEST",
            Self::UnknownEndpoint { .. } => "UNKNOWN_ENDPOINT",
            Self::UnknownMigration => "UNKNOWN_MIGRATION",
            Self::HostNotEnrolled { .. } => "HOST_NOT_ENROLLED",
            Self::HostDown { .. } => "HOST_DOWN",
            Self::HostPeerOnly { .. } => "HOST_PEER_ONLY",
            Self::NotEnoughMemory { .. } => "NOT_ENOUGH_MEMORY",
            Self::SameHost { .. } => "SAME_HOST",
            Self::AlreadyMigrating { .. } => "ALREADY_MIGRATING",
            Self::UnknownReplica { .. } => "UNKNOWN_REPLICA",
            Self::ReplicaExists { .. } | Self::GuestHasReplica { .. } => "REPLICA_EXISTS",
            Self::ReplicaAtDestination { .. } => "REPLICA_AT_DESTINATION",
            Self::ReplicaPromoted { .. } => "REPLICA_PROMOTED",
            Self::FlattensStopped { .. } => "FLATTENS_STOPPED",
            Self::TestUnderWay { .. } => "TEST_UNDER_WAY",
            Self::NoTest { .. } => "NO_TEST",
            Self::GuestHasNoDisk { .. } => "GUEST_HAS_NO_DISK",
            Self::TooManyReplicas { .. } => "TOO_MANY_REPLICAS",
            Self::NoPoint { .. } => "NO_POINT",
            Self::UnknownPoint { .. } => "UNKNOWN_POINT",
            Self::SourceConnected { .. } => "SOURCE_CONNECTED",
            Self::CopyNotEnded { .. } => "COPY_NOT_ENDED",
            Self::DiskFateNeeded { .. } => "DISK_FATE_NEEDED",
            Self::DisksBeingDeleted { .. } => "DISKS_BEING_DELETED",
            Self::GuestNotRunning { .. } => "GUEST_NOT_RUNNING",
            Self::GuestFailed { .. } => "GUEST_FAILED",
            Self::NetworkInUse { .. } => "NETWORK_IN_USE",
            Self::HostInUse { .. } => "HOST_IN_USE",
            Self::HostConnected { .. } => "HOST_CONNECTED",
            Self::TooLate { .. } => "TOO_LATE",
            Self::NoDestination { .. } => "NO_DESTINATION",
            Self::RequestIdReused { .. } => "REQUEST_ID_REUSED",
            Self::TooManyMigrations { .. } => "TOO_MANY_MIGRATIONS",
            Self::PortsExhausted => "PORTS_EXHAUSTED",
            Self::NotUnresolved { .. } => "NOT_UNRESOLVED",
            Self::DestinationConnected { .. } => "DESTINATION_CONNECTED",
            Self::StoodDown(_) => "STALE_TERM",
            Self::OtherFabric(_) => "OTHER_FABRIC",
            Self::TermUnproved(_) => "TERM_UNPROVED",
        }
    }

    /// The field of the request at fault, `spec.ports[0].mac` form.
    pub fn field(&self) -> &str {
        match self {
            Self::NameInUse { field, .. }
            | Self::MacInUse { field, .. }
            | Self::IpInUse { field, .. }
            | Self::UnknownNetwork { field, .. }
            | Self::UnknownHost { field, .. }
            | Self::UnknownGuest { field, .. }
            | Self::SameHost { field, .. }
            | Self::DisksBeingDeleted { field, .. }
            | Self::HostDown { field, .. }
            | Self::HostPeerOnly { field, .. }
            | Self::NotEnoughMemory { field, .. } => field,
            Self::VniInUse { .. } => "network.vni",
            Self::VtepInUse { .. } => "hello.vtep",
            Self::PeerEndpointInUse { .. } => "hello.peer_endpoint",
            Self::HostNotEnrolled { .. } => "hello.host",
            Self::UnknownEndpoint { .. } | Self::NetworkInUse { .. } => "name",
            Self::HostInUse { .. }
            | Self::HostConnected { .. }
            | Self::GuestFailed { .. }
            | Self::GuestHasReplica { .. } => "name",
            Self::UnknownMigration
            | Self::TooLate { .. }
            | Self::NotUnresolved { .. }
            | Self::DestinationConnected { .. } => "id",
            Self::StoodDown(_) | Self::OtherFabric(_) | Self::TermUnproved(_) => "hello.obeyed",
            Self::NoDestination { .. } | Self::ReplicaAtDestination { .. } => "destination_host",
            Self::AlreadyMigrating { .. }
            | Self::GuestNotRunning { .. }
            | Self::GuestHasNoDisk { .. }
            | Self::FlattensStopped { .. }
            | Self::TooManyMigrations { .. } => "guest",
            Self::UnknownReplica { .. }
            | Self::ReplicaExists { .. }
            | Self::ReplicaPromoted { .. }
            | Self::TestUnderWay { .. }
            | Self::NoTest { .. }
            | Self::CopyNotEnded { .. }
            | Self::TooManyReplicas { .. } => "host",
            Self::NoPoint { .. } | Self::UnknownPoint { .. } => "point",
            Self::SourceConnected { .. } => "even_if_connected",
            Self::DiskFateNeeded { .. } => "disks",
            Self::RequestIdReused { .. } => "request_id",
            Self::PortsExhausted => "port",
        }
    }
}
