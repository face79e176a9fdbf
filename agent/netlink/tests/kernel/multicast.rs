//! Multicast: flooded by default; where a bridge snoops, memberships go along with a port.

use std::{net::IpAddr, thread, time::Duration};

use throughline_netlink::{Memberships, Netlink, names};

use crate::{
    frames::{multicast, query, report},
    support::{Fabric, Namespace, Sniffer, ips, mac, port, vni},
};

/// Longer than the kernel waits for answers to the query of this suite before it goes by memberships.
const ANSWERS_ARE_IN: Duration = Duration::from_millis(300);
/// Longer than a frame, or what a bridge makes of a report, takes on a busy machine.
const ARRIVED: Duration = Duration::from_millis(150);

fn groups() -> Vec<IpAddr> {
    vec!["239.1.2.3".parse().unwrap(), "ff15::123".parse().unwrap()]
}

/// Its address of the group's family; MLD is sent from link-local ones.
fn address(last: u8, group: IpAddr) -> IpAddr {
    if group.is_ipv4() { ips(last)[0] } else { format!("fe80::{last:x}").parse().unwrap() }
}

/// Guest 1 on both hosts, as during a cutover; guest 3, the sender, on host 0.
fn fabric(snooping: bool) -> Fabric {
    let fabric = Fabric::new(2);
    fabric.settle(&[(1, 0), (3, 0)]);
    fabric.hosts[1].enter(|| async {
        Netlink::open().unwrap().create_endpoint(&crate::support::endpoint(1)).await.unwrap();
    });
    for host in fabric.hosts.iter().filter(|_| snooping) {
        host.ip(&["link", "set", &names::bridge(vni()), "type", "bridge", "mcast_snooping", "1"]);
    }
    fabric
}

/// Of guest 1's port there; without what the kernel behind an endpoint joins by itself.
fn memberships(host: &Namespace) -> Memberships {
    let device = names::endpoint(port(1));
    let mut found = host.enter(|| async move { Netlink::open().unwrap().memberships(vni(), &device).await.unwrap() });
    found.groups.retain(|group| groups().contains(group));
    found
}

fn join(host: &Namespace, device: &str, memberships: &Memberships) {
    host.enter(|| async { Netlink::open().unwrap().join(vni(), device, memberships).await.unwrap() });
}

/// A querier asks, more than once: the other host's bridge may have begun to snoop a moment ago.
fn ask(querier: &Sniffer, last: u8) {
    for _ in 0..3 {
        for group in groups() {
            querier.send(&query(mac(last), address(last, group)));
        }
        thread::sleep(ANSWERS_ARE_IN);
    }
}

/// How many of the frames that guest 3 sends to each group pass a device.
fn received(sender: &Sniffer, at: &Sniffer) -> Vec<usize> {
    let one = |group: IpAddr| {
        at.drain();
        let frame = multicast(mac(3), address(3, group), group);
        sender.send(&frame);
        thread::sleep(ARRIVED);
        at.drain().iter().filter(|seen| **seen == frame).count()
    };
    groups().into_iter().map(one).collect()
}

#[test]
fn without_a_querier_everybody_gets_everything_snooping_or_not() {
    for snooping in [false, true] {
        let fabric = fabric(snooping);
        let sender = Sniffer::new(&fabric.hosts[0], "ep3");
        let guest = Sniffer::new(&fabric.hosts[0], "ep1");
        let moved = Sniffer::new(&fabric.hosts[1], "ep1");
        // Another port's membership must not keep a port without one from getting it.
        for group in groups() {
            sender.send(&report(mac(3), address(3, group), group));
        }
        assert_eq!(received(&sender, &guest), [1, 1], "snooping {snooping}");
        assert_eq!(received(&sender, &moved), [1, 1], "snooping {snooping}");
        assert_eq!(memberships(&fabric.hosts[0]), Memberships::default());
        let wanted = Memberships { groups: groups().into_iter().collect(), router: false };
        join(&fabric.hosts[1], &names::endpoint(port(1)), &wanted);
        assert_eq!(received(&sender, &moved), [1, 1], "snooping {snooping}, joined");
    }
}

#[test]
fn where_a_bridge_snoops_memberships_move_with_the_port() {
    let fabric = fabric(true);
    let [source, destination] = [&fabric.hosts[0], &fabric.hosts[1]];
    let sender = Sniffer::new(source, "ep3");
    let guest = Sniffer::new(source, "ep1");
    let moved = Sniffer::new(destination, "ep1");
    ask(&sender, 3);
    assert_eq!(received(&sender, &guest), [0, 0], "there is a querier, and the guest has joined nothing");
    for group in groups() {
        guest.send(&report(mac(1), address(1, group), group));
    }
    thread::sleep(ARRIVED);
    assert_eq!(received(&sender, &guest), [1, 1]);
    assert_eq!(received(&sender, &moved), [0, 0], "what would be lost until the next query");

    let joined = memberships(source);
    assert_eq!(joined, Memberships { groups: groups().into_iter().collect(), router: false });
    join(source, &names::vxlan(vni()), &joined);
    assert_eq!(received(&sender, &moved), [0, 0], "the destination's bridge must know too");
    for _ in 0..2 {
        join(destination, &names::endpoint(port(1)), &joined);
        assert_eq!(received(&sender, &moved), [1, 1], "once each");
    }
    assert_eq!(memberships(destination), joined);
    let entries = destination.bridge(&["-d", "mdb", "show"]);
    assert!(entries.contains("temp") && !entries.contains("permanent"), "they age: {entries}");
}

#[test]
fn a_router_moves_with_its_port() {
    let fabric = fabric(true);
    let querier = Sniffer::new(&fabric.hosts[0], "ep1");
    ask(&querier, 1);
    let found = memberships(&fabric.hosts[0]);
    assert_eq!(found, Memberships { router: true, ..Memberships::default() });
    let sender = Sniffer::new(&fabric.hosts[0], "ep3");
    let moved = Sniffer::new(&fabric.hosts[1], "ep1");
    assert_eq!(received(&sender, &moved), [0, 0]);
    join(&fabric.hosts[0], &names::vxlan(vni()), &found);
    join(&fabric.hosts[1], &names::endpoint(port(1)), &found);
    assert_eq!(received(&sender, &moved), [1, 1], "a router hears every group");
}
