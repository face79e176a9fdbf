//! Frames as guests send them, byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use throughline_cutover::MacAddr;

/// ARP request (RFC 826) or neighbour solicitation (RFC 4861 §4.3) for `target`, of the sender with `mac` and `ip`.
pub(crate) fn question(mac: MacAddr, ip: IpAddr, target: IpAddr) -> Vec<u8> {
    match (ip, target) {
        (IpAddr::V4(ip), IpAddr::V4(target)) => arp_request(mac, ip, target),
        (IpAddr::V6(ip), IpAddr::V6(target)) => solicitation(mac, ip, target),
        _ => panic!("{ip} cannot ask for {target}"),
    }
}

/// Whether `frame` says to the asker that the target's address is at its MAC address.
pub(crate) fn answers(frame: &[u8], asker: (MacAddr, IpAddr), target: (MacAddr, IpAddr)) -> bool {
    /// ARP: a reply.
    const REPLY: [u8; 2] = [0, 2];
    const ADVERTISEMENT: u8 = 136;
    const TARGET_LINK_LAYER_ADDRESS: [u8; 2] = [2, 1];
    if frame[..6] != asker.0.octets() {
        return false;
    }
    let mac = target.0.octets();
    match (asker.1, target.1) {
        (IpAddr::V4(asker), IpAddr::V4(target)) => {
            let answer = [&mac[..], &target.octets()].concat();
            frame[12..14] == [0x08, 0x06]
                && frame[20..22] == REPLY
                && frame[22..32] == answer
                && frame[38..42] == asker.octets()
        }
        (IpAddr::V6(asker), IpAddr::V6(target)) => {
            let answer = [&target.octets()[..], &TARGET_LINK_LAYER_ADDRESS, &mac].concat();
            frame[12..14] == [0x86, 0xdd]
                && frame[38..54] == asker.octets()
                && frame[54] == ADVERTISEMENT
                && frame[62..86] == answer
        }
        _ => false,
    }
}

fn arp_request(mac: MacAddr, ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, 0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.octets());
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

fn solicitation(mac: MacAddr, ip: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let mut icmp = vec![135, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target.octets());
    icmp.extend([1, 1]);
    icmp.extend(mac.octets());
    ipv6(mac, ip, group, 255, &[], icmp)
}

/// General query of a querier: IGMP version 2 or MLD version 1, to be answered within 100 ms.
pub(crate) fn query(mac: MacAddr, ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => igmp(mac, ip, Ipv4Addr::new(224, 0, 0, 1), [0x11, 1], Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(ip) => mld(mac, ip, "ff02::1".parse().unwrap(), 130, 100, Ipv6Addr::UNSPECIFIED),
    }
}

/// A member's report.
pub(crate) fn report(mac: MacAddr, ip: IpAddr, group: IpAddr) -> Vec<u8> {
    match (ip, group) {
        (IpAddr::V4(ip), IpAddr::V4(group)) => igmp(mac, ip, group, [0x16, 0], group),
        (IpAddr::V6(ip), IpAddr::V6(group)) => mld(mac, ip, group, 131, 0, group),
        _ => panic!("{ip} cannot join {group}"),
    }
}

/// A datagram to a group.
pub(crate) fn multicast(mac: MacAddr, ip: IpAddr, group: IpAddr) -> Vec<u8> {
    let mut udp = Vec::from(7000_u16.to_be_bytes());
    udp.extend(7000_u16.to_be_bytes());
    udp.extend([0, 12, 0, 0]);
    udp.extend(b"tune");
    match (ip, group) {
        (IpAddr::V4(ip), IpAddr::V4(group)) => ipv4(mac, ip, group, 17, 8, &udp),
        (IpAddr::V6(ip), IpAddr::V6(group)) => {
            let mut frame = ethernet(v6_mac(group), mac, 0x86dd);
            frame.extend(ipv6_header(ip, group, 17, 8, udp.len()));
            frame.extend(udp);
            frame
        }
        _ => panic!("{ip} cannot send to {group}"),
    }
}

fn igmp(mac: MacAddr, ip: Ipv4Addr, to: Ipv4Addr, kind: [u8; 2], group: Ipv4Addr) -> Vec<u8> {
    let mut igmp = Vec::from(kind);
    igmp.extend([0, 0]);
    igmp.extend(group.octets());
    let sum = checksum(&igmp);
    igmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(mac, ip, to, 2, 1, &igmp)
}

fn mld(mac: MacAddr, ip: Ipv6Addr, to: Ipv6Addr, kind: u8, delay_ms: u16, group: Ipv6Addr) -> Vec<u8> {
    /// Hop-by-hop options: router alert for MLD (RFC 2711), padding; ICMPv6 follows.
    const ROUTER_ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];
    let mut icmp = vec![kind, 0, 0, 0];
    icmp.extend(delay_ms.to_be_bytes());
    icmp.extend([0, 0]);
    icmp.extend(group.octets());
    ipv6(mac, ip, to, 1, &ROUTER_ALERT, icmp)
}

fn ipv4(mac: MacAddr, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let [_, b, c, d] = to.octets();
    let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, ttl, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet([0x01, 0, 0x5e, b & 0x7f, c, d], mac, 0x0800);
    frame.extend(header);
    frame.extend(payload);
    frame
}

/// To a group, with ICMPv6's checksum filled in.
fn ipv6(mac: MacAddr, from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, options: &[u8], mut icmp: Vec<u8>) -> Vec<u8> {
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend((icmp.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(&icmp);
    let sum = checksum(&pseudo);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let next = if options.is_empty() { 58 } else { 0 };
    let mut frame = ethernet(v6_mac(to), mac, 0x86dd);
    frame.extend(ipv6_header(from, to, next, hop_limit, options.len() + icmp.len()));
    frame.extend(options);
    frame.extend(icmp);
    frame
}

fn ipv6_header(from: Ipv6Addr, to: Ipv6Addr, next: u8, hop_limit: u8, length: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((length as u16).to_be_bytes());
    header.extend([next, hop_limit]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

fn v6_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., w, x, y, z] = group.octets();
    [0x33, 0x33, w, x, y, z]
}

fn ethernet(to: [u8; 6], from: MacAddr, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::from(to);
    frame.extend(from.octets());
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
