//! Endpoints: a veth pair for what is not a guest, one end in the network's bridge, the other named and addressed.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use throughline_cutover::{InterfaceName, MacAddr, Mtu, PortId, Vni};

use crate::{
    Changes, Error, Netlink, Result, device::PLAIN_PORT, link::Link, link_local::implied_link_local, names,
    quiet::Role, vxlan::note,
};

/// IPv6 subnets on a link are of this length (RFC 4291 §2.5.1).
const IPV6_PREFIX: u8 = 64;

/// An endpoint as this host should have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointWanted {
    /// Name of the end that is used.
    pub name: InterfaceName,
    /// Its network.
    pub vni: Vni,
    /// Its port; names the end in the bridge.
    pub port: PortId,
    /// MAC address of the end that is used.
    pub mac: MacAddr,
    /// Its IP addresses.
    pub ips: Vec<IpAddr>,
    /// Prefix length of the IPv4 ones; IPv6 ones have 64.
    pub prefix_len: u8,
    /// Largest payload of a frame, bytes.
    pub mtu: Mtu,
}

impl Netlink {
    /// Makes an endpoint as it should be; usable when this returns: no duplicate address detection. An end that was
    /// moved to another namespace by whoever uses it is left alone there.
    ///
    /// # Errors
    /// [`Error::NoNetwork`]; [`Error::Foreign`] when either name belongs to another device; the kernel's refusal.
    pub async fn create_endpoint(&self, wanted: &EndpointWanted) -> Result<Changes> {
        let mut changes = Changes::default();
        let changed = &mut changes.devices;
        let segment = self.segment(wanted.vni).await?;
        let inner = self.ensure_pair(wanted, changed).await?;
        if self.plug(&inner, segment, PLAIN_PORT).await? {
            note(changed, &inner.name);
        }
        self.ensure_up(&inner, changed).await?;
        if let Some(used) = self.find(wanted.name.as_str()).await? {
            self.ensure_used_end(wanted, &used, changed).await?;
        }
        Ok(changes)
    }

    /// Removes an endpoint: both ends, wherever the other one is. Returns whether there was one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_endpoint(&self, port: PortId) -> Result<bool> {
        self.delete_link(&names::endpoint(port)).await
    }

    /// Ports of the endpoints this host has.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn list_endpoints(&self) -> Result<BTreeSet<PortId>> {
        let links = self.verbs.links_of_kind(InfoKind::Veth).await.map_err(Error::device("list", "veth devices"))?;
        Ok(links.iter().filter_map(|link| names::endpoint_of(&link.name)).collect())
    }

    /// The end in the bridge, made with its other end if it is not there.
    async fn ensure_pair(&self, wanted: &EndpointWanted, changed: &mut Vec<String>) -> Result<Link> {
        let name = names::endpoint(wanted.port);
        let link = match self.find(&name).await? {
            Some(link) if link.kind == Some(InfoKind::Veth) => link,
            Some(_) => return Err(Error::Foreign { device: name, expected: "an endpoint's veth device" }),
            None if self.find(wanted.name.as_str()).await?.is_some() => {
                let device = wanted.name.to_string();
                let expected = "the endpoint of that name (its other end is missing)";
                return Err(Error::Foreign { device, expected });
            }
            None => self.create(&name, pair_attributes(&name, wanted), changed).await?,
        };
        self.ensure_basics(link, wanted.mtu.get(), Role::Passage, changed).await
    }

    async fn ensure_used_end(&self, wanted: &EndpointWanted, used: &Link, changed: &mut Vec<String>) -> Result<()> {
        let name = used.name.as_str();
        if used.kind != Some(InfoKind::Veth) || used.mac != Some(wanted.mac) {
            return Err(Error::Foreign {
                device: name.to_owned(),
                expected: "the endpoint of that name and MAC address",
            });
        }
        if used.mtu != wanted.mtu.get() {
            let change = vec![LinkAttribute::Mtu(wanted.mtu.get())];
            self.verbs.change_link(used.index, change).await.map_err(Error::device("set the MTU of", name))?;
            note(changed, name);
        }
        if !used.up && used.no_addresses == Some(false) {
            // The link-local address is added below, usable at once; the kernel's would be tentative for a second.
            let done = self.verbs.stop_address_generation(used.index).await;
            done.map_err(Error::device("turn off IPv6 address generation on", name))?;
        }
        self.ensure_up(used, changed).await?;
        let present = self.verbs.addresses(used.index).await.map_err(Error::device("list addresses of", name))?;
        for ip in addresses(wanted).filter(|ip| !present.contains(ip)) {
            let prefix = if ip.is_ipv4() { wanted.prefix_len } else { IPV6_PREFIX };
            self.verbs.add_address(used.index, ip, prefix).await.map_err(Error::device("add an address to", name))?;
            note(changed, name);
        }
        Ok(())
    }
}

fn addresses(wanted: &EndpointWanted) -> impl Iterator<Item = IpAddr> {
    let link_local = implied_link_local(wanted.mac, &wanted.ips).map(IpAddr::V6);
    link_local.into_iter().chain(wanted.ips.iter().copied())
}

fn pair_attributes(name: &str, wanted: &EndpointWanted) -> Vec<LinkAttribute> {
    let mut used = LinkMessage::default();
    used.attributes = vec![
        LinkAttribute::IfName(wanted.name.to_string()),
        LinkAttribute::Address(wanted.mac.octets().to_vec()),
        LinkAttribute::Mtu(wanted.mtu.get()),
    ];
    let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(used)))];
    vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(wanted.mtu.get()), LinkAttribute::LinkInfo(info)]
}
