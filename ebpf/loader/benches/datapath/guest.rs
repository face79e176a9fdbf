//! A guest with the kernel's own TCP, behind the taps of both hosts, and a peer with another.
//!
//! ```text
//!            ┌ old0 ── up0 ─ br0 ─ guest0 ┄ gs ┐
//!   peer pbr ┤          (source)               ├ gbr guest
//!            └ new0 ── up0 ─ br0 ─ guest0 ┄ gd ┘
//!                    (destination)
//! ```
//!
//! What `┄` is decides what the figures are about. [`Wire::Kernel`] redirects behind `steer`, on the tap's egress, so that
//! nothing but the kernel's path is measured and the cost of the programs shows most. [`Wire::Tap`] copies every frame
//! through the tap's descriptor as a hypervisor without vhost does.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::support::{
    netns::{Netns, ip, run},
    queues::run_on,
    tap::Tap,
    topology::{Fabric, Host},
};

const PEER_IP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PEER_MAC: &str = "02:00:00:00:00:20";
const GUEST_MAC: &str = "02:00:00:00:00:10";

/// What connects a tap with its guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Kernel,
    Tap,
}

/// Peer and guest, each with an address.
pub(crate) struct Stacks {
    guest: Netns,
    stop: Arc<AtomicBool>,
    forwarders: Vec<JoinHandle<()>>,
}

impl Stacks {
    /// The guest answers through the destination if `away`, else through the source.
    pub(crate) fn new(fabric: &Fabric, wire: Wire, away: bool) -> Self {
        let guest = Netns::new();
        fabric.peer.run(|| bridge("pbr", PEER_MAC, PEER_IP, GUEST_IP, GUEST_MAC));
        guest.run(|| bridge("gbr", GUEST_MAC, GUEST_IP, PEER_IP, PEER_MAC));
        fabric.peer.run(|| {
            join("pbr", &["old0", "new0"]);
            run("bridge", &format!("fdb replace {GUEST_MAC} dev old0 master static"));
        });
        let mut stacks = Self { guest, stop: Arc::default(), forwarders: Vec::new() };
        for (host, name) in [(&fabric.source, "gs"), (&fabric.destination, "gd")] {
            match wire {
                Wire::Kernel => stacks.redirect(host, name),
                Wire::Tap => stacks.forward(host, name),
            }
        }
        for host in [&fabric.source, &fabric.destination] {
            // The guest's 1,500 bytes and the tunnel's 50, or every segment would be fragmented.
            host.netns.run(|| ip("link set und0 mtu 1550"));
            // As a card's queue has it: frames of one flow are received by one processor.
            for device in ["up0", "und0"] {
                host.netns.write_sysfs(&format!("class/net/{device}/queues/rx-0/rps_cpus"), "1");
            }
        }
        stacks.guest.run(|| {
            join("gbr", &["gs", "gd"]);
            let way = if away { "gd" } else { "gs" };
            run("bridge", &format!("fdb replace {PEER_MAC} dev {way} master static"));
        });
        stacks
    }

    fn redirect(&self, host: &Host, name: &str) {
        host.netns.run(|| {
            ip(&format!("link add {name} type veth peer name {name} netns {}", self.guest.path()));
            ip(&format!("link set {name} up"));
            for device in ["guest0", name] {
                run("tc", &format!("qdisc add dev {device} clsact"));
            }
            let all = "protocol all u32 match u32 0 0 action mirred";
            run("tc", &format!("filter add dev guest0 egress {all} egress redirect dev {name}"));
            run("tc", &format!("filter add dev {name} ingress {all} ingress redirect dev guest0"));
        });
    }

    fn forward(&mut self, host: &Host, name: &str) {
        let card = self.guest.run(|| Tap::new(name, 10_000));
        for (from, to) in [(host.tap.dup(), card.dup()), (card.dup(), host.tap.dup())] {
            let stop = Arc::clone(&self.stop);
            let (from, to) = (File::from(from), File::from(to));
            self.forwarders.push(std::thread::spawn(move || forward(&from, &to, &stop)));
        }
    }

    /// The peer sends to the guest as fast as TCP can, until dropped.
    pub(crate) fn stream(&self, fabric: &Fabric) -> Stream {
        let listener = self.guest.run(|| TcpListener::bind((GUEST_IP, 5001)).unwrap());
        let sender = fabric.peer.run(|| TcpStream::connect((GUEST_IP, 5001)).unwrap());
        let (receiver, _) = listener.accept().unwrap();
        use_cubic(&sender);
        Stream::start(sender, receiver)
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for forwarder in self.forwarders.drain(..) {
            let _ = forwarder.join();
        }
    }
}

/// A bridge with an address, which knows the other end.
fn bridge(name: &str, mac: &str, own: Ipv4Addr, other: Ipv4Addr, other_mac: &str) {
    ip(&format!("link add {name} type bridge mcast_snooping 0"));
    ip(&format!("link set {name} address {mac} up"));
    ip(&format!("addr add {own}/24 dev {name}"));
    ip(&format!("neigh replace {other} lladdr {other_mac} dev {name} nud permanent"));
}

/// Nothing is flooded and nothing learned: both ways lead to both ends, so what is not addressed would go round for ever,
/// and an answer would turn the way there.
fn join(bridge: &str, devices: &[&str]) {
    for device in devices {
        ip(&format!("link set {device} master {bridge} up"));
        ip(&format!("link set {device} type bridge_slave learning off flood off mcast_flood off bcast_flood off"));
    }
}

fn forward(mut from: &File, mut to: &File, stop: &AtomicBool) {
    let mut buffer = vec![0; 128 * 1024];
    while !stop.load(Relaxed) {
        match from.read(&mut buffer) {
            // The guest's side may have no room; then a card drops too.
            Ok(length) => drop(to.write(&buffer[..length])),
            Err(_) => {
                let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::from(100_u8));
            }
        }
    }
}

/// Bytes arriving without end.
pub(crate) struct Stream {
    received: Arc<AtomicU64>,
    sender: TcpStream,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    fn start(sender: TcpStream, receiver: TcpStream) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&received);
        let mut writer = sender.try_clone().unwrap();
        let threads = vec![
            std::thread::spawn(move || {
                run_on(1);
                let buffer = vec![0; 512 * 1024];
                while writer.write_all(&buffer).is_ok() {}
            }),
            std::thread::spawn(move || {
                // Where the frames are received: see `rps_cpus`.
                run_on(0);
                // Thrown away in the kernel: the path is measured, not the reader.
                loop {
                    // SAFETY: with MSG_TRUNC TCP writes nothing to the buffer, which may be null.
                    let length =
                        unsafe { libc::recv(receiver.as_raw_fd(), std::ptr::null_mut(), 4 << 20, libc::MSG_TRUNC) };
                    match u64::try_from(length) {
                        Ok(1..) => counted.fetch_add(length as u64, Relaxed),
                        _ => return,
                    };
                }
            }),
        ];
        Self { received, sender, threads }
    }

    /// Gbit/s that arrive in a while.
    pub(crate) fn rate(&self, time: Duration) -> f64 {
        let (began, before) = (Instant::now(), self.received.load(Relaxed));
        std::thread::sleep(time);
        let bits = 8.0 * (self.received.load(Relaxed) - before) as f64;
        bits / began.elapsed().as_secs_f64() / 1e9
    }

    /// No faster than so many Gbit/s from now on.
    pub(crate) fn keep_pace(&self, gigabits: u64) {
        let bytes = gigabits * 1_000_000_000 / 8;
        set(&self.sender, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &bytes.to_ne_bytes());
    }

    /// Segments sent again so far.
    pub(crate) fn retransmits(&self) -> u64 {
        // SAFETY: plain old data.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the kernel fills at most the length said.
        let got = unsafe {
            libc::getsockopt(
                self.sender.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        assert_eq!(got, 0, "TCP_INFO");
        u64::from(info.tcpi_total_retrans)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.sender.shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn use_cubic(socket: &TcpStream) {
    set(socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"cubic");
}

fn set(socket: &TcpStream, level: libc::c_int, option: libc::c_int, value: &[u8]) {
    // SAFETY: a value of the length said.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    assert_eq!(set, 0, "option {option}: {}", std::io::Error::last_os_error());
}
