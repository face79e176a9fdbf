//! Hosts that talk: what reaches whom over the tunnels, and what stays off them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use throughline_cutover::{CarryId, MarkerSecret};
use throughline_netlink::{MarkerOrder, Netlink};

use crate::support::{Fabric, Sniffer, asks_for_an_address, binding, inner, ips, local, mac, remote, vni};

/// There and back.
fn ping(from: &UdpSocket, to: &UdpSocket) {
    let mut buffer = [0; 64];
    from.send_to(b"there", to.local_addr().unwrap()).unwrap();
    let (_, sender) = to.recv_from(&mut buffer).expect("the way there");
    to.send_to(b"back", sender).unwrap();
    let (length, _) = from.recv_from(&mut buffer).expect("the way back");
    assert_eq!(&buffer[..length], b"back");
}

#[test]
fn known_addresses_are_answered_at_home() {
    let fabric = Fabric::new(3);
    fabric.settle(&[(1, 0), (2, 1)]);
    let wire = Sniffer::new(&fabric.hosts[0], "eth0");
    for (from, to) in ips(1).into_iter().zip(ips(2)) {
        ping(&fabric.hosts[0].udp(from), &fabric.hosts[1].udp(to));
    }
    let frames = wire.drain();
    let tenant: Vec<&[u8]> = frames.iter().filter_map(|frame| inner(frame)).collect();
    assert!(tenant.len() >= 4, "two pings, both ways, crossed the underlay: {}", tenant.len());
    let asked: Vec<_> = tenant.iter().filter(|frame| asks_for_an_address(frame)).collect();
    assert!(asked.is_empty(), "ARP and ND must be suppressed: {asked:02x?}");
}

#[test]
fn unknown_addresses_are_asked_of_every_host() {
    let fabric = Fabric::new(3);
    fabric.settle(&[(1, 0)]);
    let wires = [1, 2].map(|host| Sniffer::new(&fabric.hosts[host], "eth0"));
    let unknown: IpAddr = "10.0.0.200".parse().unwrap();
    fabric.hosts[0].udp(ips(1)[0]).send_to(b"?", (unknown, 9)).unwrap();
    for wire in wires {
        let asked = wire.collect(1, |frame| inner(frame).is_some_and(asks_for_an_address));
        assert!(!asked.is_empty(), "flooded to both others");
    }
}

#[test]
fn announcements_reach_what_is_in_the_bridge() {
    let fabric = Fabric::new(2);
    fabric.settle(&[(1, 0)]);
    let end = Sniffer::new(&fabric.hosts[0], "ep1");
    fabric.hosts[0].enter(|| async {
        let netlink = Netlink::open().unwrap();
        netlink.announce(&throughline_netlink::names::bridge(vni()), mac(8), &ips(8)).await.unwrap();
    });
    let heard = end.collect(3, |frame| frame[6..12] == mac(8).octets());
    assert_eq!(heard, throughline_netlink::announce::announcements(mac(8), &ips(8)));
}

/// Numbers of the frames a socket receives, until told to stop and nothing more comes.
fn numbers(socket: &UdpSocket, stop: &AtomicBool) -> Vec<u32> {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut received = Vec::new();
    let mut buffer = [0; 4];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok(_) => received.push(u32::from_be_bytes(buffer)),
            Err(_) if stop.load(Ordering::Acquire) => return received,
            Err(_) => {}
        }
    }
}

#[test]
fn a_peers_flips_lose_and_double_nothing() {
    const FRAMES: u32 = 15_000;
    let fabric = Fabric::new(3);
    // The same guest at two hosts, as during a cutover; the peer's entry alone decides.
    fabric.settle(&[(1, 0), (2, 1)]);
    fabric.hosts[2].enter(|| async {
        let netlink = Netlink::open().unwrap();
        netlink.create_endpoint(&crate::support::endpoint(2)).await.unwrap();
        netlink.set_binding(vni(), &binding(2, local(2))).await.unwrap();
    });
    let sender = fabric.hosts[0].udp(ips(1)[0]);
    let receivers = [1, 2].map(|host| fabric.hosts[host].udp(ips(2)[0]));
    let sent = AtomicBool::new(false);
    let (received, flips) = thread::scope(|scope| {
        let receiving = receivers.each_ref().map(|socket| scope.spawn(|| numbers(socket, &sent)));
        let flipping = scope.spawn(|| fabric.hosts[0].enter(|| flip_until(&sent)));
        let destination = receivers[0].local_addr().unwrap();
        let begin = Instant::now();
        for number in 0..FRAMES {
            sender.send_to(&number.to_be_bytes(), destination).unwrap();
            let due = begin + number * Duration::from_micros(100);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        sent.store(true, Ordering::Release);
        (receiving.map(|thread| thread.join().unwrap()), flipping.join().unwrap())
    });
    println!("{flips} flips, {} and {} frames", received[0].len(), received[1].len());
    assert!(flips > 100 && received.iter().all(|numbers| numbers.len() > 1000), "both places were used");
    for numbers in &received {
        assert!(numbers.is_sorted_by(|a, b| a < b), "in order at each place");
    }
    let mut all = received.concat();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..FRAMES), "{} of {FRAMES} arrived", all.len());
}

async fn flip_until(stop: &AtomicBool) -> u32 {
    let netlink = Netlink::open().unwrap();
    let mut flips = 0;
    while !stop.load(Ordering::Acquire) {
        flips += 1;
        netlink.set_binding(vni(), &binding(2, remote(1 + flips as usize % 2))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    flips
}

#[test]
fn markers_go_the_old_way_after_the_flip() {
    let fabric = Fabric::new(3);
    fabric.settle(&[(1, 0), (2, 1)]);
    let marker = mac(0xee);
    let carry_id = CarryId::try_from(4711_u32).unwrap();
    fabric.hosts[1].enter(|| async {
        let netlink = Netlink::open().unwrap();
        netlink.set_marker(vni(), marker, &local(2)).await.unwrap();
    });
    let guest = Sniffer::new(&fabric.hosts[1], "ep2");
    let old = Sniffer::new(&fabric.hosts[1], "eth0");
    let new = Sniffer::new(&fabric.hosts[2], "eth0");
    fabric.hosts[0].enter(|| async {
        let netlink = Netlink::open().unwrap();
        netlink.set_marker(vni(), marker, &remote(1)).await.unwrap();
        netlink.set_binding(vni(), &binding(2, remote(2))).await.unwrap();
        let order = MarkerOrder { marker_mac: marker, carry_id, peer: 3, secret: MarkerSecret::default() };
        netlink.send_markers(vni(), &order).await.unwrap();
        netlink.remove_marker(vni(), marker).await.unwrap();
    });
    let count = throughline_abi::MARKERS as usize;
    let is_marker = |frame: &[u8]| frame[0..6] == marker.octets();
    let arrived = guest.collect(count, is_marker);
    let sequences: BTreeSet<u8> = arrived.iter().map(|frame| frame[49]).collect();
    assert_eq!((arrived.len(), sequences.len()), (count, count), "each once");
    assert_eq!(arrived[0][42..48], [b'T', b'L', b'm', b'k', 0, 3], "in the peer's name");

    let outer = old.collect(count, |frame| inner(frame).is_some_and(is_marker));
    let ports: BTreeSet<&[u8]> = outer.iter().map(|frame| &frame[34..36]).collect();
    assert!(ports.len() > count / 2, "markers spread over the queues: {} outer ports", ports.len());
    assert!(new.drain().iter().filter_map(|frame| inner(frame)).all(|frame| !is_marker(frame)), "none the new way");
}
