//! Whose markers the gate waits for.

use std::net::Ipv4Addr;

use crate::{HostName, MarkerPeer, MarkerSecret};

/// The number in the markers of a host the gate does not wait for.
pub const UNCOUNTED_MARKER: u32 = 65_535;

/// Chooses the hosts whose markers one port's gate waits for, numbered from 0 in the order given.
///
/// A host other than the two ends counts when it is connected: it may send to the port at any time. The ends count
/// only when something else of theirs is on the network (`has_other_ports`): else nobody there can send.
/// `hosts`: every host that has the network, with its tunnel end point and whether its agent is connected. `secret` draws
/// one for each.
pub fn marker_peers(
    hosts: &[(HostName, Ipv4Addr, bool)],
    source: &HostName,
    destination: &HostName,
    has_other_ports: impl Fn(&HostName) -> bool,
    mut secret: impl FnMut() -> MarkerSecret,
) -> Vec<MarkerPeer> {
    let is_end = |host: &HostName| host == source || host == destination;
    let counted =
        hosts.iter().filter(|(host, _, connected)| if is_end(host) { has_other_ports(host) } else { *connected });
    let numbered = (0..UNCOUNTED_MARKER).zip(counted);
    let peer = |(index, (host, vtep, _)): (u32, &(HostName, Ipv4Addr, bool))| MarkerPeer {
        host: host.clone(),
        vtep: *vtep,
        index,
        secret: secret(),
    };
    numbered.map(peer).collect()
}
