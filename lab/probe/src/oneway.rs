//! Numbered UDP from the guest to the peer: what the guest says without being asked.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::thread;
use std::time::Duration;

use crate::arrivals::{Arrival, Log};
use crate::echo;
use crate::packet::Packet;

/// Starts the guest's sender: `pps` packets a second to `peer` until `stop`, `next` being the number to come and
/// `retransmits` what each packet tells about the guest's end of the TCP stream.
pub fn start_sender(
    peer: SocketAddr,
    session: u32,
    pps: u32,
    next: Arc<AtomicU64>,
    retransmits: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
) -> io::Result<()> {
    let socket = echo::socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(peer)?;
    thread::spawn(move || echo::send(&socket, session, pps, &next, &retransmits, &stop, |_| {}));
    Ok(())
}

/// The peer's end: logs what arrives.
#[derive(Debug)]
pub struct Receiver {
    /// Arrivals, by the peer's `CLOCK_REALTIME`.
    pub arrivals: Log,
    /// UDP port it listens on.
    pub port: u16,
}

impl Receiver {
    /// Listens on `port` (0: any) until `stop`; `retransmits` is told the guest's count each time a packet brings one.
    pub fn start(
        port: u16,
        session: u32,
        stop: &Arc<AtomicBool>,
        retransmits: impl Fn(u32, u64) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let socket = echo::socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let receiver = Arc::new(Self { arrivals: Log::default(), port: socket.local_addr()?.port() });
        let (this, stop) = (receiver.clone(), stop.clone());
        thread::spawn(move || {
            echo::receive_packets(&socket, session, &stop, |packet: Packet, at_ns| {
                this.arrivals.push(Arrival { sequence: packet.sequence, at_ns });
                retransmits(packet.retransmits, at_ns);
            });
        });
        Ok(receiver)
    }
}
