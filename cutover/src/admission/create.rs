//! May it come into being?

use std::net::IpAddr;

use super::{Denial, Enrolment, HostFacts, Kind, NewEndpoint, NewGuest, NewPort, View};
use crate::{GuestName, HostName, MacAddr, Network, NetworkName};

/// A network: name and VNI must be free.
///
/// # Errors
/// `NAME_IN_USE`, `VNI_IN_USE`.
pub fn create_network(view: &impl View, network: &Network) -> Result<(), Denial> {
    if view.network(&network.name).is_some() {
        return Err(name_in_use("network.name", Kind::Network, network.name.as_str()));
    }
    match view.networks().find(|other| other.vni == network.vni) {
        Some(other) => Err(Denial::VniInUse { vni: network.vni, network: other.name.clone() }),
        None => Ok(()),
    }
}

/// An announced host: the name must be free.
///
/// # Errors
/// `NAME_IN_USE`.
pub fn create_host(view: &impl View, name: &HostName) -> Result<(), Denial> {
    if view.host(name).is_some() {
        return Err(name_in_use("name", Kind::Host, name.as_str()));
    }
    Ok(())
}

/// A host whose agent connects; `open`: hosts nobody announced may join.
///
/// # Errors
/// `HOST_NOT_ENROLLED`, `VTEP_IN_USE`, `PEER_ENDPOINT_IN_USE`.
pub fn enrol(view: &impl View, enrolment: &Enrolment, open: bool) -> Result<(), Denial> {
    if !open && view.host(&enrolment.host).is_none() {
        return Err(Denial::HostNotEnrolled { host: enrolment.host.clone() });
    }
    let others = || view.hosts().filter(|other| other.name != enrolment.host);
    if let Some(other) = others().find(|other| other.vtep == Some(enrolment.vtep)) {
        return Err(Denial::VtepInUse { vtep: enrolment.vtep, host: other.name });
    }
    let endpoint = &enrolment.peer_endpoint;
    match others().find(|other| other.peer_endpoint.as_ref() == Some(endpoint)) {
        Some(other) => Err(Denial::PeerEndpointInUse { endpoint: endpoint.clone(), host: other.name }),
        None => Ok(()),
    }
}

/// A guest: its host must be able to run it now, its ports must not collide with any other, nor with each other.
///
/// # Errors
/// `NAME_IN_USE`, `UNKNOWN_HOST`, `HOST_DOWN`, `HOST_PEER_ONLY`, `NOT_ENOUGH_MEMORY`, `DISKS_BEING_DELETED`, and those of its
/// ports: `UNKNOWN_NETWORK`, `MAC_IN_USE`, `IP_IN_USE`.
pub fn create_guest(view: &impl View, guest: &NewGuest, host: &HostName) -> Result<(), Denial> {
    if view.guest(&guest.name).is_some() {
        return Err(name_in_use("spec.name", Kind::Guest, guest.name.as_str()));
    }
    let facts = known_host(view, "host", host)?;
    can_run(&facts, "host", "spec.memory_kib", guest.memory_kib)?;
    has_no_old_disks(view, "spec.name", host, &guest.name)?;
    if guest.disks.iter().any(|disk| !disk.goes_along()) {
        // On shared storage another host may still be to delete what this guest would find.
        view.hosts().try_for_each(|other| has_no_old_disks(view, "spec.name", &other.name, &guest.name))?;
    }
    let mut before: Vec<&NewPort> = Vec::new();
    for (at, port) in guest.ports.iter().enumerate() {
        let field = format!("spec.ports[{at}]");
        port_is_free(view, &field, port)?;
        before.iter().try_for_each(|other| apart(&field, port, other))?;
        before.push(port);
    }
    Ok(())
}

/// An endpoint: its host must exist, its port must not collide with any other.
///
/// # Errors
/// `NAME_IN_USE`, `UNKNOWN_HOST`, `UNKNOWN_NETWORK`, `MAC_IN_USE`, `IP_IN_USE`.
pub fn create_endpoint(view: &impl View, endpoint: &NewEndpoint) -> Result<(), Denial> {
    if view.endpoint(&endpoint.name).is_some() {
        return Err(name_in_use("endpoint.name", Kind::Endpoint, endpoint.name.as_str()));
    }
    known_host(view, "endpoint.host", &endpoint.host)?;
    port_is_free(view, "endpoint.port", &endpoint.port)
}

/// The host, or `UNKNOWN_HOST`.
pub(super) fn known_host(view: &impl View, field: &str, host: &HostName) -> Result<HostFacts, Denial> {
    view.host(host).ok_or_else(|| Denial::UnknownHost { field: field.to_owned(), name: host.clone() })
}

/// Whether a host can take a guest of `memory_kib` now.
pub(super) fn can_run(host: &HostFacts, host_field: &str, memory_field: &str, memory_kib: u64) -> Result<(), Denial> {
    if !host.connected {
        return Err(Denial::HostDown { field: host_field.to_owned(), host: host.name.clone() });
    }
    if host.peer_only {
        return Err(Denial::HostPeerOnly { field: host_field.to_owned(), host: host.name.clone() });
    }
    if host.memory_free_kib() < memory_kib {
        return Err(Denial::NotEnoughMemory {
            field: memory_field.to_owned(),
            host: host.name.clone(),
            asked_kib: memory_kib,
            free_kib: host.memory_free_kib(),
            tests_kib: host.memory_of_tests_kib,
        });
    }
    Ok(())
}

/// Disks go by their guest's name: an order to delete some must not find those of another guest.
pub(super) fn has_no_old_disks(
    view: &impl View,
    field: &str,
    host: &HostName,
    guest: &GuestName,
) -> Result<(), Denial> {
    if view.deletes_disks(host, guest) {
        let (field, guest, host) = (field.to_owned(), guest.clone(), host.clone());
        return Err(Denial::DisksBeingDeleted { field, guest, host });
    }
    Ok(())
}

fn name_in_use(field: &str, kind: Kind, name: &str) -> Denial {
    Denial::NameInUse { field: field.to_owned(), kind, name: name.to_owned() }
}

/// Its network exists, and nobody there has its addresses.
fn port_is_free(view: &impl View, field: &str, port: &NewPort) -> Result<(), Denial> {
    if view.network(&port.network).is_none() {
        return Err(Denial::UnknownNetwork { field: format!("{field}.network"), name: port.network.clone() });
    }
    for used in view.ports().filter(|used| used.port.network == port.network) {
        let owner = || format!("{} {}", used.kind, used.owner);
        collide(field, port, used.port.mac, &used.port.ips, owner)?;
    }
    Ok(())
}

/// Two ports of one request do not collide.
fn apart(field: &str, port: &NewPort, other: &NewPort) -> Result<(), Denial> {
    if port.network != other.network {
        return Ok(());
    }
    let owner = || "another port of this request".to_owned();
    match other.mac {
        Some(mac) => collide(field, port, mac, &other.ips, owner),
        None => ip_collide(field, &port.network, &port.ips, &other.ips, owner),
    }
}

fn collide(
    field: &str,
    port: &NewPort,
    mac: MacAddr,
    ips: &[IpAddr],
    owner: impl Fn() -> String,
) -> Result<(), Denial> {
    if port.mac == Some(mac) {
        let network = port.network.clone();
        return Err(Denial::MacInUse { field: format!("{field}.mac"), mac, network, owner: owner() });
    }
    ip_collide(field, &port.network, &port.ips, ips, owner)
}

fn ip_collide(
    field: &str,
    network: &NetworkName,
    ips: &[IpAddr],
    used: &[IpAddr],
    owner: impl Fn() -> String,
) -> Result<(), Denial> {
    match ips.iter().enumerate().find(|(_, ip)| used.contains(ip)) {
        Some((at, ip)) => Err(Denial::IpInUse {
            field: format!("{field}.ips[{at}]"),
            ip: *ip,
            network: network.clone(),
            owner: owner(),
        }),
        None => Ok(()),
    }
}
