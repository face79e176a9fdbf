//! The plan of a migration: what both ends must agree on, with fresh secrets.

use std::collections::BTreeSet;

use rand::Rng;
use throughline_cutover::{
    CarryId, End, HostName, Limits, MacAddr, MarkerSecret, MigrationPlan, Port, PortPlan,
    admission::{Denial, Enrolment},
    marker_peers,
};
use uuid::Uuid;

use crate::record::{GuestRecord, Record};

/// What a plan is made from, apart from the record.
pub(crate) struct Wish<'a> {
    /// The guest to move.
    pub(crate) guest: &'a GuestRecord,
    /// Where to.
    pub(crate) destination: &'a HostName,
    /// What it may cost.
    pub(crate) limits: Limits,
    /// It is stopped, and arrives stopped.
    pub(crate) cold: bool,
    /// Disks arrive over no image.
    pub(crate) flatten: bool,
    /// Every host, with whether its agent is connected.
    pub(crate) hosts: &'a [(HostName, bool)],
}

/// Makes the plan of an admitted migration.
///
/// # Errors
/// `HOST_DOWN` if an end has never said where it is, `UNKNOWN_NETWORK` if a port's network is gone.
pub(crate) fn plan(record: &Record, wish: &Wish<'_>, rng: &mut impl Rng) -> Result<MigrationPlan, Denial> {
    let GuestRecord { spec, host, generation, .. } = wish.guest;
    let mut carry_ids = live_carry_ids(record);
    // A host that has never said where it is cannot have sent anything.
    let vtep = |host: &HostName| Some(record.hosts().get(host)?.enrolment.as_ref()?.vtep);
    let hosts: Vec<_> =
        wish.hosts.iter().filter_map(|(host, connected)| Some((host.clone(), vtep(host)?, *connected))).collect();
    let mut ports = Vec::with_capacity(spec.ports.len());
    for port in &spec.ports {
        let unknown = || Denial::UnknownNetwork { field: "guest".to_owned(), name: port.network.clone() };
        let network = record.networks().get(&port.network).ok_or_else(unknown)?;
        let carry_id = fresh_carry_id(&mut carry_ids, rng);
        let has_other_ports = |host: &HostName| has_other_ports(record, host, spec.name.as_str(), port);
        // There is no gate for them to open.
        let markers = match wish.cold {
            true => Vec::new(),
            false => marker_peers(&hosts, host, wish.destination, has_other_ports, || MarkerSecret::new(rng.random())),
        };
        ports.push(PortPlan { port: port.clone(), vni: network.vni, carry_id, marker_mac: random_mac(rng), markers });
    }
    Ok(MigrationPlan {
        id: Uuid::new_v4().to_string(),
        token: token(rng),
        guest: spec.clone(),
        generation: *generation,
        source: end(record, host)?,
        destination: end(record, wish.destination)?,
        ports,
        limits: wish.limits,
        cold: wish.cold,
        flatten: wish.flatten,
    })
}

/// Whether anything but the guest itself can send from `host` on the port's network.
fn has_other_ports(record: &Record, host: &HostName, guest: &str, port: &Port) -> bool {
    let guests = record.guests().values().filter(|other| other.host == *host && other.spec.name.as_str() != guest);
    let mut guest_ports = guests.flat_map(|other| &other.spec.ports);
    let mut endpoints = record.endpoints().values().filter(|endpoint| endpoint.host == *host);
    guest_ports.any(|other| other.network == port.network)
        || endpoints.any(|endpoint| endpoint.port.network == port.network)
}

fn end(record: &Record, host: &HostName) -> Result<End, Denial> {
    let down = || Denial::HostDown { field: "destination_host".to_owned(), host: host.clone() };
    let enrolment = record.hosts().get(host).and_then(|host| host.enrolment.as_ref());
    let Enrolment { host, vtep, peer_endpoint, .. } = enrolment.ok_or_else(down)?.clone();
    Ok(End { host, vtep, peer_endpoint })
}

fn live_carry_ids(record: &Record) -> BTreeSet<CarryId> {
    let live = record.migrations().values().filter(|migration| !migration.has_ended());
    live.flat_map(|migration| &migration.plan().ports).map(|port| port.carry_id).collect()
}

fn fresh_carry_id(taken: &mut BTreeSet<CarryId>, rng: &mut impl Rng) -> CarryId {
    loop {
        if let Ok(id) = CarryId::try_from(rng.random_range(1..=0xff_ffff_u32))
            && taken.insert(id)
        {
            return id;
        }
    }
}

/// Locally administered, not a group address.
fn random_mac(rng: &mut impl Rng) -> MacAddr {
    let mut octets: [u8; 6] = rng.random();
    octets[0] = octets[0] & 0xfc | 0x02;
    MacAddr::new(octets)
}

/// A secret that two hosts are told, and one says to the other.
pub(crate) fn token(rng: &mut impl Rng) -> String {
    let secret: [u8; 32] = rng.random();
    secret.iter().map(|byte| format!("{byte:02x}")).collect()
}
