//! A second port on the move between the same hosts.

use std::net::Ipv4Addr;

use throughline_loader::{Direction, Mode, PortConfig};

use super::{
    frames::{GUEST, MARKER, Sender},
    netns::{ifindex, ip, run},
    tap::Tap,
    topology::{CARRY_ID, DEPTH, DESTINATION, Fabric, Host, PEER_INDEX, SOURCE, Shape, landing, markers},
};

/// One of the guests, as its peer knows it.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub(crate) mac: [u8; 6],
    pub(crate) marker: [u8; 6],
    pub(crate) carry_id: u32,
}

pub(crate) const FIRST: Address = Address { mac: GUEST, marker: MARKER, carry_id: CARRY_ID };
pub(crate) const SECOND: Address =
    Address { mac: [0x02, 0, 0, 0, 0, 0x11], marker: [0x02, 0, 0, 0, 0, 0x67], carry_id: CARRY_ID + 1 };

impl Address {
    /// All markers of the peer, down the path `sender` leads to.
    pub(crate) fn send_markers(&self, sender: &Sender) {
        markers(self.marker, PEER_INDEX).for_each(|frame| sender.send(&frame));
    }
}

/// Both its ends.
pub(crate) struct SecondPort {
    pub(crate) source: Host,
    pub(crate) destination: Host,
}

impl SecondPort {
    /// Beside `fabric`'s own, whose frames from now on go to its own taps only.
    pub(crate) fn new(fabric: &Fabric, shape: &Shape) -> Self {
        let source = second(&fabric.source, DESTINATION, shape);
        let destination = second(&fabric.destination, SOURCE, shape);
        destination.datapath.open_landing(SECOND.carry_id, &destination.port, &landing(SOURCE, SECOND.marker)).unwrap();
        Self { source, destination }
    }
}

/// A port that lets everything pass; `carry0` of the calling thread's namespace is its way out.
pub(crate) fn at_rest(tap: &Tap, hold: &Tap, carry_id: u32, remote: Ipv4Addr, line_limit: u32) -> PortConfig {
    PortConfig {
        tap_ifindex: tap.ifindex,
        hold_ifindex: hold.ifindex,
        carry_ifindex: ifindex("carry0"),
        carry_id,
        remote_vtep: remote,
        line_limit,
        bytes_limit: Shape::default().bytes_limit,
        mode: Mode::Pass,
        direction: Direction::Tap,
    }
}

fn second(host: &Host, remote: Ipv4Addr, shape: &Shape) -> Host {
    let (port, tap, hold) = host.netns.run(|| {
        let tap = Tap::new("guest1", shape.tap_ring);
        ip("link set guest1 master br0");
        for (device, address) in [("guest0", FIRST), ("guest1", SECOND)] {
            for mac in [address.mac, address.marker] {
                let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
                run("bridge", &format!("fdb replace {mac} dev {device} master static"));
            }
        }
        let hold = Tap::hold("hold1", DEPTH);
        let config = at_rest(&tap, &hold, SECOND.carry_id, remote, shape.line_limit);
        (host.datapath.open_port(&config).unwrap(), tap, hold)
    });
    Host { netns: host.netns.again(), datapath: host.datapath.clone(), port, tap, hold }
}
