//! A port has moved: this host's entries lead to the new owner, then markers go down the old path.

use std::{net::Ipv4Addr, time::Duration};

use throughline_cutover::{
    Binding, CarryId, Failure, Generation, MacAddr, MarkerPeer, MarkerSecret, UNCOUNTED_MARKER, Vni, fence,
};
use throughline_netlink::{BindingWanted, MarkerOrder, Path};
use throughline_wire::v1;
use tracing::info;

use crate::{host::Host, resident::network_failure};

/// After the entry was replaced a frame may still be between its look-up and the wire, on another processor. Bottom
/// halves do not sleep, so this is ample.
const LOOKUPS_END: Duration = Duration::from_micros(300);

/// One port's flip on this host.
#[derive(Debug, Clone)]
pub struct Flip {
    /// Its network.
    pub vni: Vni,
    /// Where it is now, seen from here.
    pub binding: BindingWanted,
    /// Generation of the new ownership.
    pub generation: Generation,
    /// Where it was.
    pub old_vtep: Ipv4Addr,
    /// Where markers are addressed.
    pub marker_mac: MacAddr,
    /// What markers name.
    pub carry_id: CarryId,
    /// In whose name this host marks; `None`: the gate does not wait for this host.
    pub marks_as: Option<MarksAs>,
}

/// What makes a host's markers its own.
#[derive(Debug, Clone, Copy)]
pub struct MarksAs {
    /// Its number in the migration.
    pub peer: u16,
    /// What its tags are made from.
    pub secret: MarkerSecret,
}

impl MarksAs {
    /// As the plan's peer.
    pub fn peer(peer: &MarkerPeer) -> Option<Self> {
        Some(Self { peer: peer.index.try_into().ok()?, secret: peer.secret })
    }
}

/// Replaces the entries, reads them back, sends the markers.
///
/// # Errors
/// `STALE_GENERATION`, or the kernel's refusal.
pub async fn flip(host: &Host, order: &Flip) -> Result<(), Failure> {
    let old_is_here = order.old_vtep == host.config.vtep;
    let leads_back = order.marks_as.is_some() && !old_is_here;
    let flipped = async {
        if leads_back {
            let old_path = Path::Remote { vtep: order.old_vtep };
            host.netlink.set_marker(order.vni, order.marker_mac, &old_path).await.map_err(network_failure)?;
        }
        write_entries(host, order).await?;
        send_markers(host, order).await
    };
    let flipped = flipped.await;
    if leads_back {
        host.netlink.remove_marker(order.vni, order.marker_mac).await.map_err(network_failure)?;
    }
    flipped
}

/// One writer at a time, and no longer than it takes to write: other ports' flips wait for this one.
async fn write_entries(host: &Host, order: &Flip) -> Result<(), Failure> {
    let _writing = host.bindings.writing.lock().await;
    host.bindings.advance(order.vni, &order.binding, order.generation)?;
    host.netlink.set_binding(order.vni, &order.binding).await.map_err(network_failure)
}

async fn send_markers(host: &Host, order: &Flip) -> Result<(), Failure> {
    let Some(MarksAs { peer, secret }) = order.marks_as else { return Ok(()) };
    tokio::time::sleep(LOOKUPS_END).await;
    let markers = MarkerOrder { marker_mac: order.marker_mac, carry_id: order.carry_id, peer, secret };
    host.netlink.send_markers(order.vni, &markers).await.map_err(network_failure)
}

/// Obeys a `Rebind`; the answer is for the controller.
pub async fn rebind(host: &Host, rebind: v1::Rebind) -> v1::RebindAck {
    let rebind_id = rebind.rebind_id.clone();
    match try_rebind(host, rebind).await {
        Ok(()) => v1::RebindAck { rebind_id, applied: true, failure: None },
        Err(failure) => v1::RebindAck { rebind_id, applied: false, failure: Some(failure.into()) },
    }
}

async fn try_rebind(host: &Host, rebind: v1::Rebind) -> Result<(), Failure> {
    let order = read(rebind)?;
    if let Some(resident) = host.resident_on(order.vni, Some(order.binding.mac)).await
        && resident.generation() > order.generation
    {
        return Err(fence::stale_generation(&resident.spec.name, order.generation, resident.generation()));
    }
    host.gates.sender_moves(order.vni, order.binding.mac);
    flip(host, &order).await?;
    info!(mac = %order.binding.mac, path = ?order.binding.path, generation = %order.generation, "rebound");
    Ok(())
}

/// What a `Rebind` orders.
///
/// # Errors
/// `INVALID_FIELD`, which names the field.
pub fn read(rebind: v1::Rebind) -> Result<Flip, Failure> {
    let invalid = |error: throughline_wire::InvalidField| Failure::new("INVALID_FIELD", error.to_string());
    let binding = rebind.binding.ok_or_else(|| Failure::new("INVALID_FIELD", "binding is missing"))?;
    let binding = Binding::try_from(binding).map_err(invalid)?;
    let vtep = binding.vtep.ok_or_else(|| Failure::new("INVALID_FIELD", "binding.vtep is missing"))?;
    let parsed = |what: &str, error: &dyn std::fmt::Display| Failure::new("INVALID_FIELD", format!("{what} {error}"));
    let marks_as = match rebind.marker_index {
        UNCOUNTED_MARKER => None,
        index => {
            let peer = u16::try_from(index).map_err(|error| parsed("marker_index", &error))?;
            let secret = MarkerSecret::try_from(rebind.marker_secret.as_slice());
            Some(MarksAs { peer, secret: secret.map_err(|error| parsed("marker_secret", &error))? })
        }
    };
    Ok(Flip {
        vni: binding.vni,
        binding: BindingWanted { mac: binding.port.mac, ips: binding.port.ips, path: Path::Remote { vtep } },
        generation: binding.generation,
        old_vtep: rebind.old_vtep.parse().map_err(|error| parsed("old_vtep", &error))?,
        marker_mac: rebind.marker_mac.parse().map_err(|error| parsed("marker_mac", &error))?,
        carry_id: CarryId::try_from(rebind.carry_id).map_err(|error| parsed("carry_id", &error))?,
        marks_as,
    })
}
