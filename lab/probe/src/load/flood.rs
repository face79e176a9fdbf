//! The peer's end of the flood: numbered UDP over many flows, sent in batches.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::mmsg::{BATCH, Datagrams, LEN};
use crate::clock::{Pacer, realtime_ns};

const MAGIC: u32 = 0x544c_464c;

/// How often a batch is sent, a second.
const TICKS: u32 = 1000;

/// A packet of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The load it belongs to.
    pub load: u32,
    /// Its flow.
    pub flow: u32,
    /// Counts from 0 in each flow.
    pub number: u64,
}

impl Packet {
    /// The payload on the wire, big endian.
    pub fn encode(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.load.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.flow.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// Reads a payload; `None` if it is not a packet of a flood.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.get(0..4)? != MAGIC.to_be_bytes() {
            return None;
        }
        Some(Self {
            load: u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?),
            flow: u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?),
            number: u64::from_be_bytes(bytes.get(12..20)?.try_into().ok()?),
        })
    }
}

/// What was sent of one flow: the batches' first numbers and when each left.
#[derive(Debug, Default)]
pub struct Sent {
    next: u64,
    batches: Vec<(u64, u64)>,
}

impl Sent {
    /// How many packets.
    pub fn count(&self) -> u64 {
        self.next
    }

    /// When a packet left, nanoseconds since 1970; 0 if it never did.
    pub fn at_ns(&self, number: u64) -> u64 {
        let batch = self.batches.partition_point(|&(first, _)| first <= number);
        batch.checked_sub(1).map_or(0, |batch| self.batches[batch].1)
    }
}

/// Sends until told to stop.
#[derive(Debug)]
pub struct Sender(Option<JoinHandle<Vec<Sent>>>);

impl Sender {
    /// Starts sending `pps` packets a second in all to `sink`, over `flows` flows in turn, until `stop`.
    pub fn start(sink: SocketAddrV4, load: u32, pps: u32, flows: u32, stop: &Arc<AtomicBool>) -> io::Result<Self> {
        let flows = if pps == 0 { 0 } else { flows.max(1) };
        let mut sockets = Vec::new();
        for _ in 0..flows {
            let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(sink)?;
            sockets.push(socket);
        }
        let stop = stop.clone();
        Ok(Self(Some(thread::spawn(move || send(&sockets, load, pps, &stop)))))
    }

    /// Waits until it has stopped; what it sent, by flow.
    pub fn finish(&mut self) -> Vec<Sent> {
        self.0.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

fn send(sockets: &[UdpSocket], load: u32, pps: u32, stop: &AtomicBool) -> Vec<Sent> {
    let mut sent: Vec<Sent> = sockets.iter().map(|_| Sent::default()).collect();
    if sockets.is_empty() {
        return sent;
    }
    let mut datagrams = Datagrams::new();
    let mut pacer = Pacer::new(TICKS.min(pps));
    let (mut turn, mut owed) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        pacer.wait();
        owed += pps;
        let due = owed / TICKS.min(pps);
        owed %= TICKS.min(pps);
        // In runs of what each flow is due, beginning where the last tick ended.
        let (each, more) = (due as usize / sockets.len(), due as usize % sockets.len());
        for step in 0..sockets.len() {
            let flow = (turn + step) % sockets.len();
            let mut count = each + usize::from(step < more);
            while count > 0 {
                let batch = send_batch(&sockets[flow], &mut datagrams, load, flow, &mut sent[flow], count.min(BATCH));
                count = count.saturating_sub(batch.max(1));
            }
        }
        turn = (turn + more) % sockets.len();
    }
    sent
}

/// Sends up to `count` packets of a flow. One the socket refuses takes no number: it never was on the network.
fn send_batch(
    socket: &UdpSocket,
    datagrams: &mut Datagrams,
    load: u32,
    flow: usize,
    sent: &mut Sent,
    count: usize,
) -> usize {
    for (bytes, number) in datagrams.bytes.iter_mut().zip(sent.next..).take(count) {
        *bytes = Packet { load, flow: flow as u32, number }.encode();
    }
    let at_ns = realtime_ns();
    let taken = datagrams.send(socket, count).unwrap_or(0);
    if taken > 0 {
        sent.batches.push((sent.next, at_ns));
        sent.next += taken as u64;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        let packet = Packet { load: 7, flow: 63, number: 1 << 40 };
        assert_eq!(Packet::decode(&packet.encode()), Some(packet));
        assert_eq!(Packet::decode(&[0; LEN]), None);
        assert_eq!(Packet::decode(&packet.encode()[..19]), None);
    }

    #[test]
    fn a_packet_left_with_its_batch() {
        let sent = Sent { next: 9, batches: vec![(0, 100), (4, 200)] };
        assert_eq!([0, 3, 4, 8].map(|number| sent.at_ns(number)), [100, 100, 200, 200]);
        assert_eq!(Sent::default().at_ns(0), 0);
    }
}
