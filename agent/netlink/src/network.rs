//! Networks: a bridge, a VXLAN device, and every entry that says who is where.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_route::{
    link::{BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteProtocol,
};
use throughline_cutover::{MacAddr, Vni};
use tracing::debug;

use crate::{
    Changes, Error, Netlink, NetworkWanted, Path, Result,
    diff::{Found, Op, Tagged, Wanted, diff},
    link::{Link, PortSettings},
    names,
    netlink::Segment,
    quiet::Role,
    verbs::{FLOOD, PROTOCOL},
    vxlan::{note, tenant},
};

/// The tunnel's bridge port: ARP and ND for known addresses are answered here instead of sent through it.
const TUNNEL_PORT: PortSettings = PortSettings { learning: false, neigh_suppress: true };

impl Netlink {
    /// Makes a network as it should be: devices, flood list, bindings. What is right already is not touched.
    ///
    /// Whatever can be done is done, also when a step fails. A local binding whose device does not exist (yet) is
    /// reported as [`Error::NoDevice`], the entries of its MAC address are left as they were.
    ///
    /// # Errors
    /// [`Error::Foreign`] when someone else's device has one of our names; the kernel's refusals, all of them.
    pub async fn ensure_network(&self, wanted: &NetworkWanted) -> Result<Changes> {
        let mut changes = Changes::default();
        let segment = self.ensure_devices(wanted, &mut changes.devices).await?;
        let mut errors = Vec::new();
        let entries = self.resolve(wanted, segment, &mut errors).await;
        let found = self.entries(wanted.vni, segment).await?;
        for op in diff(&entries, &found) {
            match self.perform(wanted.vni, segment, op).await {
                Ok(()) if op.removes() => changes.entries_removed += 1,
                Ok(()) => changes.entries_set += 1,
                Err(error) => errors.push(error),
            }
        }
        Error::collected(errors)?;
        if !changes.is_empty() {
            debug!(vni = %wanted.vni, ?changes, "network reconciled");
        }
        Ok(changes)
    }

    /// Removes a network's devices, and with them every entry. Gone already: nothing happens.
    ///
    /// # Errors
    /// [`Error::Foreign`]; the kernel's refusals, of both devices.
    pub async fn remove_network(&self, vni: Vni) -> Result<()> {
        self.forget(vni);
        self.forget_markers(vni);
        let mut errors = Vec::new();
        for (name, kind, expected) in
            [(names::vxlan(vni), InfoKind::Vxlan, "a VXLAN device"), (names::bridge(vni), InfoKind::Bridge, "a bridge")]
        {
            errors.extend(self.remove_device(&name, kind, expected).await.err());
        }
        Error::collected(errors)
    }

    /// The networks of which this host has a device, wholly or in part.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn list_networks(&self) -> Result<BTreeSet<Vni>> {
        let mut networks = BTreeSet::new();
        for kind in [InfoKind::Bridge, InfoKind::Vxlan] {
            let links =
                self.verbs.links_of_kind(kind).await.map_err(Error::device("list", "bridges and VXLAN devices"))?;
            networks.extend(links.iter().filter_map(|link| names::network_of(&link.name)));
        }
        Ok(networks)
    }

    async fn remove_device(&self, name: &str, kind: InfoKind, expected: &'static str) -> Result<()> {
        match self.find(name).await? {
            None => Ok(()),
            Some(link) if link.kind == Some(kind) => self.delete_link(name).await.map(drop),
            Some(_) => Err(Error::Foreign { device: name.to_owned(), expected }),
        }
    }

    async fn ensure_devices(&self, wanted: &NetworkWanted, changed: &mut Vec<String>) -> Result<Segment> {
        let mtu = wanted.mtu.get();
        let bridge = self.ensure_bridge(wanted, changed).await?;
        let settings = tenant(wanted.vni, wanted.local_vtep);
        let vxlan = self.ensure_vxlan(&names::vxlan(wanted.vni), settings, mtu, changed).await?;
        let segment = Segment { bridge: bridge.index, vxlan: vxlan.index };
        if self.plug(&vxlan, segment, TUNNEL_PORT).await? {
            note(changed, &vxlan.name);
        }
        self.ensure_up(&vxlan, changed).await?;
        self.ensure_up(&bridge, changed).await?;
        self.remember(wanted.vni, segment);
        Ok(segment)
    }

    async fn ensure_bridge(&self, wanted: &NetworkWanted, changed: &mut Vec<String>) -> Result<Link> {
        let name = names::bridge(wanted.vni);
        let mtu = wanted.mtu.get();
        let link = match self.find(&name).await? {
            None => self.create(&name, bridge_attributes(&name, wanted.local_vtep, mtu), changed).await?,
            Some(link) if link.kind == Some(InfoKind::Bridge) => link,
            Some(_) => return Err(Error::Foreign { device: name, expected: "a bridge" }),
        };
        if link.bridge.stp {
            let change = vec![LinkAttribute::LinkInfo(bridge_info(link.bridge.multicast_snooping))];
            self.verbs.change_link(link.index, change).await.map_err(Error::device("set options of", &name))?;
            note(changed, &name);
        }
        self.ensure_basics(link, mtu, Role::Bridge, changed).await
    }

    /// Names to indexes. What cannot be resolved is reported and spared.
    async fn resolve(&self, wanted: &NetworkWanted, segment: Segment, errors: &mut Vec<Error>) -> Wanted {
        let mut entries = Wanted { flood: wanted.flood.clone(), spared: self.markers(wanted.vni), ..Wanted::default() };
        for binding in &wanted.bindings {
            entries.neighbours.extend(binding.ips.iter().map(|&ip| (ip, binding.mac)));
            match &binding.path {
                Path::Remote { vtep } => {
                    entries.remotes.insert(binding.mac, *vtep);
                    entries.forwards.insert(binding.mac, segment.vxlan);
                }
                Path::Local { device } => match self.link_index(device).await {
                    Ok(port) => {
                        entries.forwards.insert(binding.mac, port);
                    }
                    Err(error) => {
                        entries.spared.insert(binding.mac);
                        errors.push(error);
                    }
                },
            }
        }
        entries
    }

    async fn entries(&self, vni: Vni, segment: Segment) -> Result<Found> {
        let entry = |entry: &str| {
            let entry = entry.to_owned();
            move |source| Error::Entry { doing: "list", entry, vni, source }
        };
        let forwarding = self.verbs.forwarding(segment.bridge).await.map_err(entry("forwarding entries"))?;
        let neighbours = self.verbs.neighbours(segment.bridge).await.map_err(entry("neighbours"))?;
        Ok(found(segment, &forwarding, &neighbours))
    }

    async fn perform(&self, vni: Vni, segment: Segment, op: Op) -> Result<()> {
        let Segment { bridge, vxlan } = segment;
        let done = match op {
            Op::AddFlood { vtep } => self.verbs.add_flood(vxlan, vtep).await,
            Op::SetRemote { mac, vtep } => self.verbs.set_remote(vxlan, mac, vtep).await,
            Op::SetForward { mac, port } => self.verbs.set_forward(port, mac).await,
            Op::SetNeighbour { ip, mac } => self.verbs.set_neighbour(bridge, ip, mac).await,
            Op::RemoveNeighbour { ip } => self.verbs.remove_neighbour(bridge, ip).await,
            Op::RemoveForward { mac, port } => self.verbs.remove_forward(port, mac).await,
            Op::RemoveRemote { mac } => self.verbs.remove_remote(vxlan, mac, None).await,
            Op::RemoveFlood { vtep } => self.verbs.remove_remote(vxlan, FLOOD, Some(vtep)).await,
        };
        match done {
            // It went with its device between the list and now.
            Err(cause) if op.removes() && cause.is_absent() => Ok(()),
            done => done.map_err(|source| {
                let doing = if op.removes() { "remove" } else { "set" };
                Error::Entry { doing, entry: op.to_string(), vni, source }
            }),
        }
    }
}

/// Without multicast snooping, unless an operator wants it: a bridge that snoops speaks in its tenant's segment (it joins the
/// groups of all snoopers), and without a querier it floods all the same.
fn bridge_info(multicast_snooping: bool) -> Vec<LinkInfo> {
    let data = vec![
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::MulticastSnooping(multicast_snooping),
        // Else a kernel with VLAN filtering doubles every entry, once for VLAN 1.
        InfoBridge::VlanDefaultPvid(0),
    ];
    vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(data))]
}

fn bridge_attributes(name: &str, vtep: Ipv4Addr, mtu: u32) -> Vec<LinkAttribute> {
    let [a, b, c, d] = vtep.octets();
    vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        // Its own, else the kernel gives it the least of its ports', which come and go. Locally administered.
        LinkAttribute::Address(vec![0x06, 0x54, a, b, c, d]),
        LinkAttribute::LinkInfo(bridge_info(false)),
    ]
}

fn found(segment: Segment, forwarding: &[NeighbourMessage], neighbours: &[NeighbourMessage]) -> Found {
    let mut found = Found::default();
    for entry in forwarding.iter().map(Entry::from).filter(|entry| !entry.vlan) {
        let Some(mac) = entry.mac else { continue };
        if entry.of_device && entry.port == segment.vxlan {
            match entry.vtep {
                Some(vtep) if mac == FLOOD => drop(found.flood.insert(vtep)),
                Some(vtep) => drop(found.remotes.insert(mac, Tagged { value: vtep, ours: entry.ours })),
                None => {}
            }
        } else if entry.bridge == Some(segment.bridge) && !entry.own_address {
            found.forwards.insert(mac, Tagged { value: entry.port, ours: entry.ours });
        }
    }
    found.neighbours = neighbours.iter().filter(|message| message.header.ifindex == segment.bridge).fold(
        BTreeMap::new(),
        |mut all, message| {
            all.extend(neighbour(message));
            all
        },
    );
    found
}

/// A forwarding entry, read.
pub(crate) struct Entry {
    pub(crate) port: u32,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) vtep: Option<Ipv4Addr>,
    bridge: Option<u32>,
    of_device: bool,
    own_address: bool,
    vlan: bool,
    pub(crate) ours: bool,
}

impl From<&NeighbourMessage> for Entry {
    fn from(message: &NeighbourMessage) -> Self {
        let mut entry = Self {
            port: message.header.ifindex,
            mac: hardware_address(message),
            vtep: None,
            bridge: None,
            of_device: message.header.flags.contains(NeighbourFlags::Own),
            own_address: message.header.state == NeighbourState::Permanent,
            vlan: false,
            ours: message.header.flags.contains(NeighbourFlags::ExtLearned),
        };
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Other(octets)) => {
                    entry.vtep = <[u8; 4]>::try_from(octets.as_slice()).ok().map(Ipv4Addr::from);
                }
                NeighbourAttribute::Controller(bridge) => entry.bridge = Some(*bridge),
                NeighbourAttribute::Vlan(_) => entry.vlan = true,
                _ => {}
            }
        }
        entry
    }
}

/// A neighbour, read: its address and, if it is for good, what it resolves to.
pub(crate) fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Tagged<Option<MacAddr>>)> {
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    let ours = message.attributes.contains(&NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    let permanent = message.header.state == NeighbourState::Permanent;
    Some((ip, Tagged { value: hardware_address(message).filter(|_| permanent), ours }))
}

fn hardware_address(message: &NeighbourMessage) -> Option<MacAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => <[u8; 6]>::try_from(octets.as_slice()).ok().map(MacAddr::new),
        _ => None,
    })
}
