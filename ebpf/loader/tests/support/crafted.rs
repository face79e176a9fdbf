//! Frames of many kinds, byte for byte, from [`PEER`] to [`GUEST`] unless said otherwise.

use super::{
    frames::{BROADCAST, GUEST, PEER, internet_checksum},
    tap::VNET_HEADER,
};

const PEER_IP: [u8; 4] = [10, 9, 0, 1];
const GUEST_IP: [u8; 4] = [10, 9, 0, 2];
const PEER_IP6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20];
const GUEST_IP6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const TCP: u8 = 6;
const UDP: u8 = 17;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// Where the transport header begins.
pub(crate) const TRANSPORT: usize = ETHERNET + IPV4;

/// Ethernet and IPv4 over `payload`.
fn ipv4(protocol: u8, id: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&GUEST[..], &PEER, &[0x08, 0x00, 0x45, 0]].concat();
    frame.extend(u16::try_from(IPV4 + payload.len()).expect("an IPv4 packet").to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend([PEER_IP, GUEST_IP].concat());
    let checksum = internet_checksum(&frame[ETHERNET..TRANSPORT]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What a pseudo-header adds to a checksum that is left to be completed.
fn pseudo_header(protocol: u8, length: usize) -> u16 {
    let length = u16::try_from(length).expect("an IPv4 packet").to_be_bytes();
    !internet_checksum(&[&PEER_IP[..], &GUEST_IP, &[0, protocol], &length].concat())
}

/// `length` bytes that differ from one number to the next.
fn filling(number: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (number.wrapping_mul(31).wrapping_add(at) % 251) as u8).collect()
}

/// Datagram `number` with `length` bytes after its UDP header and no checksum.
pub(crate) fn datagram(number: u64, length: usize) -> Vec<u8> {
    let mut packet = [[0x1b, 0x5f], [0x1b, 0x60]].concat();
    packet.extend(u16::try_from(8 + length).expect("a UDP datagram").to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(filling(number, length));
    ipv4(UDP, 0, 0, &packet)
}

/// Datagram `number` as a card with checksum offload gets it, and the vnet header that says so.
pub(crate) fn datagram_without_checksum(number: u64, length: usize) -> ([u8; VNET_HEADER], Vec<u8>) {
    let mut frame = datagram(number, length);
    frame[TRANSPORT + 6..TRANSPORT + 8].copy_from_slice(&pseudo_header(UDP, 8 + length).to_be_bytes());
    (header(0, 0, TRANSPORT, 6), frame)
}

/// Whether the transport checksum that `header` leaves to be completed comes out right.
pub(crate) fn completes(header: &[u8; VNET_HEADER], frame: &[u8]) -> bool {
    let [start, offset] = [6, 8].map(|at| usize::from(u16::from_le_bytes([header[at], header[at + 1]])));
    let mut packet = frame[start..].to_vec();
    let length = packet.len();
    if length % 2 == 1 {
        packet.push(0);
    }
    let checksum = internet_checksum(&packet);
    packet[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    let pseudo = pseudo_header(frame[23], length);
    header[0] & NEEDS_CHECKSUM != 0 && internet_checksum(&[&packet[..], &pseudo.to_be_bytes()].concat()) == 0
}

/// `struct virtio_net_hdr`: a checksum to be completed and, if `gso` is not 0, segments of `size` to be made.
fn header(gso: u8, size: u16, start: usize, offset: u16) -> [u8; VNET_HEADER] {
    let mut header = [0; VNET_HEADER];
    header[0] = NEEDS_CHECKSUM;
    header[1] = gso;
    let transport = if gso == GSO_TCPV4 { 20 } else { 8 };
    header[2..4].copy_from_slice(&((start + transport) as u16).to_le_bytes());
    header[4..6].copy_from_slice(&size.to_le_bytes());
    header[6..8].copy_from_slice(&(start as u16).to_le_bytes());
    header[8..10].copy_from_slice(&offset.to_le_bytes());
    header
}

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;

/// Segment `number` of `length` bytes, as a guest hands it to a card that makes segments of `size`.
pub(crate) fn tcp_super_frame(number: u64, length: usize, size: u16) -> ([u8; VNET_HEADER], Vec<u8>) {
    let sequence = (number as u32).wrapping_mul(length as u32);
    let mut packet = [0x13, 0x88, 0x13, 0x89].to_vec();
    packet.extend(sequence.to_be_bytes());
    packet.extend([0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff]);
    packet.extend(pseudo_header(TCP, 20 + length).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(filling(number, length));
    (header(GSO_TCPV4, size, TRANSPORT, 16), ipv4(TCP, 0, 0x4000, &packet))
}

/// Datagrams of `size` bytes, `length` in all, handed over at once.
pub(crate) fn udp_super_frame(number: u64, length: usize, size: u16) -> ([u8; VNET_HEADER], Vec<u8>) {
    let (_, frame) = datagram_without_checksum(number, length);
    (header(GSO_UDP_L4, size, TRANSPORT, 6), frame)
}

/// The fragments of a datagram, in order.
pub(crate) fn fragments(number: u16) -> Vec<Vec<u8>> {
    const PIECE: usize = 1_400;
    const MORE: u16 = 0x2000;
    let whole = &datagram(u64::from(number), 3 * PIECE - 8 - 100)[TRANSPORT..];
    let pieces: Vec<&[u8]> = whole.chunks(PIECE).collect();
    let last = pieces.len() - 1;
    let offset = |at: usize| (at * PIECE / 8) as u16;
    let fragment =
        |(at, piece): (usize, &&[u8])| ipv4(UDP, number + 1, offset(at) | if at == last { 0 } else { MORE }, piece);
    pieces.iter().enumerate().map(fragment).collect()
}

/// `frame` with tags before its type, the outermost first.
pub(crate) fn tagged(tags: &[(u16, u16)], frame: &[u8]) -> Vec<u8> {
    let tags: Vec<u8> = tags.iter().flat_map(|(kind, tag)| [kind.to_be_bytes(), tag.to_be_bytes()].concat()).collect();
    [&frame[..12], &tags, &frame[12..]].concat()
}

/// An ARP request for the guest's address, `number` told by its sender's protocol address.
pub(crate) fn arp_request(to: [u8; 6], number: u8) -> Vec<u8> {
    let mut frame = [&to[..], &PEER, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1], &PEER].concat();
    frame.extend([10, 9, 1, number]);
    frame.extend([0; 6]);
    frame.extend(GUEST_IP);
    frame.resize(60, 0);
    frame
}

/// A broadcast one.
pub(crate) fn arp_broadcast(number: u8) -> Vec<u8> {
    arp_request(BROADCAST, number)
}

/// A neighbour solicitation for the guest's address, to the guest (`None`) or to its solicited-node group.
pub(crate) fn solicitation(group: bool, number: u8) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    let mut to = GUEST;
    let mut address = GUEST_IP6;
    if group {
        to = [0x33, 0x33, 0xff, 0, 0, 0x10];
        address = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0x10];
    }
    let mut from = PEER_IP6;
    from[14] = number;
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &GUEST_IP6, &[1, 1], &PEER].concat();
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&from[..], &address, &length, &[0, 0, 0, ICMPV6]].concat();
    let checksum = internet_checksum(&[&pseudo[..], &message].concat());
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = [&to[..], &PEER, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend([from, address].concat());
    frame.extend(message);
    frame
}
