//! Namespaces, a fabric of them, and a look at the wire.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use throughline_cutover::{MacAddr, Mtu, PortId, Vni};
use throughline_netlink::{BindingWanted, EndpointWanted, Netlink, NetworkWanted, Path, names};

pub(crate) const MTU: u32 = 1450;

/// A network namespace with only a loopback; gone with the value.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let space = Self { name: format!("tlnl-{}-{number}", std::process::id()) };
        run("ip", &["netns", "add", &space.name]);
        space.ip(&["link", "set", "lo", "up"]);
        // The hardest case for silence: a host that routes IPv6 joins groups on every device that lets it.
        space.enter(|| async { std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap() });
        space
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own in the namespace, under a runtime of its own.
    pub(crate) fn enter<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.name)).expect("namespace file");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns needs root");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(work())
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    pub(crate) fn bridge(&self, arguments: &[&str]) -> String {
        run("bridge", &[&["-n", &self.name], arguments].concat())
    }

    /// `ip -d -j link show`, the one device.
    pub(crate) fn describe(&self, device: &str) -> serde_json::Value {
        let text = self.ip(&["-d", "-j", "link", "show", "dev", device]);
        let mut links: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        links.remove(0)
    }

    /// Names of all devices but loopback.
    pub(crate) fn devices(&self) -> Vec<String> {
        let links: Vec<serde_json::Value> = serde_json::from_str(&self.ip(&["-j", "link", "show"])).unwrap();
        links.iter().map(|l| l["ifname"].as_str().unwrap().to_owned()).filter(|name| name != "lo").collect()
    }

    pub(crate) fn udp(&self, address: impl Into<IpAddr> + Send) -> UdpSocket {
        let address = address.into();
        self.enter(|| async move {
            let socket = UdpSocket::bind((address, 7777)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            socket
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn vni() -> Vni {
    Vni::try_from(100_u32).unwrap()
}

pub(crate) fn mtu() -> Mtu {
    Mtu::try_from(MTU).unwrap()
}

pub(crate) fn port(number: u32) -> PortId {
    PortId::try_from(number).unwrap()
}

pub(crate) fn mac(last: u8) -> MacAddr {
    MacAddr::new([0x02, 0, 0, 0, 0, last])
}

pub(crate) fn ips(last: u8) -> Vec<IpAddr> {
    vec![format!("10.0.0.{last}").parse().unwrap(), format!("2001:db8::{last:x}").parse().unwrap()]
}

pub(crate) fn vtep(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, u8::try_from(host).unwrap() + 1)
}

/// A guest's port, by the last byte of its addresses, at a place.
pub(crate) fn binding(last: u8, path: Path) -> BindingWanted {
    BindingWanted { mac: mac(last), ips: ips(last), path }
}

pub(crate) fn remote(host: usize) -> Path {
    Path::Remote { vtep: vtep(host) }
}

/// To an endpoint's end in the bridge.
pub(crate) fn local(last: u8) -> Path {
    Path::Local { device: names::endpoint(port(u32::from(last))) }
}

/// An endpoint called `ep<last>` whose port has that number.
pub(crate) fn endpoint(last: u8) -> EndpointWanted {
    EndpointWanted {
        name: format!("ep{last}").parse().unwrap(),
        vni: vni(),
        port: port(u32::from(last)),
        mac: mac(last),
        ips: ips(last),
        prefix_len: 24,
        mtu: mtu(),
    }
}

/// Hosts on one underlay, each in its namespace.
pub(crate) struct Fabric {
    pub(crate) hosts: Vec<Namespace>,
    _switch: Namespace,
}

impl Fabric {
    pub(crate) fn new(size: usize) -> Self {
        let switch = Namespace::new();
        switch.ip(&["link", "add", "sw", "up", "type", "bridge"]);
        let hosts: Vec<Namespace> = (0..size).map(|_| Namespace::new()).collect();
        for (number, host) in hosts.iter().enumerate() {
            let there = format!("p{number}");
            host.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", &there, "netns", &switch.name]);
            host.ip(&["addr", "add", &format!("{}/24", vtep(number)), "dev", "eth0"]);
            host.ip(&["link", "set", "eth0", "up"]);
            switch.ip(&["link", "set", &there, "master", "sw", "up"]);
        }
        Self { hosts, _switch: switch }
    }

    /// The network as a host should have it.
    pub(crate) fn network(&self, host: usize, bindings: Vec<BindingWanted>) -> NetworkWanted {
        let flood = (0..self.hosts.len()).filter(|&other| other != host).map(vtep).collect();
        NetworkWanted { vni: vni(), mtu: mtu(), local_vtep: vtep(host), flood, bindings }
    }

    /// A guest-like endpoint at each place, and everybody told.
    pub(crate) fn settle(&self, places: &[(u8, usize)]) {
        for (number, host) in self.hosts.iter().enumerate() {
            host.enter(|| async move {
                let netlink = Netlink::open().unwrap();
                netlink.ensure_network(&self.network(number, vec![])).await.unwrap();
                for (last, _) in places.iter().filter(|(_, place)| *place == number) {
                    netlink.create_endpoint(&endpoint(*last)).await.unwrap();
                }
                let at = |&(last, place): &(u8, usize)| {
                    binding(last, if place == number { local(last) } else { remote(place) })
                };
                let wanted = self.network(number, places.iter().map(at).collect());
                netlink.ensure_network(&wanted).await.unwrap();
            });
        }
    }
}

/// Everything that passes a device, both ways.
pub(crate) struct Sniffer {
    socket: OwnedFd,
}

impl Sniffer {
    pub(crate) fn new(space: &Namespace, device: &str) -> Self {
        let index = space.describe(device)["ifindex"].as_i64().unwrap();
        space.enter(|| async move { Self::open(i32::try_from(index).unwrap()).expect("packet socket") })
    }

    fn open(index: i32) -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: socket(2) takes no pointers; protocol 0 receives nothing before the bind.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is ours alone.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain data, all zeroes is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address outlives the call and has that length.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket })
    }

    /// Puts a frame on the device.
    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.socket, frame).unwrap(), frame.len());
    }

    /// What has passed since the last call.
    pub(crate) fn drain(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(length) = nix::unistd::read(&self.socket, &mut buffer) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }

    /// Waits until `wanted` frames that fulfil the condition have passed, a second at most; those frames.
    pub(crate) fn collect(&self, wanted: usize, condition: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let end = Instant::now() + Duration::from_secs(1);
        let mut found = Vec::new();
        while found.len() < wanted && Instant::now() < end {
            found.extend(self.drain().into_iter().filter(|frame| condition(frame)));
            thread::sleep(Duration::from_millis(5));
        }
        found
    }
}

/// The tenant's frame in a frame on the underlay, if it is one of VXLAN.
pub(crate) fn inner(frame: &[u8]) -> Option<&[u8]> {
    const OUTER: usize = 14 + 20 + 8 + 8;
    let vxlan = frame.get(12..14)? == [0x08, 0x00] && frame[23] == 17 && frame[36..38] == 4789_u16.to_be_bytes();
    vxlan.then(|| &frame[OUTER..])
}

/// An Ethernet frame of ARP or of neighbour discovery's solicitations.
pub(crate) fn asks_for_an_address(frame: &[u8]) -> bool {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    match frame.get(12..14) {
        Some([0x08, 0x06]) => true,
        Some([0x86, 0xdd]) => frame.get(20) == Some(&58) && frame.get(54) == Some(&NEIGHBOUR_SOLICITATION),
        _ => false,
    }
}
