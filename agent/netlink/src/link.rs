//! A device as the kernel describes it: the few attributes this crate looks at, out of RTM_NEWLINK.

use std::net::Ipv4Addr;

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use throughline_cutover::MacAddr;

/// What a bridge was made with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BridgeSettings {
    pub(crate) stp: bool,
    pub(crate) multicast_snooping: bool,
}

/// What a VXLAN device was made with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VxlanSettings {
    pub(crate) id: u32,
    pub(crate) local: Option<Ipv4Addr>,
    pub(crate) port: u16,
    pub(crate) learning: bool,
    pub(crate) external: bool,
}

/// How a bridge port behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PortSettings {
    pub(crate) learning: bool,
    pub(crate) neigh_suppress: bool,
}

/// A device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) queue_len: u32,
    pub(crate) qdisc: String,
    pub(crate) mac: Option<MacAddr>,
    /// Interface index of the bridge it is in.
    pub(crate) master: Option<u32>,
    /// The kernel generates no IPv6 address on it; `None`: it has no IPv6 at all.
    pub(crate) no_addresses: Option<bool>,
    /// Absent when the kernel was asked to leave statistics out.
    pub(crate) tx_dropped: Option<u64>,
    pub(crate) bridge: BridgeSettings,
    pub(crate) vxlan: VxlanSettings,
    pub(crate) port: PortSettings,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link =
            Self { index: message.header.index, up: message.header.flags.contains(LinkFlags::Up), ..Self::default() };
        for attribute in message.attributes {
            link.take(attribute);
        }
        link
    }
}

impl Link {
    fn take(&mut self, attribute: LinkAttribute) {
        match attribute {
            LinkAttribute::IfName(name) => self.name = name,
            LinkAttribute::Mtu(mtu) => self.mtu = mtu,
            LinkAttribute::TxQueueLen(length) => self.queue_len = length,
            LinkAttribute::Qdisc(qdisc) => self.qdisc = qdisc,
            LinkAttribute::Address(octets) => self.mac = octets.try_into().ok().map(MacAddr::new),
            LinkAttribute::Controller(master) => self.master = Some(master),
            LinkAttribute::Stats64(stats) => self.tx_dropped = Some(stats.tx_dropped),
            LinkAttribute::AfSpecUnspec(families) => {
                self.no_addresses = families.iter().find_map(no_addresses);
            }
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| self.take_info(info)),
            _ => {}
        }
    }

    fn take_info(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind),
            LinkInfo::Data(InfoData::Bridge(settings)) => self.bridge = bridge(&settings),
            LinkInfo::Data(InfoData::Vxlan(settings)) => self.vxlan = vxlan(&settings),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)) => self.port = port(&settings),
            _ => {}
        }
    }
}

fn no_addresses(family: &AfSpecUnspec) -> Option<bool> {
    let AfSpecUnspec::Inet6(attributes) = family else { return None };
    Some(attributes.contains(&AfSpecInet6::AddrGenMode(In6AddrGenMode::None)))
}

fn bridge(settings: &[InfoBridge]) -> BridgeSettings {
    let mut bridge = BridgeSettings::default();
    for setting in settings {
        match setting {
            InfoBridge::StpState(state) => bridge.stp = *state != BridgeStpState::Disabled,
            InfoBridge::MulticastSnooping(on) => bridge.multicast_snooping = *on,
            _ => {}
        }
    }
    bridge
}

fn vxlan(settings: &[InfoVxlan]) -> VxlanSettings {
    let mut vxlan = VxlanSettings::default();
    for setting in settings {
        match setting {
            InfoVxlan::Id(id) => vxlan.id = *id,
            InfoVxlan::Local(local) => vxlan.local = Some(*local),
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::CollectMetadata(on) => vxlan.external = *on,
            _ => {}
        }
    }
    vxlan
}

fn port(settings: &[InfoBridgePort]) -> PortSettings {
    let mut port = PortSettings::default();
    for setting in settings {
        match setting {
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::NeighSupress(on) => port.neigh_suppress = *on,
            _ => {}
        }
    }
    port
}
