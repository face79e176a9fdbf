//! May a replica be kept, go, or take its guest's place?

use std::collections::BTreeSet;

use super::{
    Denial, View,
    create::{can_run, has_no_old_disks, known_host},
    power::at_rest,
};
use crate::{HostName, MOST_AT_A_HOST, MOST_OF_A_GUEST, ReplicaName, Terms};

/// A replica as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReplica {
    /// Of which guest, and where.
    pub name: ReplicaName,
    /// How often, how many, how fast.
    pub terms: Terms,
}

/// A wish to fail over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromotionRequest {
    /// To which replica.
    pub replica: ReplicaName,
    /// To which of its points; `None`: the newest.
    pub point: Option<u64>,
    /// Also if a host that has the guest is connected.
    pub even_if_connected: bool,
}

/// How a guest fails over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// Point that it goes back to.
    pub point: u64,
    /// Hosts that are connected and have to end their copies first.
    pub after: BTreeSet<HostName>,
}

/// A replica, as far as policy asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// Of which guest, and where.
    pub name: ReplicaName,
    /// Numbers of the points that its host, since it is connected, has said are there; oldest first.
    pub points: Vec<u64>,
    /// A test of it is not over. Its host has promised it the guest's memory.
    pub tested: bool,
}

/// A wish to test a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRequest {
    /// Which.
    pub replica: ReplicaName,
    /// From which of its points; `None`: the newest.
    pub point: Option<u64>,
    /// For so long at most, milliseconds.
    pub for_ms: u32,
}

/// A replica of a guest that is at rest and has a disk, at another host that runs guests. That host need not be connected: the one
/// that a guest failed over from is to have a replica as soon as it is back.
///
/// # Errors
/// `UNKNOWN_GUEST`, `ALREADY_MIGRATING`, `UNKNOWN_HOST`, `SAME_HOST`, `HOST_PEER_ONLY`, `GUEST_HAS_NO_DISK`, `REPLICA_EXISTS`,
/// `TOO_MANY_REPLICAS`.
pub fn create_replica(view: &impl View, name: &ReplicaName) -> Result<(), Denial> {
    let ReplicaName { guest, host } = name;
    let facts = at_rest(view, "guest", guest)?;
    let keeper = known_host(view, "host", host)?;
    if facts.host == *host {
        return Err(Denial::SameHost { field: "host".to_owned(), guest: guest.clone(), host: host.clone() });
    }
    if keeper.peer_only {
        return Err(Denial::HostPeerOnly { field: "host".to_owned(), host: host.clone() });
    }
    if facts.disks == 0 {
        return Err(Denial::GuestHasNoDisk { guest: guest.clone() });
    }
    if view.replica(name).is_some() {
        return Err(Denial::ReplicaExists { replica: name.clone() });
    }
    has_room_for_another(view, name)
}

fn has_room_for_another(view: &impl View, name: &ReplicaName) -> Result<(), Denial> {
    let of_guest = view.replicas().filter(|it| it.guest == name.guest).count();
    let at_host = view.replicas().filter(|it| it.host == name.host).count();
    match (of_guest < MOST_OF_A_GUEST, at_host < MOST_AT_A_HOST) {
        (true, true) => Ok(()),
        (false, _) => Err(Denial::TooManyReplicas { whose: format!("guest {}", name.guest), most: MOST_OF_A_GUEST }),
        (_, false) => Err(Denial::TooManyReplicas { whose: format!("host {}", name.host), most: MOST_AT_A_HOST }),
    }
}

/// A replica that is not becoming its guest's disks.
///
/// # Errors
/// `UNKNOWN_REPLICA`, `REPLICA_PROMOTED`.
pub fn delete_replica(view: &impl View, name: &ReplicaName) -> Result<(), Denial> {
    known_replica(view, name)?;
    // A replica is at its guest's own host only until that host has taken the guest.
    match view.guest(&name.guest) {
        Some(guest) if guest.host == name.host => Err(Denial::ReplicaPromoted { replica: name.clone() }),
        Some(_) | None => Ok(()),
    }
}

/// A guest that is at rest, and whose hosts cannot be asked; or one that was promoted and has not come up. Its replica's host must
/// be able to run it now, and have the point.
///
/// # Errors
/// `UNKNOWN_GUEST`, `ALREADY_MIGRATING`, `UNKNOWN_REPLICA`, `SOURCE_CONNECTED`, `HOST_DOWN`, `HOST_PEER_ONLY`,
/// `NOT_ENOUGH_MEMORY`, `DISKS_BEING_DELETED`, `COPY_NOT_ENDED`, `NO_POINT`, `UNKNOWN_POINT`.
pub fn promote_replica(view: &impl View, request: &PromotionRequest) -> Result<Failover, Denial> {
    let ReplicaName { guest: name, host } = &request.replica;
    let guest = at_rest(view, "guest", name)?;
    let replica = known_replica(view, &request.replica)?;
    let keeper = known_host(view, "host", host)?;
    let connected = |host: &HostName| view.host(host).is_some_and(|facts| facts.connected);
    let (own, others): (Vec<_>, Vec<_>) = view.holders(name).into_iter().partition(|it| it == host);
    let after: BTreeSet<_> = others.into_iter().filter(connected).collect();
    if let Some(source) = after.first().filter(|_| !request.even_if_connected) {
        return Err(Denial::SourceConnected { guest: name.clone(), host: source.clone() });
    }
    // Its room is promised already if it was promoted before, or to its test, which ends before it begins.
    let memory_kib = if guest.host == *host || replica.tested { 0 } else { guest.memory_kib };
    can_run(&keeper, "host", "host", memory_kib)?;
    has_no_old_disks(view, "guest", host, name)?;
    // It would be taken for the guest, with disks from before.
    if guest.host != *host && !own.is_empty() {
        return Err(Denial::CopyNotEnded { guest: name.clone(), host: host.clone() });
    }
    Ok(Failover { point: chosen(&replica, request.point)?, after })
}

/// A replica that is not its guest's yet, and not tested. Its host must be able to run the guest now, beside what it runs, and have the
/// point. The guest may run, move, or be stopped: it is not concerned. Gives the point.
///
/// # Errors
/// `UNKNOWN_GUEST`, `UNKNOWN_REPLICA`, `REPLICA_PROMOTED`, `TEST_UNDER_WAY`, `HOST_DOWN`, `HOST_PEER_ONLY`, `NOT_ENOUGH_MEMORY`,
/// `NO_POINT`, `UNKNOWN_POINT`.
pub fn test_replica(view: &impl View, request: &TestRequest) -> Result<u64, Denial> {
    let ReplicaName { guest: name, host } = &request.replica;
    let unknown = || Denial::UnknownGuest { field: "guest".to_owned(), name: name.clone() };
    let guest = view.guest(name).ok_or_else(unknown)?;
    let replica = known_replica(view, &request.replica)?;
    if guest.host == *host {
        return Err(Denial::ReplicaPromoted { replica: replica.name });
    }
    if replica.tested {
        return Err(Denial::TestUnderWay { replica: replica.name });
    }
    can_run(&known_host(view, "host", host)?, "host", "host", guest.memory_kib)?;
    chosen(&replica, request.point)
}

/// A test that is not over.
///
/// # Errors
/// `UNKNOWN_REPLICA`, `NO_TEST`.
pub fn end_replica_test(view: &impl View, name: &ReplicaName) -> Result<(), Denial> {
    let replica = known_replica(view, name)?;
    if replica.tested { Ok(()) } else { Err(Denial::NoTest { replica: replica.name }) }
}

fn chosen(replica: &ReplicaFacts, wanted: Option<u64>) -> Result<u64, Denial> {
    let unknown = |point| Denial::UnknownPoint { replica: replica.name.clone(), point };
    match (replica.points.last(), wanted) {
        (None, _) => Err(Denial::NoPoint { replica: replica.name.clone() }),
        (Some(newest), None) => Ok(*newest),
        (Some(_), Some(wanted)) => replica.points.iter().find(|it| **it == wanted).copied().ok_or(unknown(wanted)),
    }
}

fn known_replica(view: &impl View, name: &ReplicaName) -> Result<ReplicaFacts, Denial> {
    view.replica(name).ok_or_else(|| Denial::UnknownReplica { replica: name.clone() })
}
