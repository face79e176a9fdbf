//! Garbage for a host's tunnels, from somebody on the underlay who claims to be whoever he likes.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};

use crate::namespace::Namespace;

/// UDP ports of the carry tunnel and of the tenants' tunnels.
const CARRY: u16 = 4790;
const TENANTS: u16 = 4789;
/// Longest time between two batches.
const BATCH: Duration = Duration::from_millis(1);

/// Whom it is for, and whom it claims to be from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aim {
    /// Tunnel end point of the host that gets it: a move's destination.
    pub(super) to: Ipv4Addr,
    /// Tunnel end point that some of it claims to be from: the move's source.
    pub(super) claimed: Ipv4Addr,
}

/// Garbage under way.
#[derive(Debug)]
pub(super) struct Garbage {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Garbage {
    /// Begins to send `pps` frames a second from a node.
    pub(super) fn start(from: &Namespace, aim: Aim, pps: u32) -> Result<Self> {
        let namespace = File::open(format!("/run/netns/{}", from.name())).context("the lab is not up")?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            send(aim, pps, &until)
        });
        Ok(Self { stop, thread })
    }

    /// Ends it; how many frames were sent.
    pub(super) fn stop(self) -> Result<u64> {
        self.stop.store(true, SeqCst);
        self.thread.join().map_err(|_| anyhow!("the thread that sends garbage panicked"))?
    }
}

fn send(aim: Aim, pps: u32, stop: &AtomicBool) -> Result<u64> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw).context("no raw socket")?;
    let [a, b, c, d] = aim.to.octets();
    let to = SockaddrIn::new(a, b, c, d, 0);
    let began = Instant::now();
    let mut sent = 0;
    while !stop.load(SeqCst) {
        let due = (began.elapsed().as_secs_f64() * f64::from(pps)) as u64;
        while sent < due {
            // A full queue of the sender's own is no failure: what was not sent is no garbage.
            match sendto(socket.as_raw_fd(), &packet(aim, sent), &to, MsgFlags::empty()) {
                Ok(_) | Err(nix::errno::Errno::ENOBUFS) => sent += 1,
                Err(error) => return Err(error).context("garbage cannot be sent"),
            }
        }
        thread::sleep(BATCH);
    }
    Ok(sent)
}

/// One of several kinds, with its IP header; the kernel adds length and checksum.
fn packet(aim: Aim, number: u64) -> Vec<u8> {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let stranger = Ipv4Addr::from_bits(aim.to.to_bits() & !0xff | 99);
    // A frame for the guest, as far as one can tell: Ethernet and a datagram's worth of noise.
    let frame = |to: [u8; 6]| [&to[..], &[0x02, 0, 0, 0, 0, 0x99, 0x08, 0x00], &[number as u8; 64]].concat();
    let tunnelled = |key: u32, frame: &[u8]| [&[8, 0, 0, 0][..], &(key << 8).to_be_bytes(), frame].concat();
    let key = mixed as u32 & 0xff_ffff;
    let guest = [0x02, 0, 0, 0x07, 0, 0x10];
    let (from, port, payload) = match number % 5 {
        0 => (aim.claimed, CARRY, tunnelled(key, &frame(guest))),
        1 => (stranger, CARRY, tunnelled(key, &frame(guest))),
        2 => (stranger, CARRY, vec![mixed as u8; (mixed >> 56) as usize]),
        3 => (aim.claimed, TENANTS, tunnelled(key | 1 << 23, &frame(guest))),
        _ => (stranger, TENANTS, vec![mixed as u8; (mixed >> 56) as usize]),
    };
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend([from.octets(), aim.to.octets()].concat());
    for word in [0xc000 | (mixed >> 40) as u16 & 0x3fff, port, 8 + payload.len() as u16, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_of_all_kinds_and_never_in_the_labs_own_network() {
        let aim = Aim { to: Ipv4Addr::new(192, 0, 2, 12), claimed: Ipv4Addr::new(192, 0, 2, 11) };
        let own: u32 = crate::demo::cast::VNI.parse().unwrap();
        for number in 0..100_000 {
            let packet = packet(aim, number);
            assert_eq!(packet[16..20], aim.to.octets());
            assert_eq!(u16::from_be_bytes([packet[24], packet[25]]) as usize, packet.len() - 20);
            let is_tenants = packet[22..24] == TENANTS.to_be_bytes();
            let key = packet.get(32..35).map(|key| u32::from_be_bytes([0, key[0], key[1], key[2]]));
            assert!(!is_tenants || packet.get(28) != Some(&8) || key.is_none_or(|key| key != own));
        }
    }
}
