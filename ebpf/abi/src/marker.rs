//! Marker frames, written by peers and recognised by `land`: Ethernet, IPv4, UDP, [`MarkerPayload`].
//!
//! Who may mark knows the tags: user space makes them at the peer and, for comparison, at the destination. The programs
//! only compare.
//!
//! IPv4 and UDP so that flow hashing sees ports, with a valid header checksum because `br_netfilter` eats the others.

/// EtherType of markers: IPv4.
pub const MARKER_ETHERTYPE: u16 = 0x0800;
/// Offset of [`MarkerPayload`] in a marker frame: Ethernet 14, IPv4 20, UDP 8.
pub const MARKER_PAYLOAD_OFFSET: usize = 42;
/// Bytes of a whole marker frame: Ethernet's least, without the check sequence.
pub const MARKER_FRAME_LEN: usize = 60;
/// First word of a marker's payload, big endian on the wire: "TLmk".
pub const MARKER_MAGIC: u32 = 0x544c_6d6b;
/// Bytes of a payload.
pub const MARKER_PAYLOAD_LEN: usize = size_of::<MarkerPayload>();

const IP_OFFSET: usize = 14;
const UDP_OFFSET: usize = 34;
const IPPROTO_UDP: u8 = 17;
/// Lowest of the source ports markers take, the first of the dynamic range (RFC 6335).
const FIRST_PORT: u16 = 49152;
/// Destination port of markers: discard (RFC 863), should one ever reach an IP stack.
const DISCARD_PORT: u16 = 9;

/// What a marker says; all fields big endian on the wire, 16 bytes in this order. No more: `br_netfilter` trims a frame to
/// what its IP header says, so that what is read ends with the payload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkerPayload {
    /// [`MARKER_MAGIC`].
    pub magic: u32,
    /// Number of the sending peer in this migration.
    pub peer: u16,
    /// 0 to [`crate::MARKERS`] - 1.
    pub sequence: u16,
    /// What only that peer can have written: another for each port, peer and sequence number.
    pub tag: u64,
}

const _: () = assert!(MARKER_PAYLOAD_LEN == 16);

impl MarkerPayload {
    /// One of a peer's markers.
    pub const fn new(peer: u16, sequence: u16, tag: u64) -> Self {
        Self { magic: MARKER_MAGIC, peer, sequence, tag }
    }

    /// From the wire; `None` if it is not a marker: another magic, or a sequence number that no bit stands for.
    #[inline(always)]
    pub const fn parse(wire: &[u8; MARKER_PAYLOAD_LEN]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *wire;
        let payload = Self {
            magic: u32::from_be_bytes([a, b, c, d]),
            peer: u16::from_be_bytes([e, f]),
            sequence: u16::from_be_bytes([g, h]),
            tag: u64::from_be_bytes([i, j, k, l, m, n, o, p]),
        };
        if payload.magic == MARKER_MAGIC && (payload.sequence as u32) < crate::MARKERS { Some(payload) } else { None }
    }

    /// For the wire.
    pub fn to_bytes(self) -> [u8; MARKER_PAYLOAD_LEN] {
        let mut wire = [0; MARKER_PAYLOAD_LEN];
        wire[..4].copy_from_slice(&self.magic.to_be_bytes());
        wire[4..6].copy_from_slice(&self.peer.to_be_bytes());
        wire[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        wire[8..].copy_from_slice(&self.tag.to_be_bytes());
        wire
    }
}

/// Whole marker frame. Every sequence number has another source port, so that the markers of one peer spread over every
/// queue that flow hashing may choose.
///
/// `from_ip` and `to_ip` need not be anyone's; link-local ones do no harm.
pub fn marker_frame(
    marker_mac: [u8; 6],
    from_mac: [u8; 6],
    from_ip: [u8; 4],
    to_ip: [u8; 4],
    payload: MarkerPayload,
) -> [u8; MARKER_FRAME_LEN] {
    const UDP_LEN: u16 = (8 + MARKER_PAYLOAD_LEN) as u16;
    let mut frame = [0; MARKER_FRAME_LEN];
    frame[..6].copy_from_slice(&marker_mac);
    frame[6..12].copy_from_slice(&from_mac);
    frame[12..14].copy_from_slice(&MARKER_ETHERTYPE.to_be_bytes());

    let ip = &mut frame[IP_OFFSET..UDP_OFFSET];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(20 + UDP_LEN).to_be_bytes());
    ip[8] = 64;
    ip[9] = IPPROTO_UDP;
    ip[12..16].copy_from_slice(&from_ip);
    ip[16..20].copy_from_slice(&to_ip);
    let checksum = internet_checksum(ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());

    // No UDP checksum: optional over IPv4 (RFC 768).
    let port = FIRST_PORT + payload.sequence;
    frame[UDP_OFFSET..UDP_OFFSET + 2].copy_from_slice(&port.to_be_bytes());
    frame[UDP_OFFSET + 2..UDP_OFFSET + 4].copy_from_slice(&DISCARD_PORT.to_be_bytes());
    frame[UDP_OFFSET + 4..UDP_OFFSET + 6].copy_from_slice(&UDP_LEN.to_be_bytes());
    frame[MARKER_PAYLOAD_OFFSET..MARKER_PAYLOAD_OFFSET + MARKER_PAYLOAD_LEN].copy_from_slice(&payload.to_bytes());
    frame
}

/// RFC 1071, over an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MARKERS;

    #[test]
    fn what_is_written_is_recognised() {
        for sequence in 0..MARKERS as u16 {
            let payload = MarkerPayload::new(7, sequence, u64::MAX - 5);
            assert_eq!(MarkerPayload::parse(&payload.to_bytes()), Some(payload));
        }
    }

    #[test]
    fn what_is_not_a_marker_is_not_recognised() {
        assert_eq!(MarkerPayload::parse(&[0; MARKER_PAYLOAD_LEN]), None);
        let beyond = MarkerPayload::new(1, MARKERS as u16, 1);
        assert_eq!(MarkerPayload::parse(&beyond.to_bytes()), None);
        let mut wire = MarkerPayload::new(1, 0, 1).to_bytes();
        wire[0] ^= 1;
        assert_eq!(MarkerPayload::parse(&wire), None);
    }

    #[test]
    fn a_frame_on_the_wire_is_exactly_this() {
        let frame = marker_frame(
            [2, 0, 0, 0, 0, 9],
            [2, 0, 0, 0, 0, 1],
            [169, 254, 0, 1],
            [169, 254, 0, 2],
            MarkerPayload::new(3, 5, 0x0102_0304_0506_0708),
        );
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x08, 0x00,
            0x45, 0, 0, 44, 0, 0, 0, 0, 64, 17, 0x26, 0xc2, 169, 254, 0, 1, 169, 254, 0, 2,
            0xc0, 0x05, 0, 9, 0, 24, 0, 0,
            0x54, 0x4c, 0x6d, 0x6b, 0, 3, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8,
            0, 0,
        ];
        assert_eq!(frame, expected);
        assert_eq!(internet_checksum(&frame[IP_OFFSET..UDP_OFFSET]), 0, "a header with its checksum sums to zero");
    }

    #[test]
    fn the_markers_of_one_peer_have_all_different_ports() {
        let port = |sequence| {
            let frame = marker_frame([2; 6], [2; 6], [0; 4], [0; 4], MarkerPayload::new(1, sequence, 1));
            u16::from_be_bytes([frame[UDP_OFFSET], frame[UDP_OFFSET + 1]])
        };
        assert!((1..MARKERS as u16).all(|sequence| port(sequence) == port(sequence - 1) + 1));
    }
}
