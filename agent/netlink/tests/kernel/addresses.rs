//! Several addresses a port, of both families: answered at home, flipped as one.

use std::net::IpAddr;

use throughline_netlink::{BindingWanted, Netlink, NetworkWanted};

use crate::{
    frames::{answers, question},
    support::{Fabric, Sniffer, asks_for_an_address, inner, ips, local, mac, remote, vni, vtep},
};

/// A port with two addresses of each kind there is.
fn many() -> Vec<IpAddr> {
    let texts = ["10.0.0.2", "10.0.0.102", "2001:db8::2", "2001:db8:1::2", "fe80::2", "fe80::ff:fe00:2"];
    texts.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// Guest 1 lives on host 0; guest 2 is known there by all its addresses, on host 1.
fn settled() -> (Fabric, NetworkWanted) {
    let fabric = Fabric::new(3);
    fabric.settle(&[(1, 0)]);
    let guests = vec![
        BindingWanted { mac: mac(1), ips: ips(1), path: local(1) },
        BindingWanted { mac: mac(2), ips: many(), path: remote(1) },
    ];
    let wanted = fabric.network(0, guests);
    fabric.hosts[0].enter(|| async { Netlink::open().unwrap().ensure_network(&wanted).await.unwrap() });
    (fabric, wanted)
}

#[test]
fn every_address_of_a_remote_port_is_answered_without_crossing_a_tunnel() {
    let (fabric, _) = settled();
    let guest = Sniffer::new(&fabric.hosts[0], "ep1");
    let wire = Sniffer::new(&fabric.hosts[0], "eth0");
    for target in many() {
        let ip: IpAddr = if target.is_ipv4() { ips(1)[0] } else { "fe80::ff:fe00:1".parse().unwrap() };
        guest.send(&question(mac(1), ip, target));
        let answered = guest.collect(1, |frame| answers(frame, (mac(1), ip), (mac(2), target)));
        assert_eq!(answered.len(), 1, "{target} is answered, once: {answered:02x?}");
    }
    // The kernel behind an endpoint says this and that by itself, which is flooded.
    let is_asked = |frame: &[u8]| inner(frame).is_some_and(asks_for_an_address);
    let crossed: Vec<_> = wire.drain().into_iter().filter(|frame| is_asked(frame)).collect();
    assert!(crossed.is_empty(), "nothing was asked of other hosts: {crossed:02x?}");

    guest.send(&question(mac(1), ips(1)[0], "10.0.0.202".parse().unwrap()));
    let crossed = wire.collect(2, is_asked);
    assert_eq!(crossed.len(), 2, "what nobody knows is asked of both others: the test would have seen it");
}

#[test]
fn a_flip_replaces_every_address_and_reads_it_back() {
    let (fabric, wanted) = settled();
    let host = &fabric.hosts[0];
    host.enter(|| async {
        let netlink = Netlink::open().unwrap();
        // As someone else's entries, or a stale one of ours, would have it.
        let bridge = throughline_netlink::names::bridge(vni());
        host.ip(&["neigh", "replace", "10.0.0.102", "lladdr", "02:ff:00:00:00:01", "dev", &bridge, "nud", "permanent"]);
        host.ip(&["neigh", "del", "fe80::2", "dev", &bridge]);
        let moved = BindingWanted { path: remote(2), ..wanted.bindings[1].clone() };
        netlink.set_binding(vni(), &moved).await.unwrap();
        let found = netlink.read_binding(vni(), mac(2), &many()).await.unwrap();
        assert_eq!(found.vtep, Some(vtep(2)));
        assert_eq!(found.neighbours.len(), many().len());
        assert!(found.neighbours.values().all(|found| *found == Some(mac(2))), "{found:?}");
        let after = NetworkWanted { bindings: vec![wanted.bindings[0].clone(), moved], ..wanted.clone() };
        assert!(netlink.ensure_network(&after).await.unwrap().is_empty(), "it is all there");
    });
}
