//! ICMP echo, answered by the guest's kernel and not by any probe of ours.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::arrivals::{Arrival, Log};
use crate::clock::{Pacer, realtime_ns};
use crate::packet::{LEN, Packet};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ICMP_HEADER: usize = 8;
/// Raw ICMP sockets deliver the IP header too; the kernel answers without IP options.
const IP_HEADER: usize = 20;

/// Pings at a steady rate and logs the answers.
#[derive(Debug)]
pub struct Pinger {
    next: AtomicU64,
    /// Answers, by the peer's `CLOCK_REALTIME`.
    pub answers: Log,
}

/// Pings `guest` until it has answered once; whether it did within `patience`. Needs `CAP_NET_RAW`.
pub fn answered(guest: Ipv4Addr, patience: Duration) -> io::Result<bool> {
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
    pub fn start(guest: Ipv4Addr, session: u32, rate: u32, stop: &Arc<AtomicBool>) -> io::Result<Arc<Self>> {
        let socket = Arc::new(icmp_socket(guest)?);
        let pinger = Arc::new(Self { next: AtomicU64::new(0), answers: Log::default() });

        let (this, receiving, stopped) = (pinger.clone(), socket.clone(), stop.clone());
        thread::spawn(move || this.receive(&receiving, session, &stopped));

        let (this, stopped) = (pinger.clone(), stop.clone());
        thread::spawn(move || this.send(&socket, session, rate, &stopped));
        Ok(pinger)
    }

    /// The number the next request will carry.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    fn send(&self, socket: &OwnedFd, session: u32, rate: u32, stop: &AtomicBool) {
        let mut pacer = Pacer::new(rate);
        while !stop.load(Ordering::SeqCst) {
            pacer.wait();
            let sequence = self.next();
            let request = request(Packet { session, sequence, retransmits: 0 });
            if send(socket.as_raw_fd(), &request, MsgFlags::empty()).is_ok() {
                self.next.store(sequence + 1, Ordering::SeqCst);
            }
        }
    }

    fn receive(&self, socket: &OwnedFd, session: u32, stop: &AtomicBool) {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::SeqCst) {
            let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
            let at_ns = realtime_ns();
            if let Some(packet) = reply(&buffer[..length]).filter(|packet| packet.session == session) {
                self.answers.push(Arrival { sequence: packet.sequence, at_ns });
            }
        }
    }
}

fn icmp_socket(guest: Ipv4Addr) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(guest, 0)))?;
    Ok(socket)
}

/// An echo request (RFC 792) carrying `packet`; identifier and sequence repeat its lower bits.
fn request(packet: Packet) -> [u8; ICMP_HEADER + LEN] {
    let mut bytes = [0; ICMP_HEADER + LEN];
    bytes[0] = ECHO_REQUEST;
    bytes[4..6].copy_from_slice(&(packet.session as u16).to_be_bytes());
    bytes[6..8].copy_from_slice(&(packet.sequence as u16).to_be_bytes());
    bytes[ICMP_HEADER..].copy_from_slice(&packet.encode());
    let checksum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn reply(datagram: &[u8]) -> Option<Packet> {
    let icmp = datagram.get(IP_HEADER..)?;
    (*icmp.first()? == ECHO_REPLY).then(|| Packet::decode(icmp.get(ICMP_HEADER..)?))?
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
        let bytes = request(Packet { session: 0x1234_5678, sequence: 99, retransmits: 0 });
        assert_eq!(checksum(&bytes), 0);
    }

    #[test]
    fn only_replies_count() {
        let packet = Packet { session: 1, sequence: 2, retransmits: 0 };
        let mut datagram = vec![0; IP_HEADER];
        datagram.extend(request(packet));
        assert_eq!(reply(&datagram), None);
        datagram[IP_HEADER] = ECHO_REPLY;
        assert_eq!(reply(&datagram), Some(packet));
    }
}
