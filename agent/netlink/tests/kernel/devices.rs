//! Taps, holds, the carry and endpoints.

use std::{fs, io::Read as _, io::Write as _, os::fd::AsFd as _, time::Duration};

use throughline_cutover::Queues;
use throughline_netlink::{Error, Netlink, TapConfig, announce, names};

use crate::support::{Fabric, Namespace, Sniffer, binding, endpoint, mac, mtu, port, remote, vni, vtep};

const HEADER: usize = 12;

fn config(name: &str, queue_len: u32) -> TapConfig {
    TapConfig { name: name.to_owned(), mtu: mtu(), queue_len }
}

fn broadcast(from: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac(from).octets());
    frame.extend([0x88, 0xb5]);
    frame.resize(60, from);
    frame
}

#[test]
fn a_tap_is_silent_and_hides_no_drop() {
    let space = Namespace::new();
    space.enter(|| async {
        let netlink = Netlink::open().unwrap();
        let name = names::tap(port(1));
        let tap = netlink.create_tap(&config(&name, 16), Queues::ONE).await.unwrap();
        assert_eq!(netlink.link_index(&name).await.unwrap(), tap.index);
        tokio::time::sleep(Duration::from_millis(1300)).await;
        let mut queue = fs::File::from(tap.fd.try_clone().unwrap());
        let nothing = queue.read(&mut [0; 2048]).expect_err("the kernel must not speak on a new tap");
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);

        let link = space.describe(&name);
        assert_eq!(link["qdisc"], "noqueue");
        assert_eq!(link["txqlen"], 16);
        assert_eq!(link["mtu"], 1450);
        assert_eq!(link["linkinfo"]["info_data"]["persist"], false);

        let other = netlink.create_tap(&config(&names::tap(port(2)), 16), Queues::ONE).await.unwrap();
        let wanted = Fabric::new(1).network(0, vec![]);
        netlink.ensure_network(&wanted).await.unwrap();
        netlink.attach_to_bridge(tap.index, vni()).await.unwrap();
        netlink.attach_to_bridge(tap.index, vni()).await.unwrap();
        netlink.attach_to_bridge(other.index, vni()).await.unwrap();
        let port_data = &space.describe(&name)["linkinfo"]["info_slave_data"];
        assert_eq!(port_data["learning"], false);
        assert_eq!(port_data["neigh_suppress"], false);

        let mut sender = fs::File::from(other.fd);
        for _ in 0..50 {
            let frame = [vec![0; HEADER], broadcast(2)].concat();
            assert_eq!(sender.write(&frame).unwrap(), frame.len());
        }
        assert_eq!(netlink.tx_dropped(&name).await.unwrap(), 50 - 16);
        let mut buffer = [0; 2048];
        assert_eq!(queue.read(&mut buffer).unwrap(), HEADER + 60);
        assert_eq!(buffer[HEADER..HEADER + 60], broadcast(2));

        netlink.set_queue_len(&name, 4096).await.unwrap();
        let left = std::iter::from_fn(|| queue.read(&mut buffer).ok()).count();
        assert_eq!(left, 15, "what waits in the ring survives a change of its depth");

        drop((tap, queue));
        assert!(matches!(netlink.link_index(&name).await, Err(Error::NoDevice(_))), "not persistent");
    });
}

#[test]
fn a_hold_is_deep_and_its_name_its_own() {
    let space = Namespace::new();
    space.enter(|| async {
        let netlink = Netlink::open().unwrap();
        let name = names::hold(port(7));
        let hold = netlink.create_hold(&config(&name, 100_000)).await.unwrap();
        assert!(hold.fd.as_fd().try_clone_to_owned().is_ok());
        let link = space.describe(&name);
        assert_eq!((&link["qdisc"], &link["txqlen"]), (&"noqueue".into(), &100_000.into()));
        assert!(link["master"].is_null());
        let error = netlink.create_hold(&config(&name, 10)).await.unwrap_err().to_string();
        assert!(error.contains(&name) && error.contains("busy"), "{error}");
        let error = netlink.create_hold(&config("sixteen-bytes-xx", 10)).await.unwrap_err().to_string();
        assert!(error.contains("15 bytes"), "{error}");
        assert!(netlink.delete_link(&name).await.unwrap());
        assert!(!netlink.delete_link(&name).await.unwrap());
    });
}

/// Frame and vnet header of `segments` of 1400 bytes to everybody, handed over at once: TCP, or UDP.
fn super_frame(tcp: bool, segments: usize) -> Vec<u8> {
    const MSS: usize = 1400;
    let (protocol, header, gso, checksum_at) = if tcp { (6, 20, 1, 16) } else { (17, 8, 5, 6) };
    let length = segments * MSS;
    let mut vnet = vec![1, gso];
    for field in [34 + header, MSS, 34, checksum_at, 0] {
        vnet.extend(u16::try_from(field).unwrap().to_le_bytes());
    }
    let size = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let mut ip = [&[0x45, 0][..], &size(20 + header + length), &[0, 0, 0x40, 0, 64, protocol, 0, 0]].concat();
    ip.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let transport = if tcp {
        [&[0x13, 0x88, 0x13, 0x89][..], &[0; 8], &[0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]].concat()
    } else {
        [&[0x13, 0x88, 0x13, 0x89][..], &size(header + length), &[0, 0]].concat()
    };
    let mut frame = [&vnet[..], &[0xff; 6], &mac(2).octets(), &[0x08, 0x00], &ip, &transport].concat();
    frame.resize(HEADER + 34 + header + length, 7);
    frame
}

#[test]
fn each_queue_of_a_tap_has_a_ring_of_its_own() {
    const DEPTH: usize = 16;
    let space = Namespace::new();
    space.enter(|| async {
        let netlink = Netlink::open().unwrap();
        let name = names::tap(port(1));
        let tap = netlink.create_tap(&config(&name, DEPTH as u32), Queues::try_from(3_u32).unwrap()).await.unwrap();
        let link = space.describe(&name);
        assert_eq!(link["linkinfo"]["info_data"]["numqueues"], 3);
        assert_eq!(link["qdisc"], "noqueue");
        let plain = netlink.create_tap(&config(&names::tap(port(2)), 16), Queues::ONE).await.unwrap();
        let info = &space.describe(&names::tap(port(2)))["linkinfo"]["info_data"];
        assert_eq!((&info["multi_queue"], plain.further.len()), (&false.into(), 0), "as ever");

        netlink.ensure_network(&Fabric::new(1).network(0, vec![])).await.unwrap();
        netlink.attach_to_bridge(tap.index, vni()).await.unwrap();
        netlink.attach_to_bridge(plain.index, vni()).await.unwrap();
        let mut sender = fs::File::from(plain.fd);
        // Of so many flows each ring has more than it takes.
        for flow in 0..40 * 3_u8 {
            let frame = super_frame_of_flow(flow);
            assert_eq!(sender.write(&frame).unwrap(), frame.len());
        }
        let mut buffer = vec![0; 80 * 1024];
        for queue in std::iter::once(tap.fd).chain(tap.further) {
            let mut queue = fs::File::from(queue);
            let frames = std::iter::from_fn(|| queue.read(&mut buffer).ok());
            assert_eq!(frames.count(), DEPTH, "as deep as any, and super-frames are whole");
        }
    });
}

/// The same from a source port of the flow's own.
fn super_frame_of_flow(flow: u8) -> Vec<u8> {
    const SOURCE_PORT: usize = HEADER + 14 + 20;
    let mut frame = super_frame(true, 40);
    frame[SOURCE_PORT + 1] = flow;
    frame
}

#[test]
fn a_hold_takes_super_frames_whole() {
    let fabric = Fabric::new(1);
    fabric.hosts[0].enter(|| async {
        let netlink = Netlink::open().unwrap();
        netlink.ensure_network(&fabric.network(0, vec![])).await.unwrap();
        let sender = netlink.create_tap(&config(&names::tap(port(1)), 16), Queues::ONE).await.unwrap();
        let hold = netlink.create_hold(&config(&names::hold(port(1)), 16)).await.unwrap();
        for index in [sender.index, hold.index] {
            netlink.attach_to_bridge(index, vni()).await.unwrap();
        }
        let (mut sender, mut hold) = (fs::File::from(sender.fd), fs::File::from(hold.fd));
        let mut buffer = vec![0; 80 * 1024];
        for tcp in [true, false] {
            let frame = super_frame(tcp, 40);
            assert_eq!(sender.write(&frame).unwrap(), frame.len());
            assert_eq!(hold.read(&mut buffer).unwrap(), frame.len(), "one frame, TCP: {tcp}");
            assert_eq!(buffer[1], frame[1], "still to be segmented");
            assert!(hold.read(&mut buffer).is_err(), "and no other");
        }
    });
}

#[test]
fn the_carry_takes_its_key_from_each_frame() {
    let space = Namespace::new();
    space.enter(|| async {
        let netlink = Netlink::open().unwrap();
        let index = netlink.ensure_carry(vtep(0)).await.unwrap();
        assert_eq!(netlink.ensure_carry(vtep(0)).await.unwrap(), index, "made once");
        let link = space.describe(names::CARRY);
        let data = &link["linkinfo"]["info_data"];
        assert_eq!(data["external"], true);
        assert_eq!(data["port"], 4790);
        assert_eq!(data["learning"], false);
        assert_eq!(link["mtu"], 65485);
        assert_eq!(link["inet6_addr_gen_mode"], "none");
        assert!(link["flags"].as_array().unwrap().contains(&"UP".into()));
        assert_ne!(netlink.ensure_carry(vtep(1)).await.unwrap(), index, "made anew for another VTEP");
    });
}

#[test]
fn an_endpoint_is_made_once_and_leaves_nothing() {
    let fabric = Fabric::new(1);
    let host = &fabric.hosts[0];
    let guest_home = Namespace::new();
    let before = host.devices();
    host.enter(|| async {
        let netlink = Netlink::open().unwrap();
        assert!(matches!(netlink.create_endpoint(&endpoint(5)).await, Err(Error::NoNetwork(_))));
        netlink.ensure_network(&fabric.network(0, vec![])).await.unwrap();
        assert!(!netlink.create_endpoint(&endpoint(5)).await.unwrap().is_empty());
        assert!(netlink.create_endpoint(&endpoint(5)).await.unwrap().is_empty(), "second time: no changes");
        assert_eq!(netlink.list_endpoints().await.unwrap(), [port(5)].into());
        let addresses = host.ip(&["addr", "show", "dev", "ep5"]);
        assert!(addresses.contains("10.0.0.5/24") && addresses.contains("2001:db8::5/64"), "{addresses}");
        assert!(addresses.contains("fe80::") && !addresses.contains("tentative"), "{addresses}");

        let stolen = throughline_netlink::EndpointWanted { port: port(6), ..endpoint(5) };
        assert!(matches!(netlink.create_endpoint(&stolen).await, Err(Error::Foreign { .. })));

        host.ip(&["link", "set", "ep5", "netns", guest_home.name()]);
        assert!(netlink.create_endpoint(&endpoint(5)).await.unwrap().is_empty(), "moved away: left alone");
        assert!(netlink.remove_endpoint(port(5)).await.unwrap());
        assert!(!netlink.remove_endpoint(port(5)).await.unwrap());
        netlink.remove_network(vni()).await.unwrap();
    });
    assert_eq!(guest_home.devices(), Vec::<String>::new());
    assert_eq!(host.devices(), before);
}

#[test]
fn a_network_is_silent_on_the_underlay() {
    let fabric = Fabric::new(2);
    let wire = Sniffer::new(&fabric.hosts[0], "eth0");
    fabric.hosts[0].enter(|| async {
        let netlink = Netlink::open().unwrap();
        netlink.ensure_network(&fabric.network(0, vec![binding(9, remote(1))])).await.unwrap();
    });
    std::thread::sleep(Duration::from_millis(1500));
    let sent: Vec<_> = wire.drain().into_iter().filter(|frame| crate::support::inner(frame).is_some()).collect();
    assert!(sent.is_empty(), "bridge and VXLAN device must not speak of themselves: {sent:02x?}");
}

/// Asks for the host's own underlay address from a tenant's tap; whether the host answers.
fn host_answers(queue: &mut fs::File) -> bool {
    let mut request = announce::gratuitous_arp(mac(9), "10.0.0.9".parse().unwrap());
    request[38..42].copy_from_slice(&vtep(0).octets());
    queue.write_all(&[vec![0; HEADER], request].concat()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    queue.read(&mut [0; 2048]).is_ok()
}

#[test]
fn the_host_stays_out_of_the_tenants_segment() {
    let fabric = Fabric::new(1);
    fabric.hosts[0].enter(|| async {
        let netlink = Netlink::open().unwrap();
        let wanted = fabric.network(0, vec![]);
        netlink.ensure_network(&wanted).await.unwrap();
        let tap = netlink.create_tap(&config(&names::tap(port(1)), 16), Queues::ONE).await.unwrap();
        netlink.attach_to_bridge(tap.index, vni()).await.unwrap();
        let mut queue = fs::File::from(tap.fd);
        assert!(!host_answers(&mut queue));

        let bridge = names::bridge(vni());
        for key in ["arp_ignore", "rp_filter"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/{key}"), "0").unwrap();
        }
        assert!(host_answers(&mut queue), "it would, if nothing kept it from it");
        assert_eq!(netlink.ensure_network(&wanted).await.unwrap().devices, [bridge]);
        assert!(!host_answers(&mut queue));
    });
}
