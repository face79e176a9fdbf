//! Several queues, processors, and a look at the wire.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
    unistd::Pid,
};

use super::netns::{Netns, ifindex, run};

/// Binds the calling thread, and those it starts from now on, to one CPU.
pub(crate) fn run_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).expect("these tests need two processors");
}

/// Gives a veth device two transmit queues, one for each of two CPUs, of which the second is slow.
pub(crate) fn slow_queue_of_second_cpu(netns: &Netns, device: &str) {
    netns.run(|| set_channels(device, 2));
    for (queue, mask) in [(0, "1"), (1, "2")] {
        netns.write_sysfs(&format!("class/net/{device}/queues/tx-{queue}/xps_cpus"), mask);
    }
    netns.run(|| {
        run("tc", &format!("qdisc add dev {device} root handle 1: mq"));
        run("tc", &format!("qdisc add dev {device} parent 1:2 handle 20: tbf rate 4mbit burst 2000 limit 10mb"));
    });
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

fn set_channels(device: &str, count: u32) {
    const ETHTOOL_SCHANNELS: u32 = 0x3d;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let mut channels = Channels { command: ETHTOOL_SCHANNELS, rx: count, tx: count, ..Channels::default() };
    // SAFETY: plain old data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: the kernel reads the name and the structure pointed to, which outlives the call.
    let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(set, 0, "ETHTOOL_SCHANNELS {device}: {}", std::io::Error::last_os_error());
}

/// Sees every frame that passes a device.
pub(crate) struct Sniffer(OwnedFd);

impl Sniffer {
    /// On `device` of the calling thread's namespace.
    pub(crate) fn new(device: &str) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None).unwrap();
        // SAFETY: plain old data.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = ifindex(device) as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: a whole address of the length said.
        assert_eq!(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) }, 0, "bind {device}");
        Self(fd)
    }

    /// What has passed since the last call.
    pub(crate) fn drain(&self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        let next = || nix::unistd::read(&self.0, &mut buffer).ok().map(|length| buffer[..length].to_vec());
        std::iter::from_fn(next).collect()
    }
}
