//! May it go?

use super::{Denial, View, create::known_host, power::at_rest};
use crate::{DiskFate, GuestName, HostName, InterfaceName, NetworkName};

/// A network that no port is on.
///
/// # Errors
/// `UNKNOWN_NETWORK`, `NETWORK_IN_USE`.
pub fn delete_network(view: &impl View, name: &NetworkName) -> Result<(), Denial> {
    if view.network(name).is_none() {
        return Err(Denial::UnknownNetwork { field: "name".to_owned(), name: name.clone() });
    }
    match view.ports().find(|used| used.port.network == *name) {
        Some(used) => {
            Err(Denial::NetworkInUse { network: name.clone(), owner: format!("{} {}", used.kind, used.owner) })
        }
        None => Ok(()),
    }
}

/// A host that nothing needs and whose agent is away.
///
/// # Errors
/// `UNKNOWN_HOST`, `HOST_CONNECTED`, `HOST_IN_USE`.
pub fn delete_host(view: &impl View, name: &HostName) -> Result<(), Denial> {
    let host = known_host(view, "name", name)?;
    if let Some(what) = view.host_needed_for(name) {
        return Err(Denial::HostInUse { host: name.clone(), what });
    }
    if host.connected {
        return Err(Denial::HostConnected { host: name.clone() });
    }
    Ok(())
}

/// A guest that is not on the move and of which no other host keeps a replica; of one with disks the caller says what becomes of
/// them.
///
/// # Errors
/// `UNKNOWN_GUEST`, `ALREADY_MIGRATING`, `REPLICA_EXISTS`, `DISK_FATE_NEEDED`.
pub fn delete_guest(view: &impl View, name: &GuestName, fate: Option<DiskFate>) -> Result<DiskFate, Denial> {
    let guest = at_rest(view, "name", name)?;
    // One at its own host is becoming its disks, and goes as they do.
    match view.replicas().find(|it| it.guest == *name && it.host != guest.host) {
        Some(replica) => Err(Denial::GuestHasReplica { replica: replica.clone() }),
        None => disk_fate(name, guest.disks, fate),
    }
}

/// What becomes of a guest's disks, `disks` of them: nobody's data is deleted, or left to fill a host, by default. Where there are
/// none, nothing is deleted.
///
/// # Errors
/// `DISK_FATE_NEEDED`.
pub fn disk_fate(guest: &GuestName, disks: usize, fate: Option<DiskFate>) -> Result<DiskFate, Denial> {
    match fate {
        _ if disks == 0 => Ok(DiskFate::Keep),
        Some(fate) => Ok(fate),
        None => Err(Denial::DiskFateNeeded { guest: guest.clone(), disks }),
    }
}

/// An endpoint.
///
/// # Errors
/// `UNKNOWN_ENDPOINT`.
pub fn delete_endpoint(view: &impl View, name: &InterfaceName) -> Result<(), Denial> {
    match view.endpoint(name) {
        Some(_) => Ok(()),
        None => Err(Denial::UnknownEndpoint { name: name.clone() }),
    }
}
