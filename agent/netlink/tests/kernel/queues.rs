//! Markers, where a path has several queues and one of them is slow.

use std::{collections::BTreeSet, net::UdpSocket};

use throughline_abi::MARKERS;
use throughline_cutover::{CarryId, MarkerSecret};
use throughline_netlink::{MarkerOrder, Netlink};

use crate::support::{Fabric, Sniffer, inner, ips, local, mac, remote, run, vni};

const FRAMES: usize = 200;
const PAYLOAD: [u8; 64] = *b"sixty-four bytes of a tenant's datagram, told apart from markers";

fn send_markers(fabric: &Fabric) {
    fabric.hosts[0].enter(|| async {
        let netlink = Netlink::open().unwrap();
        let order = MarkerOrder {
            marker_mac: mac(0xee),
            carry_id: CarryId::try_from(4711_u32).unwrap(),
            peer: 3,
            secret: MarkerSecret::default(),
        };
        netlink.send_markers(vni(), &order).await.unwrap();
    });
}

fn is_marker(frame: &[u8]) -> bool {
    frame[..6] == mac(0xee).octets()
}

fn is_datagram(frame: &[u8]) -> bool {
    // Nor the ICMP message that sends it back.
    const UDP: u8 = 17;
    frame[23] == UDP && frame.ends_with(&PAYLOAD)
}

/// Which of two queues takes a frame on the underlay: the last bit of its outer source port.
fn queue(frame: &[u8]) -> u8 {
    frame[35] & 1
}

/// A socket whose frames take another queue than `other`.
fn flow_of_another_queue(fabric: &Fabric, wire: &Sniffer, other: u8) -> UdpSocket {
    for _ in 0..64 {
        let socket = fabric.hosts[0].enter(|| async { UdpSocket::bind((ips(1)[0], 0)).unwrap() });
        socket.send_to(&PAYLOAD, (ips(2)[0], 7777)).unwrap();
        let frames = wire.collect(1, |frame| inner(frame).is_some_and(is_datagram));
        if queue(&frames[0]) != other {
            return socket;
        }
    }
    panic!("64 flows, all in one queue");
}

#[test]
fn markers_come_behind_what_waits_in_a_slow_queue() {
    let fabric = Fabric::new(2);
    fabric.settle(&[(1, 0), (2, 1)]);
    for (host, path) in [(0, remote(1)), (1, local(2))] {
        fabric.hosts[host].enter(|| async move {
            Netlink::open().unwrap().set_marker(vni(), mac(0xee), &path).await.unwrap();
        });
    }
    // The hardest case: frames in another queue than the first marker, and that queue is slow.
    let wire = Sniffer::new(&fabric.hosts[0], "eth0");
    send_markers(&fabric);
    let first = |frame: &[u8]| inner(frame).is_some_and(|frame| is_marker(frame) && frame[49] == 0);
    let first = wire.collect(1, first);
    let socket = flow_of_another_queue(&fabric, &wire, queue(&first[0]));
    let slow = 1 - queue(&first[0]);
    let tc = |arguments: &str| {
        let arguments: Vec<&str> = ["-n", fabric.hosts[0].name()].into_iter().chain(arguments.split(' ')).collect();
        run("tc", &arguments);
    };
    tc("qdisc add dev eth0 root handle 1: htb default 1");
    tc("class add dev eth0 parent 1: classid 1:1 htb rate 1gbit quantum 1500");
    tc("class add dev eth0 parent 1: classid 1:2 htb rate 2mbit burst 2000");
    tc(&format!("filter add dev eth0 parent 1: protocol ip u32 match u16 {slow} 1 at 20 flowid 1:2"));

    let guest = Sniffer::new(&fabric.hosts[1], "ep2");
    for _ in 0..FRAMES {
        socket.send_to(&PAYLOAD, (ips(2)[0], 7777)).unwrap();
    }
    send_markers(&fabric);
    let count = MARKERS as usize;
    let arrived = guest.collect(FRAMES + count, |frame| is_marker(frame) || is_datagram(frame));
    assert_eq!(arrived.len(), FRAMES + count, "all arrived");
    let mut missing: BTreeSet<u8> = (0..MARKERS as u8).collect();
    let all_in = arrived.iter().position(|frame| {
        if is_marker(frame) {
            missing.remove(&frame[49]);
        }
        missing.is_empty()
    });
    let later = arrived[all_in.expect("every marker")..].iter().filter(|frame| is_datagram(frame)).count();
    assert_eq!(later, 0, "older frames that came when all markers were in");
    let early = arrived.iter().position(|frame| is_marker(frame)).expect("markers");
    assert!(early < FRAMES, "the other queue was quicker: waiting for one marker would not do");
}
