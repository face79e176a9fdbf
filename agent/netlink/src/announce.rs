//! Telling a segment where an address is now: gratuitous ARP, unsolicited neighbour advertisements, RARP.
//!
//! The fabric's own bridges do not need it, their entries are written; what is behind them (routers, bare machines,
//! switches that learn) does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use throughline_cutover::MacAddr;

use crate::{
    Error, Netlink, Result,
    error::Cause,
    link_local::implied_link_local,
    packet::{self, LEAST_FRAME, checksum},
};

const BROADCAST: [u8; 6] = [0xff; 6];
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV6: u16 = 0x86dd;
const ARP_REQUEST: u16 = 1;
/// Request Reverse (RFC 903).
const RARP_REQUEST: u16 = 3;
const ICMPV6: u8 = 58;

impl Netlink {
    /// Sends from `device` (a network's bridge) everything that says that `mac` and `ips` are here.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; the kernel's refusal.
    pub async fn announce(&self, device: &str, mac: MacAddr, ips: &[IpAddr]) -> Result<()> {
        let index = self.link_index(device).await?;
        let frames = announcements(mac, ips);
        let sent = packet::send(index, frames.iter().map(Vec::as_slice));
        sent.map_err(Cause::from).map_err(Error::device("send announcements on", device))
    }
}

/// One RARP for the switches, then one frame for each address, the link-local one of a port with IPv6 included.
pub fn announcements(mac: MacAddr, ips: &[IpAddr]) -> Vec<Vec<u8>> {
    let link_local = implied_link_local(mac, ips).map(IpAddr::V6);
    let addresses = ips.iter().copied().chain(link_local).map(|ip| match ip {
        IpAddr::V4(ip) => gratuitous_arp(mac, ip),
        IpAddr::V6(ip) => unsolicited_advertisement(mac, ip),
    });
    std::iter::once(rarp(mac)).chain(addresses).collect()
}

/// ARP announcement: a broadcast request whose sender and target address are the same (RFC 5227 §2.3), padded to 60
/// bytes.
pub fn gratuitous_arp(mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    arp(ARP, ARP_REQUEST, mac, ip, MacAddr::new([0; 6]), ip)
}

/// What QEMU sends for a guest that cannot speak for itself (`announce_self_create` in net/announce.c): a reverse
/// request for the guest's own MAC address, 60 bytes.
pub fn rarp(mac: MacAddr) -> Vec<u8> {
    arp(RARP, RARP_REQUEST, mac, Ipv4Addr::UNSPECIFIED, mac, Ipv4Addr::UNSPECIFIED)
}

/// Unsolicited neighbour advertisement to all nodes: Override set, Solicited clear, with the target's link-layer
/// address (RFC 4861 §4.4, §7.2.6).
pub fn unsolicited_advertisement(mac: MacAddr, ip: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: [u8; 16] = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    const HOP_LIMIT: u8 = 255;

    let mut icmp = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    icmp.extend(ip.octets());
    icmp.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    icmp.extend(mac.octets());
    let length = icmp.len() as u16;

    let mut pseudo = Vec::from(ip.octets());
    pseudo.extend(ALL_NODES);
    pseudo.extend(&icmp);
    let sum = checksum(u32::from(length) + u32::from(ICMPV6), &pseudo);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES);
    frame.extend(icmp);
    frame
}

fn arp(ethertype: u16, op: u16, sender: MacAddr, sender_ip: Ipv4Addr, target: MacAddr, target_ip: Ipv4Addr) -> Vec<u8> {
    const ETHERNET: u16 = 1;
    const IPV4: u16 = 0x0800;
    let mut frame = ethernet(BROADCAST, sender, ethertype);
    frame.extend(ETHERNET.to_be_bytes());
    frame.extend(IPV4.to_be_bytes());
    frame.extend([6, 4]);
    frame.extend(op.to_be_bytes());
    frame.extend(sender.octets());
    frame.extend(sender_ip.octets());
    frame.extend(target.octets());
    frame.extend(target_ip.octets());
    frame.resize(LEAST_FRAME, 0);
    frame
}

fn ethernet(to: [u8; 6], from: MacAddr, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::from(to);
    frame.extend(from.octets());
    frame.extend(ethertype.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::new([0x02, 0, 0x5e, 0x10, 0, 0x01]);

    fn hex(frame: &[u8]) -> String {
        frame.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn gratuitous_arp_is_the_request_of_rfc_5227() {
        let expected = "ffffffffffff\
                        02005e100001\
                        0806\
                        0001080006040001\
                        02005e1000010a000005\
                        0000000000000a000005";
        assert_eq!(hex(&gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 5))), format!("{expected}{}", "00".repeat(18)));
    }

    #[test]
    fn rarp_is_qemus() {
        let expected = "ffffffffffff\
                        02005e100001\
                        8035\
                        0001080006040003\
                        02005e10000100000000\
                        02005e10000100000000";
        assert_eq!(hex(&rarp(MAC)), format!("{expected}{}", "00".repeat(18)));
    }

    #[test]
    fn advertisement_overrides_and_is_not_solicited() {
        let expected = "333300000001\
                        02005e100001\
                        86dd\
                        6000000000203aff\
                        20010db8000000000000000000000005\
                        ff020000000000000000000000000001\
                        88009b1220000000\
                        20010db8000000000000000000000005\
                        020102005e100001";
        assert_eq!(hex(&unsolicited_advertisement(MAC, "2001:db8::5".parse().unwrap())), expected);
    }

    #[test]
    fn every_address_is_announced_once() {
        let mut ips = vec!["10.0.0.5".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        let expected = ["8035", "0806", "86dd", "86dd"];
        let types = |ips: &[IpAddr]| announcements(MAC, ips).iter().map(|f| hex(&f[12..14])).collect::<Vec<_>>();
        assert_eq!(types(&ips), expected, "the link-local address its MAC address gives is one of them");
        ips.push("fe80::5".parse().unwrap());
        assert_eq!(types(&ips), expected, "or the one it says it has");
    }
}
