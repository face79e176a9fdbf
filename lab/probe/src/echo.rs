//! Numbered UDP from the peer, echoed by the guest, counted at both.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::arrivals::{Arrival, Log};
use crate::clock::{Pacer, monotonic_ns, realtime_ns};
use crate::packet::Packet;

/// Room for datagrams that wait for their reader, bytes: a reader kept from running for a second loses none.
const RECEIVE_BUFFER: usize = 16 << 20;

/// A UDP socket on `address` that does not drop what its reader has not fetched yet.
pub fn socket(address: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    Ok(socket)
}

/// Answers probe packets until its thread's process ends: `arrived` notes each one of ours, and says whether it is.
pub fn respond(socket: &UdpSocket, arrived: impl Fn(Packet, u64) -> bool) -> io::Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let (length, sender) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // An ICMP error about an earlier echo; the socket itself is fine.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let now = monotonic_ns();
        if Packet::decode(&buffer[..length]).is_some_and(|packet| arrived(packet, now)) {
            // An echo that cannot be sent is one the peer will miss and report.
            let _ = socket.send_to(&buffer[..length], sender);
        }
    }
}

/// The peer's end: sends at a steady rate and logs the echoes.
#[derive(Debug)]
pub struct Sender {
    next: AtomicU64,
    /// When each packet was sent, by the peer's `CLOCK_REALTIME`.
    pub sent: Log,
    /// Echoes, by the peer's `CLOCK_REALTIME`.
    pub echoes: Log,
}

impl Sender {
    /// Starts sending `pps` packets a second to `guest`, until `stop`.
    pub fn start(guest: SocketAddrV4, session: u32, pps: u32, stop: &Arc<AtomicBool>) -> io::Result<Arc<Self>> {
        let socket = socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(guest)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let sender = Arc::new(Self { next: AtomicU64::new(0), sent: Log::default(), echoes: Log::default() });

        let receiving = socket.try_clone()?;
        let (this, stopped) = (sender.clone(), stop.clone());
        thread::spawn(move || receive(&receiving, session, &stopped, |packet| this.echoes.push(packet)));

        let (this, stopped) = (sender.clone(), stop.clone());
        thread::spawn(move || {
            send(&socket, session, pps, &this.next, &AtomicU32::new(0), &stopped, |arrival| this.sent.push(arrival));
        });
        Ok(sender)
    }

    /// The number the next packet will carry.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }
}

/// Sends numbered packets over a connected socket until `stop`; `next` is the number to come. A packet the socket
/// refuses takes no number: it never was on the network. `sent` is told of each one, with the time before it left.
pub fn send(
    socket: &UdpSocket,
    session: u32,
    pps: u32,
    next: &AtomicU64,
    retransmits: &AtomicU32,
    stop: &AtomicBool,
    sent: impl Fn(Arrival),
) {
    let mut pacer = Pacer::new(pps);
    while !stop.load(Ordering::SeqCst) {
        pacer.wait();
        let sequence = next.load(Ordering::SeqCst);
        let packet = Packet { session, sequence, retransmits: retransmits.load(Ordering::SeqCst) };
        let at_ns = realtime_ns();
        if socket.send(&packet.encode()).is_ok() {
            sent(Arrival { sequence, at_ns });
            next.store(sequence + 1, Ordering::SeqCst);
        }
    }
}

/// Hands this session's packets to `arrived`, stamped with `CLOCK_REALTIME`, until `stop`.
pub fn receive(socket: &UdpSocket, session: u32, stop: &AtomicBool, arrived: impl Fn(Arrival)) {
    receive_packets(socket, session, stop, |packet, at_ns| arrived(Arrival { sequence: packet.sequence, at_ns }));
}

/// As [`receive`], with the whole packet. The socket needs a read timeout for `stop` to be noticed.
pub fn receive_packets(socket: &UdpSocket, session: u32, stop: &AtomicBool, arrived: impl Fn(Packet, u64)) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::SeqCst) {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let now = realtime_ns();
        if let Some(packet) = Packet::decode(&buffer[..length]).filter(|packet| packet.session == session) {
            arrived(packet, now);
        }
    }
}
