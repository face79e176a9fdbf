//! Forwarding and neighbour entries: idempotence, what is ours and what is not, read-back.

use std::time::{Duration, Instant};

use throughline_netlink::{Error, Netlink, NetworkWanted, Path, names};

use crate::support::{Fabric, binding, endpoint, ips, local, mac, remote, vni, vtep};

/// One local and one remote guest.
fn wanted(fabric: &Fabric) -> NetworkWanted {
    fabric.network(0, vec![binding(1, local(1)), binding(2, remote(1))])
}

async fn settled(fabric: &Fabric) -> Netlink {
    let netlink = Netlink::open().unwrap();
    netlink.ensure_network(&fabric.network(0, vec![])).await.unwrap();
    netlink.create_endpoint(&endpoint(1)).await.unwrap();
    netlink.ensure_network(&wanted(fabric)).await.unwrap();
    netlink
}

#[test]
fn a_network_is_made_once() {
    let fabric = Fabric::new(3);
    let host = &fabric.hosts[0];
    let before = host.devices();
    host.enter(|| async {
        let netlink = settled(&fabric).await;
        let again = netlink.ensure_network(&wanted(&fabric)).await.unwrap();
        assert!(again.is_empty(), "{again:?}");
        let other = Netlink::open().unwrap().ensure_network(&wanted(&fabric)).await.unwrap();
        assert!(other.is_empty(), "nor by a process that remembers nothing: {other:?}");

        let bridge = host.describe(&names::bridge(vni()));
        assert_eq!(bridge["linkinfo"]["info_data"]["mcast_snooping"], 0);
        assert_eq!(bridge["linkinfo"]["info_data"]["stp_state"], 0);
        assert_eq!(bridge["mtu"], 1450);
        let vxlan = host.describe(&names::vxlan(vni()));
        let data = &vxlan["linkinfo"]["info_data"];
        assert_eq!((&data["id"], &data["port"], &data["learning"]), (&100.into(), &4789.into(), &false.into()));
        assert_eq!(data["ttl"], 64);
        assert_eq!(vxlan["linkinfo"]["info_slave_data"]["neigh_suppress"], true);
        assert_eq!(vxlan["linkinfo"]["info_slave_data"]["learning"], false);
        assert_eq!(vxlan["inet6_addr_gen_mode"], "none");

        let remote = netlink.read_binding(vni(), mac(2), &ips(2)).await.unwrap();
        assert_eq!(remote.device, Some(names::vxlan(vni())));
        assert_eq!(remote.vtep, Some(vtep(1)));
        assert!(remote.neighbours.values().all(|found| *found == Some(mac(2))) && remote.neighbours.len() == 2);
        let local = netlink.read_binding(vni(), mac(1), &ips(1)).await.unwrap();
        assert_eq!((local.device, local.vtep), (Some(names::endpoint(crate::support::port(1))), None));

        assert_eq!(netlink.list_networks().await.unwrap(), [vni()].into());
        netlink.remove_endpoint(crate::support::port(1)).await.unwrap();
        netlink.remove_network(vni()).await.unwrap();
        netlink.remove_network(vni()).await.unwrap();
        assert!(netlink.list_networks().await.unwrap().is_empty());
    });
    assert_eq!(host.devices(), before, "nothing is left");
}

#[test]
fn foreign_entries_survive_and_stale_ones_of_ours_go() {
    let fabric = Fabric::new(3);
    let host = &fabric.hosts[0];
    host.enter(|| async {
        let netlink = settled(&fabric).await;
        let (bridge, vxlan) = (names::bridge(vni()), names::vxlan(vni()));
        host.bridge(&["fdb", "add", "02:ff:00:00:00:01", "dev", &vxlan, "master", "static"]);
        host.bridge(&["fdb", "add", "02:ff:00:00:00:01", "dev", &vxlan, "self", "dst", "10.99.0.3"]);
        host.ip(&["neigh", "add", "10.0.0.77", "lladdr", "02:ff:00:00:00:01", "dev", &bridge, "nud", "permanent"]);
        let found = netlink.ensure_network(&wanted(&fabric)).await.unwrap();
        assert!(found.is_empty(), "strangers are none of our business: {found:?}");

        let only_local = fabric.network(0, vec![binding(1, local(1))]);
        let only_local = NetworkWanted { flood: [vtep(2)].into(), ..only_local };
        let changes = netlink.ensure_network(&only_local).await.unwrap();
        assert_eq!((changes.entries_set, changes.entries_removed), (0, 5), "FDB twice, two neighbours, one flood");
        let fdb = host.bridge(&["fdb", "show"]);
        assert!(!fdb.contains(&mac(2).to_string()), "{fdb}");
        assert_eq!(fdb.matches("02:ff:00:00:00:01").count(), 2, "{fdb}");
        assert_eq!(fdb.matches("00:00:00:00:00:00 dev tlx100 dst").count(), 1, "{fdb}");
        let neighbours = host.ip(&["neigh", "show", "dev", &bridge]);
        assert!(neighbours.contains("10.0.0.77") && !neighbours.contains("10.0.0.2 "), "{neighbours}");
    });
}

#[test]
fn devices_set_up_otherwise_are_put_right() {
    let fabric = Fabric::new(3);
    let host = &fabric.hosts[0];
    host.enter(|| async {
        let netlink = settled(&fabric).await;
        let (bridge, vxlan) = (names::bridge(vni()), names::vxlan(vni()));
        host.ip(&["link", "set", &bridge, "type", "bridge", "stp_state", "1", "mcast_snooping", "1"]);
        host.ip(&["link", "set", &vxlan, "type", "bridge_slave", "neigh_suppress", "off"]);
        let changes = netlink.ensure_network(&wanted(&fabric)).await.unwrap();
        assert_eq!(changes.devices, [bridge.clone(), vxlan.clone()]);
        let now = &host.describe(&bridge)["linkinfo"]["info_data"];
        assert_eq!((&now["stp_state"], &now["mcast_snooping"]), (&0.into(), &1.into()), "snooping is the operator's");

        let moved = NetworkWanted { local_vtep: vtep(2), flood: [vtep(1)].into(), ..wanted(&fabric) };
        let changes = netlink.ensure_network(&moved).await.unwrap();
        assert_eq!(changes.devices, [vxlan], "another VTEP is another tunnel");
        let found = netlink.read_binding(vni(), mac(2), &ips(2)).await.unwrap();
        assert_eq!(found.vtep, Some(vtep(1)), "with its entries");
        assert!(netlink.ensure_network(&moved).await.unwrap().is_empty());
    });
}

#[test]
fn a_strangers_device_is_refused_and_a_missing_one_reported() {
    let fabric = Fabric::new(2);
    let host = &fabric.hosts[0];
    host.enter(|| async {
        let netlink = Netlink::open().unwrap();
        host.ip(&["link", "add", &names::bridge(vni()), "type", "veth", "peer", "name", "x"]);
        let refused = netlink.ensure_network(&fabric.network(0, vec![])).await;
        assert!(matches!(refused, Err(Error::Foreign { .. })), "{refused:?}");
        assert!(matches!(netlink.remove_network(vni()).await, Err(Error::Foreign { .. })));
        host.ip(&["link", "del", &names::bridge(vni())]);

        let half = fabric.network(0, vec![binding(1, local(1)), binding(2, remote(1))]);
        let error = netlink.ensure_network(&half).await.unwrap_err();
        assert!(matches!(&error, Error::NoDevice(device) if *device == names::endpoint(crate::support::port(1))));
        let found = netlink.read_binding(vni(), mac(2), &ips(2)).await.unwrap();
        assert_eq!(found.vtep, Some(vtep(1)), "the rest was done");

        let not_a_port = binding(1, Path::Local { device: "eth0".to_owned() });
        let error = netlink.set_binding(vni(), &not_a_port).await.unwrap_err().to_string();
        assert!(error.contains("VNI 100") && error.contains(&mac(1).to_string()), "{error}");
    });
}

#[test]
fn a_binding_flips_fast_and_is_read_back() {
    const FLIPS: usize = 400;
    let fabric = Fabric::new(3);
    fabric.hosts[0].enter(|| async {
        let netlink = settled(&fabric).await;
        let mut times = Vec::new();
        for flip in 0..FLIPS {
            let begin = Instant::now();
            netlink.set_binding(vni(), &binding(2, remote(1 + flip % 2))).await.unwrap();
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        let median = times[FLIPS / 2];
        println!("a flip, two addresses, read back: {median:?}");
        assert!(median < Duration::from_millis(1), "a flip took {median:?}");

        netlink.set_binding(vni(), &binding(2, local(1))).await.unwrap();
        let found = netlink.read_binding(vni(), mac(2), &ips(2)).await.unwrap();
        assert_eq!((found.device, found.vtep), (Some(names::endpoint(crate::support::port(1))), None));
        netlink.remove_binding(vni(), mac(2), &ips(2)).await.unwrap();
        netlink.remove_binding(vni(), mac(2), &ips(2)).await.unwrap();
        let found = netlink.read_binding(vni(), mac(2), &ips(2)).await.unwrap();
        assert!(found.device.is_none() && found.vtep.is_none() && found.neighbours.values().all(Option::is_none));
    });
}

#[test]
fn indexes_of_a_network_made_anew_are_looked_up_again() {
    let fabric = Fabric::new(2);
    fabric.hosts[0].enter(|| async {
        let netlink = settled(&fabric).await;
        let other = Netlink::open().unwrap();
        other.remove_network(vni()).await.unwrap();
        let gone = netlink.set_binding(vni(), &binding(2, remote(1))).await;
        assert!(matches!(gone, Err(Error::NoNetwork(_))), "{gone:?}");
        other.ensure_network(&fabric.network(0, vec![])).await.unwrap();
        netlink.set_binding(vni(), &binding(2, remote(1))).await.unwrap();
        other.remove_network(vni()).await.unwrap();
        other.ensure_network(&fabric.network(0, vec![])).await.unwrap();
        netlink.set_binding(vni(), &binding(2, remote(1))).await.unwrap();
    });
}

#[test]
fn markers_of_moves_under_way_are_left_alone() {
    let fabric = Fabric::new(2);
    fabric.hosts[0].enter(|| async {
        let netlink = settled(&fabric).await;
        let marker = mac(0xee);
        netlink.set_marker(vni(), marker, &remote(1)).await.unwrap();
        assert!(netlink.ensure_network(&wanted(&fabric)).await.unwrap().is_empty());
        let again = Netlink::open().unwrap().ensure_network(&wanted(&fabric)).await.unwrap();
        assert_eq!(again.entries_removed, 2, "residue to a process that knows of no move");
        netlink.set_marker(vni(), marker, &remote(1)).await.unwrap();
        netlink.remove_marker(vni(), marker).await.unwrap();
        netlink.remove_marker(vni(), marker).await.unwrap();
        assert!(netlink.read_binding(vni(), marker, &[]).await.unwrap().device.is_none());
        assert!(netlink.ensure_network(&wanted(&fabric)).await.unwrap().is_empty());
    });
}
