//! The difference between the entries a network should have and those it has. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use throughline_cutover::MacAddr;

/// An entry in the kernel, and whether it bears our tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tagged<T> {
    pub(crate) value: T,
    pub(crate) ours: bool,
}

/// Entries as the kernel has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where the VXLAN device floods; all of it is ours, the device is.
    pub(crate) flood: BTreeSet<Ipv4Addr>,
    /// The VXLAN device's own entries.
    pub(crate) remotes: BTreeMap<MacAddr, Tagged<Ipv4Addr>>,
    /// The bridge's entries: interface index of the port.
    pub(crate) forwards: BTreeMap<MacAddr, Tagged<u32>>,
    /// Neighbours on the bridge; `None`: not resolved for good.
    pub(crate) neighbours: BTreeMap<IpAddr, Tagged<Option<MacAddr>>>,
}

/// Entries as they should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) flood: BTreeSet<Ipv4Addr>,
    pub(crate) remotes: BTreeMap<MacAddr, Ipv4Addr>,
    pub(crate) forwards: BTreeMap<MacAddr, u32>,
    pub(crate) neighbours: BTreeMap<IpAddr, MacAddr>,
    /// MAC addresses whose forwarding must not be touched although no binding names them: markers, and bindings whose
    /// device is not there yet.
    pub(crate) spared: BTreeSet<MacAddr>,
}

/// One modifying message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    AddFlood { vtep: Ipv4Addr },
    SetRemote { mac: MacAddr, vtep: Ipv4Addr },
    SetForward { mac: MacAddr, port: u32 },
    SetNeighbour { ip: IpAddr, mac: MacAddr },
    RemoveNeighbour { ip: IpAddr },
    RemoveForward { mac: MacAddr, port: u32 },
    RemoveRemote { mac: MacAddr },
    RemoveFlood { vtep: Ipv4Addr },
}

impl Op {
    pub(crate) fn removes(self) -> bool {
        matches!(
            self,
            Self::RemoveNeighbour { .. }
                | Self::RemoveForward { .. }
                | Self::RemoveRemote { .. }
                | Self::RemoveFlood { .. }
        )
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddFlood { vtep } | Self::RemoveFlood { vtep } => write!(f, "flood entry dst {vtep}"),
            Self::SetRemote { mac, vtep } => write!(f, "VXLAN entry {mac} dst {vtep}"),
            Self::RemoveRemote { mac } => write!(f, "VXLAN entry {mac}"),
            Self::SetForward { mac, port } | Self::RemoveForward { mac, port } => {
                write!(f, "bridge entry {mac} to interface {port}")
            }
            Self::SetNeighbour { ip, mac } => write!(f, "neighbour {ip} lladdr {mac}"),
            Self::RemoveNeighbour { ip } => write!(f, "neighbour {ip}"),
        }
    }
}

/// What to do, in this order: a MAC address always leads somewhere while it changes, so what is new is there before the
/// bridge points to it, and what is old goes last.
pub(crate) fn diff(wanted: &Wanted, found: &Found) -> Vec<Op> {
    let mut ops = additions(wanted, found);
    ops.extend(removals(wanted, found));
    ops
}

fn additions(wanted: &Wanted, found: &Found) -> Vec<Op> {
    let flood = wanted.flood.difference(&found.flood).map(|&vtep| Op::AddFlood { vtep });
    // The kernel keeps the tag of a VXLAN entry as it was first made, so only the destination counts.
    let remotes = wanted
        .remotes
        .iter()
        .filter(|(mac, vtep)| found.remotes.get(mac).is_none_or(|entry| entry.value != **vtep))
        .map(|(&mac, &vtep)| Op::SetRemote { mac, vtep });
    let forwards = wanted
        .forwards
        .iter()
        .filter(|(mac, port)| found.forwards.get(mac) != Some(&Tagged { value: **port, ours: true }))
        .map(|(&mac, &port)| Op::SetForward { mac, port });
    let neighbours = wanted
        .neighbours
        .iter()
        .filter(|(ip, mac)| found.neighbours.get(ip) != Some(&Tagged { value: Some(**mac), ours: true }))
        .map(|(&ip, &mac)| Op::SetNeighbour { ip, mac });
    flood.chain(remotes).chain(forwards).chain(neighbours).collect()
}

fn removals(wanted: &Wanted, found: &Found) -> Vec<Op> {
    let neighbours = found
        .neighbours
        .iter()
        .filter(|(ip, entry)| entry.ours && !wanted.neighbours.contains_key(ip))
        .map(|(&ip, _)| Op::RemoveNeighbour { ip });
    let forwards = found
        .forwards
        .iter()
        .filter(|(mac, entry)| entry.ours && !wanted.forwards.contains_key(mac) && !wanted.spared.contains(mac))
        .map(|(&mac, entry)| Op::RemoveForward { mac, port: entry.value });
    let remotes = found
        .remotes
        .iter()
        .filter(|(mac, entry)| entry.ours && !wanted.remotes.contains_key(mac) && !wanted.spared.contains(mac))
        .map(|(&mac, _)| Op::RemoveRemote { mac });
    let flood = found.flood.difference(&wanted.flood).map(|&vtep| Op::RemoveFlood { vtep });
    neighbours.chain(forwards).chain(remotes).chain(flood).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNEL: u32 = 7;
    const TAP: u32 = 9;
    const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last])
    }

    fn ours<T>(value: T) -> Tagged<T> {
        Tagged { value, ours: true }
    }

    fn foreign<T>(value: T) -> Tagged<T> {
        Tagged { value, ours: false }
    }

    fn remote(vtep: Ipv4Addr) -> Wanted {
        Wanted {
            flood: [vtep].into(),
            remotes: [(mac(1), vtep)].into(),
            forwards: [(mac(1), TUNNEL)].into(),
            neighbours: [(IP, mac(1))].into(),
            spared: BTreeSet::new(),
        }
    }

    fn as_kernel(wanted: &Wanted) -> Found {
        Found {
            flood: wanted.flood.clone(),
            remotes: wanted.remotes.iter().map(|(&m, &v)| (m, ours(v))).collect(),
            forwards: wanted.forwards.iter().map(|(&m, &p)| (m, ours(p))).collect(),
            neighbours: wanted.neighbours.iter().map(|(&i, &m)| (i, ours(Some(m)))).collect(),
        }
    }

    #[test]
    fn nothing_to_do_when_all_is_there() {
        let wanted = remote(THERE);
        assert_eq!(diff(&wanted, &as_kernel(&wanted)), []);
    }

    #[test]
    fn an_empty_network_gets_everything_destination_before_pointer() {
        assert_eq!(
            diff(&remote(THERE), &Found::default()),
            [
                Op::AddFlood { vtep: THERE },
                Op::SetRemote { mac: mac(1), vtep: THERE },
                Op::SetForward { mac: mac(1), port: TUNNEL },
                Op::SetNeighbour { ip: IP, mac: mac(1) },
            ]
        );
    }

    #[test]
    fn a_moved_binding_is_one_replace_never_a_removal() {
        let ops = diff(&remote(THERE), &as_kernel(&remote(HERE)));
        assert_eq!(
            ops,
            [Op::AddFlood { vtep: THERE }, Op::SetRemote { mac: mac(1), vtep: THERE }, Op::RemoveFlood { vtep: HERE }]
        );
    }

    #[test]
    fn a_binding_that_comes_home_points_to_the_tap_before_its_tunnel_entry_goes() {
        let wanted = Wanted { forwards: [(mac(1), TAP)].into(), remotes: BTreeMap::new(), ..remote(THERE) };
        assert_eq!(
            diff(&wanted, &as_kernel(&remote(THERE))),
            [Op::SetForward { mac: mac(1), port: TAP }, Op::RemoveRemote { mac: mac(1) }]
        );
    }

    #[test]
    fn unwanted_entries_go_only_if_ours_and_not_spared() {
        let mut found = Found::default();
        for (last, tagged) in [(1, ours(THERE)), (2, foreign(THERE)), (3, ours(THERE))] {
            found.remotes.insert(mac(last), tagged);
            found.forwards.insert(mac(last), Tagged { value: TUNNEL, ours: tagged.ours });
        }
        found.neighbours.insert(IP, foreign(Some(mac(2))));
        let wanted = Wanted { spared: [mac(3)].into(), ..Wanted::default() };
        assert_eq!(
            diff(&wanted, &found),
            [Op::RemoveForward { mac: mac(1), port: TUNNEL }, Op::RemoveRemote { mac: mac(1) }]
        );
    }

    #[test]
    fn a_wanted_address_is_taken_over_from_a_stranger() {
        let wanted = remote(THERE);
        let mut found = as_kernel(&wanted);
        found.forwards.insert(mac(1), foreign(TUNNEL));
        found.neighbours.insert(IP, Tagged { value: None, ours: true });
        assert_eq!(
            diff(&wanted, &found),
            [Op::SetForward { mac: mac(1), port: TUNNEL }, Op::SetNeighbour { ip: IP, mac: mac(1) }]
        );
    }
}
