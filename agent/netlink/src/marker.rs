//! Markers: frames a peer sends down the old path right after its flip. Whatever it sent there before is ahead of them.

use std::net::Ipv4Addr;

use siphasher::sip::SipHasher24;
use throughline_abi::{MARKER_ETHERTYPE, MARKER_PAYLOAD_OFFSET, MARKERS, MarkerPayload};
use throughline_cutover::{CarryId, MacAddr, MarkerSecret, Vni};

use crate::{
    Error, Netlink, Result,
    error::Cause,
    names,
    packet::{self, LEAST_FRAME, checksum},
};

const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;
/// Discard (RFC 863), should a marker ever reach a stack.
const TO_PORT: u16 = 9;
/// First of the source ports, one a marker, in the dynamic range (RFC 6335).
const FROM_PORT: u16 = 49152;
/// Documentation addresses (RFC 5737): no tenant has them.
const FROM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Markers to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkerOrder {
    /// Where they are addressed; its entry still leads down the old path.
    pub marker_mac: MacAddr,
    /// Carry id of the port that moved.
    pub carry_id: CarryId,
    /// This peer's number in the migration.
    pub peer: u16,
    /// What its markers' tags are made from.
    pub secret: MarkerSecret,
}

/// The tags of a peer's markers, by sequence number. Who has seen one frame of a peer, or all of another's, still cannot
/// write the next: each tag is a keyed hash (SipHash-2-4) under the peer's own secret, of 64 bits, for a move that is over
/// in seconds.
pub fn tags(secret: &MarkerSecret, carry_id: CarryId, peer: u16) -> [u64; MARKERS as usize] {
    let hasher = SipHasher24::new_with_key(secret.bytes());
    std::array::from_fn(|sequence| {
        let mut said = [0; 8];
        said[..4].copy_from_slice(&carry_id.get().to_be_bytes());
        said[4..6].copy_from_slice(&peer.to_be_bytes());
        said[6..].copy_from_slice(&(sequence as u16).to_be_bytes());
        hasher.hash(&said)
    })
}

impl Netlink {
    /// Sends a migration's markers through the network's bridge, which forwards them like any frame to the marker's
    /// MAC address (see [`Netlink::set_marker`]). They have left the bridge when this returns.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; the kernel's refusal.
    pub async fn send_markers(&self, vni: Vni, order: &MarkerOrder) -> Result<()> {
        let name = names::bridge(vni);
        let bridge = self.required(&name).await?;
        let doing = "send markers on";
        let source = bridge.mac.ok_or(Cause::Answer("MAC address")).map_err(Error::device(doing, &name))?;
        let frames = frames(order, source);
        let sent = packet::send(bridge.index, frames.iter().map(Vec::as_slice));
        sent.map_err(Cause::from).map_err(Error::device(doing, &name))
    }
}

/// The frames: equal but for sequence number and source port, so that every queue on the way gets one.
pub fn frames(order: &MarkerOrder, source: MacAddr) -> Vec<Vec<u8>> {
    let payload = |(tag, sequence)| MarkerPayload::new(order.peer, sequence, tag);
    let tags = tags(&order.secret, order.carry_id, order.peer).into_iter();
    tags.zip(0..).map(|tagged| frame(order.marker_mac, source, payload(tagged))).collect()
}

fn frame(marker_mac: MacAddr, source: MacAddr, payload: MarkerPayload) -> Vec<u8> {
    const UDP_LENGTH: u16 = (UDP_HEADER + size_of::<MarkerPayload>()) as u16;
    let mut frame = Vec::with_capacity(LEAST_FRAME);
    frame.extend(marker_mac.octets());
    frame.extend(source.octets());
    frame.extend(MARKER_ETHERTYPE.to_be_bytes());
    frame.extend(ipv4_header());
    frame.extend((FROM_PORT + payload.sequence).to_be_bytes());
    frame.extend(TO_PORT.to_be_bytes());
    frame.extend(UDP_LENGTH.to_be_bytes());
    frame.extend([0, 0]); // No checksum, as IPv4 allows (RFC 768).
    debug_assert_eq!(frame.len(), MARKER_PAYLOAD_OFFSET);
    frame.extend(payload.to_bytes());
    frame.resize(LEAST_FRAME, 0);
    frame
}

/// With a valid checksum: br_netfilter drops the others.
fn ipv4_header() -> [u8; IPV4_HEADER] {
    const LENGTH: u16 = (IPV4_HEADER + UDP_HEADER + size_of::<MarkerPayload>()) as u16;
    const TTL: u8 = 64;
    let mut header = [0; IPV4_HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&LENGTH.to_be_bytes());
    header[8] = TTL;
    header[9] = UDP;
    header[12..16].copy_from_slice(&FROM.octets());
    header[16..20].copy_from_slice(&TO.octets());
    let sum = checksum(0, &header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn order() -> MarkerOrder {
        MarkerOrder {
            marker_mac: MacAddr::new([0x06, 1, 2, 3, 4, 5]),
            carry_id: CarryId::try_from(0x00ab_cdef_u32).unwrap(),
            peer: 7,
            secret: MarkerSecret::new(*b"sixteen of bytes"),
        }
    }

    #[test]
    fn a_marker_byte_for_byte() {
        let frame = &frames(&order(), MacAddr::new([2, 0, 0, 0, 0, 9]))[31];
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = "060102030405\
                        020000000009\
                        0800\
                        4500002c000000004011f6bdc0000201c0000202\
                        c01f000900180000\
                        544c6d6b0007001f4ded96a9ce5bcbf8\
                        0000";
        assert_eq!(hex, expected);
    }

    #[test]
    fn every_marker_is_another_flow_and_the_header_checks() {
        let frames = frames(&order(), MacAddr::new([2, 0, 0, 0, 0, 9]));
        assert_eq!(frames.len(), MARKERS as usize);
        let ports: BTreeSet<_> = frames.iter().map(|frame| frame[34..36].to_vec()).collect();
        assert_eq!(ports.len(), MARKERS as usize);
        assert!(frames.iter().all(|frame| checksum(0, &frame[14..34]) == 0));
    }
}
