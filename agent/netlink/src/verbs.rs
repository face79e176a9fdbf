//! The netlink messages this crate sends, one verb each, and nothing about what they are for.

use std::net::{IpAddr, Ipv4Addr};

use futures::StreamExt as _;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
        LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteProtocol,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use nix::errno::Errno;
use rtnetlink::sys::AsyncSocket as _;
use throughline_cutover::MacAddr;

use crate::{
    attributes::Attributes,
    error::Cause,
    link::{Link, PortSettings},
};

/// Tag of our neighbour entries: NDA_PROTOCOL, 'T'. Unassigned in the kernel's rtnetlink.h and iproute2's rt_protos.
pub(crate) const PROTOCOL: u8 = 84;
/// How often a list that changes under the reader is read again.
pub(crate) const DUMP_ATTEMPTS: u32 = 5;
/// Where vxlan floods: the all-zero address (`bridge fdb append 00:00:00:00:00:00 ...`).
pub(crate) const FLOOD: MacAddr = MacAddr::new([0; 6]);

/// One rtnetlink socket.
#[derive(Debug, Clone)]
pub(crate) struct Verbs {
    handle: rtnetlink::Handle,
}

impl Verbs {
    /// Opens a socket in the calling thread's network namespace and starts its task on the current runtime.
    pub(crate) fn open() -> Result<Self, Cause> {
        let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The device of that name, without statistics; `None` if there is none.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, Cause> {
        self.one_link(0, vec![LinkAttribute::IfName(name.to_owned()), skip_statistics()]).await
    }

    /// The same by interface index.
    pub(crate) async fn link_at(&self, index: u32) -> Result<Option<Link>, Cause> {
        self.one_link(index, vec![skip_statistics()]).await
    }

    /// The device of that name, with statistics.
    pub(crate) async fn link_with_statistics(&self, name: &str) -> Result<Option<Link>, Cause> {
        self.one_link(0, vec![LinkAttribute::IfName(name.to_owned())]).await
    }

    async fn one_link(&self, index: u32, attributes: Vec<LinkAttribute>) -> Result<Option<Link>, Cause> {
        match self.ask(RouteNetlinkMessage::GetLink(link_message(index, attributes)), 0).await {
            Ok(answers) => Ok(links(answers).next()),
            Err(cause) if cause.is_absent() => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Every device of a kind.
    pub(crate) async fn links_of_kind(&self, kind: InfoKind) -> Result<Vec<Link>, Cause> {
        let filter = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]), skip_statistics()];
        Ok(links(self.dump(RouteNetlinkMessage::GetLink(link_message(0, filter))).await?).collect())
    }

    /// Creates a device; refused if the name is taken.
    pub(crate) async fn create_link(&self, attributes: Vec<LinkAttribute>) -> Result<(), Cause> {
        self.act(RouteNetlinkMessage::NewLink(link_message(0, attributes)), NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Changes attributes of a device.
    pub(crate) async fn change_link(&self, index: u32, attributes: Vec<LinkAttribute>) -> Result<(), Cause> {
        self.act(RouteNetlinkMessage::NewLink(link_message(index, attributes)), 0).await
    }

    /// Brings a device up.
    pub(crate) async fn set_up(&self, index: u32) -> Result<(), Cause> {
        let mut message = link_message(index, Vec::new());
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.act(RouteNetlinkMessage::NewLink(message), 0).await
    }

    /// Deletes a device.
    pub(crate) async fn delete_link(&self, index: u32) -> Result<(), Cause> {
        self.act(RouteNetlinkMessage::DelLink(link_message(index, Vec::new())), 0).await
    }

    /// Keeps the kernel from generating IPv6 addresses on a device.
    pub(crate) async fn stop_address_generation(&self, index: u32) -> Result<(), Cause> {
        let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        self.change_link(index, vec![LinkAttribute::AfSpecUnspec(vec![inet6])]).await
    }

    /// Sets how a bridge port behaves; it must be in its bridge.
    pub(crate) async fn set_port(&self, index: u32, settings: PortSettings) -> Result<(), Cause> {
        let data = InfoPortData::BridgePort(vec![
            InfoBridgePort::Learning(settings.learning),
            InfoBridgePort::NeighSupress(settings.neigh_suppress),
        ]);
        let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)];
        self.change_link(index, vec![LinkAttribute::LinkInfo(info)]).await
    }

    /// Replaces a device's root queueing discipline by none at all.
    pub(crate) async fn set_noqueue(&self, index: u32) -> Result<(), Cause> {
        let mut message = TcMessage::default();
        message.header.index = i32::try_from(index).map_err(|_| Cause::Answer("usable interface index"))?;
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("noqueue".to_owned()));
        self.act(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// A device's addresses.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpAddr>, Cause> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let answers = self.dump(RouteNetlinkMessage::GetAddress(message)).await?;
        Ok(answers.into_iter().filter_map(address_of).collect())
    }

    /// Adds an address, usable at once: no duplicate address detection.
    pub(crate) async fn add_address(&self, index: u32, ip: IpAddr, prefix_len: u8) -> Result<(), Cause> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = prefix_len;
        message.attributes = vec![AddressAttribute::Address(ip), AddressAttribute::Local(ip)];
        match ip {
            IpAddr::V4(_) => message.header.family = AddressFamily::Inet,
            IpAddr::V6(v6) => {
                message.header.family = AddressFamily::Inet6;
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                if v6.is_unicast_link_local() {
                    message.header.scope = AddressScope::Link;
                }
            }
        }
        self.act(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Points the bridge's entry for `mac` to a port, in place, tagged.
    pub(crate) async fn set_forward(&self, port: u32, mac: MacAddr) -> Result<(), Cause> {
        self.act(RouteNetlinkMessage::NewNeighbour(forward(port, mac)), NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Removes the bridge's entry for `mac` at a port.
    pub(crate) async fn remove_forward(&self, port: u32, mac: MacAddr) -> Result<(), Cause> {
        self.act(RouteNetlinkMessage::DelNeighbour(forward(port, mac)), 0).await
    }

    /// Points a VXLAN device's entry for `mac` to a VTEP, in place, tagged.
    pub(crate) async fn set_remote(&self, vxlan: u32, mac: MacAddr, vtep: Ipv4Addr) -> Result<(), Cause> {
        let message = remote(vxlan, mac, Some(vtep));
        self.act(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Adds one destination of the flood list.
    pub(crate) async fn add_flood(&self, vxlan: u32, vtep: Ipv4Addr) -> Result<(), Cause> {
        let message = remote(vxlan, FLOOD, Some(vtep));
        self.act(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_APPEND).await
    }

    /// Removes a VXLAN device's entry, or with `vtep` one destination of it.
    pub(crate) async fn remove_remote(&self, vxlan: u32, mac: MacAddr, vtep: Option<Ipv4Addr>) -> Result<(), Cause> {
        self.act(RouteNetlinkMessage::DelNeighbour(remote(vxlan, mac, vtep)), 0).await
    }

    /// Sets a permanent neighbour, tagged.
    pub(crate) async fn set_neighbour(&self, device: u32, ip: IpAddr, mac: MacAddr) -> Result<(), Cause> {
        let mut message = neighbour(device, ip);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
        message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
        self.act(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Removes a neighbour.
    pub(crate) async fn remove_neighbour(&self, device: u32, ip: IpAddr) -> Result<(), Cause> {
        self.act(RouteNetlinkMessage::DelNeighbour(neighbour(device, ip)), 0).await
    }

    /// The bridge's entry for `mac`.
    pub(crate) async fn forward(&self, bridge: u32, mac: MacAddr) -> Result<Option<NeighbourMessage>, Cause> {
        let mut message = forward(0, mac);
        message.header.flags = NeighbourFlags::Controller;
        message.header.state = NeighbourState::None;
        message.attributes.push(NeighbourAttribute::Controller(bridge));
        self.one_neighbour(message).await
    }

    /// The VXLAN device's entry for `mac`.
    pub(crate) async fn remote(&self, vxlan: u32, mac: MacAddr) -> Result<Option<NeighbourMessage>, Cause> {
        let mut message = remote(vxlan, mac, None);
        message.header.flags = NeighbourFlags::Own;
        message.header.state = NeighbourState::None;
        self.one_neighbour(message).await
    }

    /// A device's neighbour.
    pub(crate) async fn neighbour(&self, device: u32, ip: IpAddr) -> Result<Option<NeighbourMessage>, Cause> {
        self.one_neighbour(neighbour(device, ip)).await
    }

    async fn one_neighbour(&self, message: NeighbourMessage) -> Result<Option<NeighbourMessage>, Cause> {
        match self.ask(RouteNetlinkMessage::GetNeighbour(message), 0).await {
            Ok(answers) => Ok(neighbours(answers).next()),
            Err(cause) if cause.is_absent() => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Forwarding entries of a bridge and of the devices in it. The kernel adds other bridges' own addresses.
    pub(crate) async fn forwarding(&self, bridge: u32) -> Result<Vec<NeighbourMessage>, Cause> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.attributes.push(NeighbourAttribute::Controller(bridge));
        Ok(neighbours(self.dump(RouteNetlinkMessage::GetNeighbour(message)).await?).collect())
    }

    /// A device's IPv4 and IPv6 neighbours.
    pub(crate) async fn neighbours(&self, device: u32) -> Result<Vec<NeighbourMessage>, Cause> {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::IfIndex(device));
        Ok(neighbours(self.dump(RouteNetlinkMessage::GetNeighbour(message)).await?).collect())
    }

    async fn act(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Cause> {
        self.ask(message, NLM_F_ACK | flags).await.map(drop)
    }

    async fn dump(&self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Cause> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.ask(message.clone(), NLM_F_DUMP).await {
                Err(Cause::Torn(_)) => {}
                done => return done,
            }
        }
        Err(Cause::Torn(DUMP_ATTEMPTS))
    }

    async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>, Cause> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(request).map_err(|_| Cause::Closed)?;
        let mut found = Vec::new();
        let mut torn = false;
        while let Some(answer) = answers.next().await {
            torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(refusal(&error)),
                NetlinkPayload::Overrun(_) => return Err(Cause::Torn(1)),
                _ => {}
            }
        }
        if torn { Err(Cause::Torn(1)) } else { Ok(found) }
    }
}

fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn skip_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn links(answers: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = Link> {
    answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
        _ => None,
    })
}

fn neighbours(answers: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = NeighbourMessage> {
    answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(message) => Some(message),
        _ => None,
    })
}

fn address_of(answer: RouteNetlinkMessage) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    })
}

fn forward(port: u32, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    // Never NUD_PERMANENT: on a bridge that means "this host's own address" and frames would go up its stack.
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller | NeighbourFlags::ExtLearned;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    message
}

fn remote(vxlan: u32, mac: MacAddr, vtep: Option<Ipv4Addr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = vxlan;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own | NeighbourFlags::ExtLearned;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    message.attributes.extend(vtep.map(|vtep| NeighbourAttribute::Destination(NeighbourAddress::Inet(vtep))));
    message
}

fn neighbour(device: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = device;
    message.attributes.push(NeighbourAttribute::Destination(ip.into()));
    message
}

pub(crate) fn refusal(error: &ErrorMessage) -> Cause {
    let hint = extended_ack(&error.header).map(|text| format!(" ({text})")).unwrap_or_default();
    Cause::Refused { errno: Errno::from_raw(error.raw_code().saturating_abs()), hint }
}

/// The kernel's words: NLMSGERR_ATTR_MSG among the attributes after the echoed header (NETLINK_CAP_ACK, NETLINK_EXT_ACK).
pub(crate) fn extended_ack(echoed: &[u8]) -> Option<String> {
    const HEADER: usize = 16;
    const MESSAGE: u16 = 1;
    let (_, value) = Attributes(echoed.get(HEADER..)?).find(|(kind, _)| *kind == MESSAGE)?;
    let text = value.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_found_after_other_attributes() {
        let mut echoed = vec![0; 16];
        echoed.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        echoed.extend([11, 0, 1, 0]);
        echoed.extend(b"no way\0\0");
        assert_eq!(extended_ack(&echoed).as_deref(), Some("no way"));
        assert_eq!(extended_ack(&[0; 16]), None);
        assert_eq!(extended_ack(&[0; 20]), None, "an attribute of length 0 must not loop");
        assert_eq!(extended_ack(&[]), None);
    }
}
