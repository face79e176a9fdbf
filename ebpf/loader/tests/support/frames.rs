//! Numbered frames, and the sockets that send them.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::netns::ifindex;

pub(crate) const GUEST: [u8; 6] = [0x02, 0, 0, 0, 0, 0x10];
pub(crate) const PEER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x20];
pub(crate) const MARKER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x66];
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
/// Of numbered frames: nothing else in these namespaces sends to this UDP port.
pub(crate) const PORT: u16 = 7007;
pub(crate) const NUMBER_OFFSET: usize = 42;
pub(crate) const FRAME_LEN: usize = 100;

/// Frame `number` of a sequence, from [`PEER`] to `to`: UDP over IPv4, 100 bytes. Its IP header is right in length and
/// checksum, or `br_netfilter` would trim or drop it.
pub(crate) fn numbered(to: [u8; 6], number: u64) -> Vec<u8> {
    const IP_LEN: u16 = (FRAME_LEN - 14) as u16;
    let mut frame = [&to[..], &PEER, &[0x08, 0x00]].concat();
    frame.extend([0x45, 0]);
    frame.extend(IP_LEN.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    let checksum = internet_checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    for word in [PORT, PORT, IP_LEN - 20, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(number.to_be_bytes());
    frame.resize(FRAME_LEN, 0);
    frame
}

/// Frame `number` of a sequence from [`PEER`] to [`GUEST`] that is `flow`'s: the same with a source port of the flow's own.
pub(crate) fn of_flow(flow: u16, number: u64) -> Vec<u8> {
    let mut frame = numbered(GUEST, number);
    frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&(20_000 + flow).to_be_bytes());
    frame
}

/// What [`GUEST`] answers to a frame of that flow.
pub(crate) fn answer(flow: u16) -> Vec<u8> {
    let mut frame = of_flow(flow, 0);
    for (at, length) in [(0, 6), (26, 4), (SOURCE_PORT, 2)] {
        let (one, other) = frame[at..].split_at_mut(length);
        one.swap_with_slice(&mut other[..length]);
    }
    frame
}

const SOURCE_PORT: usize = 34;

/// RFC 1071, over an even number of bytes.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Number of a numbered frame; `None` for anything else.
pub(crate) fn number_of(frame: &[u8]) -> Option<u64> {
    let ours = frame.len() == FRAME_LEN && frame[36..38] == PORT.to_be_bytes();
    ours.then(|| u64::from_be_bytes(frame[NUMBER_OFFSET..NUMBER_OFFSET + 8].try_into().unwrap()))
}

/// Sends whole frames out of one interface.
pub(crate) struct Sender(OwnedFd);

impl Sender {
    /// Out of `interface` of the calling thread's namespace, frames of IPv4 (others keep their type on a wire; see
    /// [`Sender::of_type`]).
    pub(crate) fn new(interface: &str) -> Self {
        Self::of_type(interface, libc::ETH_P_IP as u16)
    }

    /// As [`Sender::new`], frames that the kernel takes for `ethertype` where they are sent.
    pub(crate) fn of_type(interface: &str, ethertype: u16) -> Self {
        let protocol = SockProtocol::EthAll;
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        // SAFETY: plain old data.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        // Bound to a type: an unbound protocol would give every frame the same flow hash.
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = ifindex(interface) as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: a whole address of the length said.
        assert_eq!(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) }, 0, "bind {interface}");
        Self(fd)
    }

    /// One frame, at once.
    pub(crate) fn send(&self, frame: &[u8]) {
        while !self.try_send(frame) {}
    }

    /// One frame; false if the device says that it was dropped, as a tap does of one that `steer` diverts.
    pub(crate) fn try_send(&self, frame: &[u8]) -> bool {
        // SAFETY: a buffer of the length said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "send: {error}");
            return false;
        }
        assert_eq!(sent as usize, frame.len());
        true
    }
}
