//! Every kind of frame comes out of hold, carry and gate as it went in, once and in order.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use support::{
    crafted::{
        arp_broadcast, arp_request, completes, datagram, datagram_without_checksum, fragments, solicitation, tagged,
        tcp_super_frame, udp_super_frame,
    },
    eventually,
    frames::{GUEST, Sender},
    netns::ip,
    tap::{Tap, VNET_HEADER},
    topology::{Fabric, Host},
    whole_way::{Received, Stages, assert_same, everything_in, go_the_whole_way, neighbour},
};
use throughline_loader::Mode;

const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;
/// What IPv4 leaves of 65,535 bytes when outer IPv4, UDP, VXLAN and inner Ethernet are taken off: the carry's MTU.
const LARGEST_CARRIED: usize = 65_485;
/// Super-frame, from its outermost Ethernet header on: the kernel segments what is longer, whatever the device takes.
const LARGEST_WHOLE: usize = 65_535;
const UDP_HEADERS: usize = 20 + 8;
const TCP_HEADERS: usize = 20 + 20;

/// The peer's two ways.
fn senders(fabric: &Fabric) -> (Sender, Sender) {
    fabric.peer.run(|| (Sender::new("old0"), Sender::new("new0")))
}

/// Sent by the peer over the wire; all three thirds must be the same when the guest reads them.
fn over_the_wire(fabric: &Fabric, frames: &[Vec<u8>]) {
    let (old, new) = senders(fabric);
    let received = go_the_whole_way(fabric, &Stages::thirds(frames), |f| old.send(f), |f| new.send(f));
    assert_same(&received, frames);
}

fn datagrams(length: usize) -> Vec<Vec<u8>> {
    (0..90).map(|number| datagram(number, length)).collect()
}

#[test]
fn vlan_tags_that_the_kernel_took_out_of_the_frame() {
    // A tag is taken out where a device receives it, and put back where a guest reads it.
    for tags in [&[(CUSTOMER, 0x6123)][..], &[(SERVICE, 7)], &[(SERVICE, 7), (CUSTOMER, 9)]] {
        let frames: Vec<_> = datagrams(100).iter().map(|frame| tagged(tags, frame)).collect();
        over_the_wire(&Fabric::new(), &frames);
    }
}

#[test]
fn vlan_tags_that_stay_in_the_frame() {
    let fabric = Fabric::new();
    let frames: Vec<_> = datagrams(100).iter().map(|frame| tagged(&[(CUSTOMER, 0x6123)], frame)).collect();
    // Sent on the tap itself, so that no device has received it before `steer` sees it.
    let sender = |host: &Host| host.netns.run(|| Sender::of_type("guest0", CUSTOMER));
    let (old, new) = (sender(&fabric.source), sender(&fabric.destination));
    let send = |sender: &Sender, frame: &[u8]| {
        sender.try_send(frame);
    };
    let received = go_the_whole_way(&fabric, &Stages::thirds(&frames), |f| send(&old, f), |f| send(&new, f));
    assert_same(&received, &frames);
}

#[test]
fn fragments_in_order() {
    let frames: Vec<_> = (0..30).flat_map(fragments).collect();
    assert_eq!(frames.len(), 90);
    over_the_wire(&Fabric::new(), &frames);
}

/// Every device of a fabric for frames of `mtu`.
fn widen(fabric: &Fabric, mtu: usize) {
    fabric.peer.run(|| {
        ip(&format!("link set old0 mtu {mtu}"));
        ip(&format!("link set new0 mtu {mtu}"));
    });
    for host in [&fabric.source, &fabric.destination] {
        host.netns.run(|| {
            ip(&format!("link set und0 mtu {}", mtu + 50));
            ip(&format!("link set carry0 mtu {LARGEST_CARRIED}"));
            for device in ["up0", "guest0", "hold0", "br0"] {
                ip(&format!("link set {device} mtu {mtu}"));
            }
        });
    }
}

#[test]
fn jumbo_frames() {
    let fabric = Fabric::new();
    widen(&fabric, 9_000);
    over_the_wire(&fabric, &datagrams(9_000 - UDP_HEADERS));
}

#[test]
fn the_largest_frames_a_tunnel_takes() {
    let fabric = Fabric::new();
    widen(&fabric, LARGEST_CARRIED);
    over_the_wire(&fabric, &datagrams(LARGEST_CARRIED - UDP_HEADERS)[..9]);
}

#[test]
fn address_resolution_waits_in_line_like_anything_else() {
    let fabric = Fabric::new();
    let mixed = |numbers: std::ops::Range<u8>| -> Vec<Vec<u8>> {
        let kinds = |n: u8| [arp_broadcast(n), solicitation(true, n), arp_request(GUEST, n), solicitation(false, n)];
        numbers.flat_map(|n| kinds(n).into_iter().chain([datagram(u64::from(n), 100)])).collect()
    };
    // What is for a group is not carried straight on: the destination's bridge has its own copy.
    let unicast = |numbers: std::ops::Range<u8>| numbers.flat_map(|n| [arp_request(GUEST, n), solicitation(false, n)]);
    let (held, carried, gated) = (mixed(0..20), unicast(20..40).collect::<Vec<_>>(), mixed(40..60));
    let (old, new) = senders(&fabric);
    let stages = Stages { held: &held, carried: &carried, gated: &gated };
    let received = go_the_whole_way(&fabric, &stages, |f| old.send(f), |f| new.send(f));
    assert_same(&received, &[held, carried, gated].concat());
}

/// From guests on both hosts, behind vnet headers; the headers must come out as they went in too, as far as the kernel
/// keeps them.
fn with_offload(fabric: &Fabric, frames: &[Received]) {
    let neighbours = [&fabric.source, &fabric.destination].map(neighbour);
    let write = |tap: &Tap, (header, frame): &Received| tap.write(header, frame);
    let stages = Stages::thirds(frames);
    let received = go_the_whole_way(fabric, &stages, |f| write(&neighbours[0], f), |f| write(&neighbours[1], f));
    let (headers, sent): (Vec<[u8; VNET_HEADER]>, Vec<_>) = frames.iter().cloned().unzip();
    assert_same(&received, &sent);
    for ((now, _), then) in received.iter().zip(&headers) {
        // Flags, kind and segment size; where the checksum goes. The length of the headers is a hint.
        assert_eq!((&now[..2], &now[4..10]), (&then[..2], &then[4..10]), "{now:02x?} was {then:02x?}");
    }
    let bytes = |frames: &[Received]| frames.iter().map(|(_, frame)| frame.len() as u64).sum::<u64>();
    for (host, held) in [(&fabric.source, stages.held), (&fabric.destination, stages.gated)] {
        let state = host.port.counters();
        assert_eq!((state.held, state.held_bytes), (held.len() as u64, bytes(held)), "counted whole, once each");
    }
}

#[test]
fn checksums_left_to_be_completed() {
    let frames: Vec<_> = (0..90).map(|number| datagram_without_checksum(number, 201)).collect();
    with_offload(&Fabric::new(), &frames);
    assert!(frames.iter().all(|(header, frame)| completes(header, frame)));
}

#[test]
fn super_frames_of_tcp() {
    let frames: Vec<_> = (0..90).map(|number| tcp_super_frame(number, 60_000, 1_400)).collect();
    with_offload(&Fabric::new(), &frames);
}

#[test]
fn super_frames_of_udp() {
    let frames: Vec<_> = (0..90).map(|number| udp_super_frame(number, 30 * 1_400, 1_400)).collect();
    with_offload(&Fabric::new(), &frames);
}

#[test]
fn the_largest_super_frames_a_tunnel_takes() {
    let largest = LARGEST_WHOLE - 14 - 50;
    let tcp = (0..9).map(|number| tcp_super_frame(number, largest - TCP_HEADERS, 1_400));
    with_offload(&Fabric::new(), &tcp.collect::<Vec<_>>());
    let udp = (0..9).map(|number| udp_super_frame(number, largest - UDP_HEADERS, 1_400));
    with_offload(&Fabric::new(), &udp.collect::<Vec<_>>());
}

#[test]
fn the_largest_super_frames_there_are_come_back_whole() {
    const LARGEST: usize = LARGEST_WHOLE - 14;
    let fabric = Fabric::new();
    let source = &fabric.source;
    let neighbour = neighbour(source);
    let frames = [
        tcp_super_frame(0, LARGEST - TCP_HEADERS, 1_400),
        udp_super_frame(1, LARGEST - UDP_HEADERS, 1_400),
        tcp_super_frame(2, LARGEST - TCP_HEADERS, 8_948),
    ];
    source.port.set_mode(Mode::Hold);
    for (header, frame) in &frames {
        neighbour.write(header, frame);
    }
    eventually("they are held", || source.port.line() == frames.len() as i64);
    let pump = source.release_to_tap();
    eventually("the line is empty", || pump.is_line_empty());
    assert_eq!(source.port.line(), 0);
    assert_same(&everything_in(&source.tap), &frames.map(|(_, frame)| frame));
    assert_eq!(pump.stop().lost, 0);
}
