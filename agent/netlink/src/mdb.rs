//! A bridge's multicast database over rtnetlink. `netlink-packet-route` has no messages for it, so the few that are needed
//! are built and read here, byte for byte as `linux/if_bridge.h` has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST};
use nix::errno::Errno;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{
    attributes::Attributes,
    error::Cause,
    verbs::{DUMP_ATTEMPTS, extended_ack},
};

const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWMDB: u16 = 84;
const RTM_GETMDB: u16 = 86;

/// `struct br_port_msg`: family, padding, interface index.
const PORT_MESSAGE: usize = 8;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const MDBA_MDB: u16 = 1;
const MDBA_ROUTER: u16 = 2;
const MDBA_MDB_ENTRY: u16 = 1;
const MDBA_MDB_ENTRY_INFO: u16 = 1;
const MDBA_ROUTER_PORT: u16 = 1;
const MDBA_SET_ENTRY: u16 = 1;
const MDBA_MDB_EATTR_SOURCE: u16 = 4;

/// `struct br_mdb_entry`: port, state, flags, VLAN, address (16 bytes for the longest), its protocol, padding.
const ENTRY: usize = 28;
const ADDRESS: usize = 8;
const PROTOCOL: usize = 24;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// One line of a multicast database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// A port has joined a group, whatever the source.
    Member { port: u32, group: IpAddr },
    /// A multicast router or querier is behind a port.
    Router { port: u32 },
}

/// The multicast databases of all bridges of the calling thread's namespace; the kernel does not filter.
pub(crate) fn list() -> Result<Vec<Line>, Cause> {
    for _ in 0..DUMP_ATTEMPTS {
        match ask(RTM_GETMDB, NLM_F_DUMP, &port_message(0)) {
            Ok(answers) => return Ok(answers.iter().flat_map(|answer| lines(answer)).collect()),
            Err(Cause::Torn(_)) => {}
            Err(cause) => return Err(cause),
        }
    }
    Err(Cause::Torn(DUMP_ATTEMPTS))
}

/// Makes a port a member of a group, as if the guest behind it had reported: the entry ages, and reports renew it.
pub(crate) fn join(bridge: u32, port: u32, group: IpAddr) -> Result<(), Cause> {
    match ask(RTM_NEWMDB, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &joining(bridge, port, group)) {
        // Before 6.2 the kernel replaces nothing; what is there is as good.
        Err(Cause::Refused { errno: Errno::EEXIST, .. }) => Ok(()),
        done => done.map(drop),
    }
}

fn joining(bridge: u32, port: u32, group: IpAddr) -> Vec<u8> {
    let mut entry = [0; ENTRY];
    entry[..4].copy_from_slice(&port.to_ne_bytes());
    let protocol = match group {
        IpAddr::V4(group) => {
            entry[ADDRESS..ADDRESS + 4].copy_from_slice(&group.octets());
            ETH_P_IP
        }
        IpAddr::V6(group) => {
            entry[ADDRESS..ADDRESS + 16].copy_from_slice(&group.octets());
            ETH_P_IPV6
        }
    };
    entry[PROTOCOL..PROTOCOL + 2].copy_from_slice(&protocol.to_be_bytes());
    let mut message = Vec::from(port_message(bridge));
    message.extend(((4 + ENTRY) as u16).to_ne_bytes());
    message.extend(MDBA_SET_ENTRY.to_ne_bytes());
    message.extend(entry);
    message
}

fn port_message(bridge: u32) -> [u8; PORT_MESSAGE] {
    let [a, b, c, d] = bridge.to_ne_bytes();
    [AF_BRIDGE, 0, 0, 0, a, b, c, d]
}

/// What one bridge's answer says.
fn lines(answer: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (kind, value) in Attributes(answer.get(PORT_MESSAGE..).unwrap_or_default()) {
        match kind {
            MDBA_MDB => {
                let entries = Attributes(value).filter(|(kind, _)| *kind == MDBA_MDB_ENTRY);
                let infos = entries.flat_map(|(_, entry)| Attributes(entry));
                lines.extend(infos.filter(|(kind, _)| *kind == MDBA_MDB_ENTRY_INFO).filter_map(|(_, it)| member(it)));
            }
            MDBA_ROUTER => {
                let ports = Attributes(value).filter(|(kind, _)| *kind == MDBA_ROUTER_PORT);
                lines.extend(ports.filter_map(|(_, it)| Some(Line::Router { port: word(it, 0)? })));
            }
            _ => {}
        }
    }
    lines
}

/// `None`: a member for one source only (its group has a line of its own), or of a group of bare Ethernet.
fn member(info: &[u8]) -> Option<Line> {
    let entry = info.get(..ENTRY)?;
    if Attributes(&info[ENTRY..]).any(|(kind, _)| kind == MDBA_MDB_EATTR_SOURCE) {
        return None;
    }
    let address = &entry[ADDRESS..PROTOCOL];
    let group = match u16::from_be_bytes([entry[PROTOCOL], entry[PROTOCOL + 1]]) {
        ETH_P_IP => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&address[..4]).ok()?)),
        ETH_P_IPV6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => return None,
    };
    Some(Line::Member { port: word(entry, 0)?, group })
}

/// One request on a socket of its own; the kernel has answered when `send` returns, so this waits for nobody.
fn ask(kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Cause> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_netlink_get_strict_chk(true)?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    let mut message = Vec::with_capacity(NLMSG_HEADER + body.len());
    message.extend(((NLMSG_HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    socket.send(&message, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if take(&datagram, &mut answers)? {
            return Ok(answers);
        }
    }
}

/// What one datagram of an answer says.
pub(crate) fn read(datagram: &[u8]) -> Result<Vec<Line>, Cause> {
    let mut answers = Vec::new();
    take(datagram, &mut answers)?;
    Ok(answers.iter().flat_map(|answer| lines(answer)).collect())
}

/// Takes the messages of one datagram; true when it had the last.
fn take(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> Result<bool, Cause> {
    while let Some(length) = word(datagram, 0) {
        let short = || Cause::Answer("right length");
        let message = datagram.get(..length as usize).filter(|it| it.len() >= NLMSG_HEADER).ok_or_else(short)?;
        if u16::from_ne_bytes([message[6], message[7]]) & NLM_F_DUMP_INTR != 0 {
            return Err(Cause::Torn(1));
        }
        let body = &message[NLMSG_HEADER..];
        match u16::from_ne_bytes([message[4], message[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = word(body, 0).ok_or_else(short)?.cast_signed();
                return if code == 0 { Ok(true) } else { Err(refusal(code, &body[4..])) };
            }
            _ => answers.push(body.to_vec()),
        }
        datagram = datagram.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn refusal(code: i32, echoed: &[u8]) -> Cause {
    let hint = extended_ack(echoed).map(|text| format!(" ({text})")).unwrap_or_default();
    Cause::Refused { errno: Errno::from_raw(code.saturating_abs()), hint }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from(((4 + value.len()) as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn info(port: u32, group: &str, more: &[u8]) -> Vec<u8> {
        let entry = &joining(1, port, group.parse().unwrap())[PORT_MESSAGE + 4..];
        attribute(MDBA_MDB_ENTRY, &attribute(MDBA_MDB_ENTRY_INFO, &[entry, more].concat()))
    }

    #[test]
    fn a_join_is_what_the_kernel_reads() {
        let message = joining(3, 9, "239.1.2.3".parse().unwrap());
        assert_eq!(message[..8], [&[7, 0, 0, 0][..], &3_u32.to_ne_bytes()].concat());
        assert_eq!(message[8..12], [&32_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes()].concat());
        assert_eq!(message[12..20], [&9_u32.to_ne_bytes()[..], &[0; 4]].concat(), "temporary, no flags, no VLAN");
        assert_eq!(message[20..24], [239, 1, 2, 3]);
        assert_eq!(message[36..38], [0x08, 0x00]);
        assert_eq!(message.len(), 40);
    }

    #[test]
    fn members_and_routers_are_read_and_single_sources_left_out() {
        let timer = attribute(1, &[1, 0, 0, 0]);
        let source = attribute(MDBA_MDB_EATTR_SOURCE, &[10, 0, 0, 1]);
        let members = [info(9, "239.1.2.3", &timer), info(9, "239.1.2.3", &source), info(8, "ff15::1", &[])].concat();
        let router = attribute(MDBA_ROUTER_PORT, &[&7_u32.to_ne_bytes()[..], &timer].concat());
        let answer =
            [&[0; PORT_MESSAGE][..], &attribute(MDBA_MDB, &members), &attribute(MDBA_ROUTER, &router)].concat();
        let expected = [
            Line::Member { port: 9, group: "239.1.2.3".parse().unwrap() },
            Line::Member { port: 8, group: "ff15::1".parse().unwrap() },
            Line::Router { port: 7 },
        ];
        assert_eq!(lines(&answer), expected);
        assert_eq!(lines(&[]), []);
        assert_eq!(lines(&answer[..20]), [], "cut short");
    }
}
