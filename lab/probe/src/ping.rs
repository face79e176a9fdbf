//! ICMP echo over IPv4 or IPv6, answered by the guest's kernel and not by any probe of ours.

use std::io;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, connect, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::arrivals::{Arrival, Log};
use crate::clock::{Pacer, realtime_ns};
use crate::packet::{LEN, Packet};

const ICMP_HEADER: usize = 8;
/// Answers that the pinger may be late to read.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What differs between ICMP and ICMPv6.
#[derive(Debug, Clone, Copy)]
struct Version {
    request: u8,
    reply: u8,
    /// What the socket delivers before the ICMP header; the kernel answers without IP options.
    ip_header: usize,
}

/// RFC 792.
const V4: Version = Version { request: 8, reply: 0, ip_header: 20 };
/// RFC 4443. Its raw sockets deliver no IP header, and the kernel fills in the checksum.
const V6: Version = Version { request: 128, reply: 129, ip_header: 0 };

impl Version {
    const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { V4 } else { V6 }
    }
}

/// Pings at a steady rate and logs the answers.
#[derive(Debug)]
pub struct Pinger {
    next: AtomicU64,
    /// Answers, by the peer's `CLOCK_REALTIME`.
    pub answers: Log,
}

/// Pings `guest` until it has answered once; whether it did within `patience`. Needs `CAP_NET_RAW`.
pub fn answered(guest: IpAddr, patience: Duration) -> io::Result<bool> {
    let stop = Arc::new(AtomicBool::new(false));
    let session = (realtime_ns() / 1_000_000) as u32;
    let pinger = Pinger::start(guest, session, 20, &stop)?;
    let deadline = Instant::now() + patience;
    let mut answered = false;
    while !answered && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
        answered = pinger.answers.summarise(0..pinger.next()).arrived > 0;
    }
    stop.store(true, Ordering::SeqCst);
    Ok(answered)
}

impl Pinger {
    /// Starts pinging `guest` `rate` times a second until `stop`. Needs `CAP_NET_RAW`.
    pub fn start(guest: impl Into<IpAddr>, session: u32, rate: u32, stop: &Arc<AtomicBool>) -> io::Result<Arc<Self>> {
        let guest = guest.into();
        let version = Version::of(guest);
        let socket = Arc::new(icmp_socket(guest)?);
        let pinger = Arc::new(Self { next: AtomicU64::new(0), answers: Log::default() });

        let (this, receiving, stopped) = (pinger.clone(), socket.clone(), stop.clone());
        thread::spawn(move || this.receive(version, &receiving, session, &stopped));

        let (this, stopped) = (pinger.clone(), stop.clone());
        thread::spawn(move || this.send(version, &socket, session, rate, &stopped));
        Ok(pinger)
    }

    /// The number the next request will carry.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    fn send(&self, version: Version, socket: &OwnedFd, session: u32, rate: u32, stop: &AtomicBool) {
        let mut pacer = Pacer::new(rate);
        while !stop.load(Ordering::SeqCst) {
            pacer.wait();
            let sequence = self.next();
            let request = request(version, Packet { session, sequence, retransmits: 0 });
            if send(socket.as_raw_fd(), &request, MsgFlags::empty()).is_ok() {
                self.next.store(sequence + 1, Ordering::SeqCst);
            }
        }
    }

    fn receive(&self, version: Version, socket: &OwnedFd, session: u32, stop: &AtomicBool) {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::SeqCst) {
            let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
            let at_ns = realtime_ns();
            if let Some(packet) = reply(version, &buffer[..length]).filter(|packet| packet.session == session) {
                self.answers.push(Arrival { sequence: packet.sequence, at_ns });
            }
        }
    }
}

fn icmp_socket(guest: IpAddr) -> io::Result<OwnedFd> {
    let (family, protocol) = match guest {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
    match guest {
        IpAddr::V4(guest) => connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(guest, 0)))?,
        IpAddr::V6(guest) => connect(socket.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(guest, 0, 0, 0)))?,
    }
    Ok(socket)
}

/// An echo request carrying `packet`; identifier and sequence repeat its lower bits.
fn request(version: Version, packet: Packet) -> [u8; ICMP_HEADER + LEN] {
    let mut bytes = [0; ICMP_HEADER + LEN];
    bytes[0] = version.request;
    bytes[4..6].copy_from_slice(&(packet.session as u16).to_be_bytes());
    bytes[6..8].copy_from_slice(&(packet.sequence as u16).to_be_bytes());
    bytes[ICMP_HEADER..].copy_from_slice(&packet.encode());
    let checksum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn reply(version: Version, datagram: &[u8]) -> Option<Packet> {
    let icmp = datagram.get(version.ip_header..)?;
    (*icmp.first()? == version.reply).then(|| Packet::decode(icmp.get(ICMP_HEADER..)?))?
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_its_checksum_sums_to_zero() {
        let bytes = request(V4, Packet { session: 0x1234_5678, sequence: 99, retransmits: 0 });
        assert_eq!(checksum(&bytes), 0);
    }

    #[test]
    fn only_replies_count() {
        let packet = Packet { session: 1, sequence: 2, retransmits: 0 };
        for version in [V4, V6] {
            let mut datagram = vec![0; version.ip_header];
            datagram.extend(request(version, packet));
            assert_eq!(reply(version, &datagram), None);
            datagram[version.ip_header] = version.reply;
            assert_eq!(reply(version, &datagram), Some(packet));
        }
    }
}
