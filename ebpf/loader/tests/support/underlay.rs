//! Whoever can put frames on the underlay: datagrams of tunnels, outer headers and all, under whatever address.

use std::net::Ipv4Addr;

use super::{
    frames::{Sender, internet_checksum},
    netns::Netns,
};

/// UDP port of carry tunnels.
pub(crate) const CARRY_PORT: u16 = 4790;
/// The flag that says that a VXLAN header has a number (RFC 7348 section 5).
const HAS_NUMBER: u8 = 0x08;

/// A place on the underlay from which a host's `und0` is reached.
pub(crate) struct Intruder {
    sender: Sender,
    to_mac: [u8; 6],
    to: Ipv4Addr,
}

impl Intruder {
    /// On the wire that leads from `und0` of one host to that of another.
    pub(crate) fn new(from: &Netns, to: &Netns, to_vtep: Ipv4Addr) -> Self {
        let to_mac = to.run(|| {
            let addresses = nix::ifaddrs::getifaddrs().unwrap();
            let mut links = addresses.filter(|address| address.interface_name == "und0");
            links.find_map(|address| address.address?.as_link_addr()?.addr()).expect("und0 has a MAC address")
        });
        Self { sender: from.run(|| Sender::new("und0")), to_mac, to: to_vtep }
    }

    /// One datagram to the carry's port.
    pub(crate) fn datagram(&self, from: Ipv4Addr, from_port: u16, payload: &[u8]) {
        self.sender.send(&self.frame(from, from_port, payload));
    }

    /// One frame in a VXLAN header.
    pub(crate) fn tunnelled(&self, from: Ipv4Addr, number: u32, inner: &[u8]) {
        let header = [[HAS_NUMBER, 0, 0, 0], (number << 8).to_be_bytes()].concat();
        // Its own source port, as a tunnel's is made from the flow.
        self.datagram(from, 50_000 + inner.last().copied().map_or(0, u16::from), &[&header, inner].concat());
    }

    fn frame(&self, from: Ipv4Addr, from_port: u16, payload: &[u8]) -> Vec<u8> {
        let udp_len = u16::try_from(8 + payload.len()).expect("a datagram");
        let mut frame = [&self.to_mac[..], &[0x02, 0, 0, 0, 0, 0xbb], &[0x08, 0x00, 0x45, 0]].concat();
        frame.extend((20 + udp_len).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend([from.octets(), self.to.octets()].concat());
        let checksum = internet_checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        for word in [from_port, CARRY_PORT, udp_len, 0] {
            frame.extend(word.to_be_bytes());
        }
        frame.extend(payload);
        frame
    }
}
