//! What a segment sees of a move: announcements where no agent writes entries, broadcasts once, multicast memberships.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{GUEST_MAC, Lab, wait_for};
use crate::pings::Pings;
use crate::wire::{Seen, Sender, Stopped, Watch};

const GUEST_V6: &str = "fd07::10";
/// UDP ports of the tenant tunnels and of the carry tunnel.
const TENANT: u16 = 4789;
const CARRY: u16 = 4790;
/// Between two moves: the agents put away what the last one needed.
const REST: Duration = Duration::from_millis(300);

/// A guest with IPv6 whose kernel answers pings, and that is all.
fn quiet_guest(lab: &Lab) -> Pings {
    lab.throughline(&["endpoint", "create", "gw6", "--network", "blue", "--host", "peer", "--ip", "fd07::1"]).done();
    lab.boot_guest_with(&format!("tl.ip={GUEST_V6}/64 tl.probe=off"), &["--ip", GUEST_V6]);
    Pings::start(lab, &[crate::lab::GUEST_ADDRESS, GUEST_V6], 100)
}

fn mac(text: &str) -> Vec<u8> {
    text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn run(lab: &Lab, node: &str, line: &str) -> String {
    let output = lab.on(node, &line.split_whitespace().collect::<Vec<_>>()).output().unwrap();
    assert!(output.status.success(), "{line} on {node}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Behind h2's bridge is a switch of nobody's.
#[test]
fn an_unmanaged_segment_is_told_and_memberships_move() {
    let lab = Lab::up("segment");
    for node in ["h1", "h2"] {
        run(&lab, node, "ip link set tlb7001 type bridge mcast_snooping 1");
    }
    run(&lab, "h2", "ip link add sw0 up type veth peer name sw0-b");
    run(&lab, "h2", "ip link set sw0-b master tlb7001 up");
    let mut pings = quiet_guest(&lab);
    // A querier, so that memberships count; the guest's kernel has joined the group of its own address.
    let querier = Sender::open(&lab, "peer", "gw6");
    querier.send(&mld_query());
    let group = "ff02::1:ff00:10";
    wait_for("the guest's membership is snooped", Duration::from_secs(5), || {
        run(&lab, "h1", "bridge mdb show").lines().any(|it| it.contains("tlt") && it.contains(group)).then_some(())
    });

    let guest = mac(GUEST_MAC);
    let watch = Watch::start(&lab, "h2", move |seen| seen.device == "sw0" && !seen.out && seen.frame[6..12] == guest);
    lab.migrate("h2");
    pings.assert_answered("it moved to a host with an unmanaged segment");
    let told: Vec<_> = watch.end().into_iter().map(|seen| seen.frame).collect();
    let count = |what: &dyn Fn(&[u8]) -> bool| told.iter().filter(|frame| what(frame)).count();
    let arp =
        |frame: &[u8]| frame[12..14] == [8, 6] && frame[28..32] == [10, 7, 0, 10] && frame[38..42] == [10, 7, 0, 10];
    let override_na = |frame: &[u8], ip: &str| {
        let ip: std::net::Ipv6Addr = ip.parse().unwrap();
        frame[12..14] == [0x86, 0xdd] && frame[54] == 136 && frame[58] == 0x20 && frame[62..78] == ip.octets()
    };
    assert!(count(&|frame| frame[12..14] == [0x80, 0x35]) >= 1, "a RARP, of the agent or of QEMU: {told:02x?}");
    // The agent pads to 60 bytes and the guest does not.
    assert_eq!(count(&|frame| arp(frame) && frame.len() == 60), 1, "one gratuitous ARP of the agent: {told:02x?}");
    assert!(count(&|frame| arp(frame) && frame.len() < 60) >= 1, "the guest's own: {told:02x?}");
    assert!(count(&|frame| override_na(frame, GUEST_V6)) >= 1, "an advertisement: {told:02x?}");
    assert!(count(&|frame| override_na(frame, "fe80::ff:fe07:10")) >= 1, "and of the link-local: {told:02x?}");

    let here = run(&lab, "h2", "bridge mdb show");
    assert!(here.lines().any(|it| it.contains("tlt") && it.contains(group)), "the destination's tap: {here}");
    let log = fs::read_to_string(lab.log("h2")).unwrap();
    assert!(log.contains("joined for the guest"), "not because the guest reported again: {log}");
    let there = run(&lab, "h1", "bridge mdb show");
    assert!(there.lines().any(|it| it.contains("tlx7001") && it.contains(group)), "the source's tunnel: {there}");
}

/// General query of MLD version 1, to be answered within 100 ms, from the endpoint's link-local address.
fn mld_query() -> Vec<u8> {
    let mut frame = mac("33:33:00:00:00:01");
    frame.extend(mac("02:00:00:00:00:77"));
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 0, 1]);
    let (from, to) =
        ("fe80::77".parse::<std::net::Ipv6Addr>().unwrap(), "ff02::1".parse::<std::net::Ipv6Addr>().unwrap());
    frame.extend(from.octets());
    frame.extend(to.octets());
    // Hop-by-hop options: router alert for MLD, padding; ICMPv6 follows.
    frame.extend([58, 0, 5, 2, 0, 0, 1, 0]);
    let mut icmp = vec![130, 0, 0, 0, 0, 100, 0, 0];
    icmp.extend([0; 16]);
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend([0, 0, 0, 24, 0, 0, 0, 58]);
    pseudo.extend(&icmp);
    let sum: u32 = pseudo.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !((folded & 0xffff) + (folded >> 16)) as u16;
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    frame.extend(icmp);
    frame
}

/// The sender's MAC address; nobody's.
const CALLER: &str = "02:00:00:07:00:bc";

/// An ARP request for an address that nobody has, whose last two bytes are a number.
fn broadcast(number: u32) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac(CALLER));
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac(CALLER));
    frame.extend([10, 7, 0, 250, 0, 0, 0, 0, 0, 0, 10, 9]);
    frame.extend((number as u16).to_be_bytes());
    frame.resize(60, 0);
    frame
}

fn number_of(frame: &[u8]) -> Option<u32> {
    let ours = frame.get(6..12)? == mac(CALLER) && frame.get(12..14)? == [8, 6];
    ours.then(|| Some(u32::from(u16::from_be_bytes([*frame.get(40)?, *frame.get(41)?]))))?
}

/// How often each broadcast was seen.
fn copies<'a>(seen: impl Iterator<Item = &'a [u8]>) -> BTreeMap<u32, u32> {
    seen.filter_map(number_of).fold(BTreeMap::new(), |mut all, number| {
        *all.entry(number).or_default() += 1;
        all
    })
}

/// What was seen of the broadcasts while the guest moved once.
struct Seens {
    sent: u32,
    source: Vec<Seen>,
    destination: Vec<Seen>,
    peer: Vec<Seen>,
}

/// Moves the guest among 100 broadcasts a second.
fn move_among_broadcasts(lab: &Lab, sender: &Sender, from: &str, to: &str) -> Seens {
    let ours = |seen: &Seen| {
        let frames = [Some(seen.frame.as_slice()), seen.inner(TENANT), seen.inner(CARRY)];
        frames.into_iter().flatten().any(|frame| number_of(frame).is_some())
    };
    let watches = [from, to, "peer"].map(|node| Watch::start(lab, node, ours));
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        // A move that fails ends the sender too.
        let _stopped = Stopped(&stop);
        scope.spawn(|| {
            let begun = Instant::now();
            while !stop.load(Ordering::SeqCst) {
                let number = sent.fetch_add(1, Ordering::SeqCst);
                sender.send(&broadcast(number));
                let due = begun + Duration::from_millis(10) * (number + 1);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        lab.migrate(to);
        thread::sleep(REST);
    });
    let [source, destination, peer] = watches.map(Watch::end);
    Seens { sent: sent.into_inner(), source, destination, peer }
}

/// Copies that passed between the hosts.
fn tunnelled(seen: &[Seen], out: bool, port: u16) -> BTreeMap<u32, u32> {
    copies(seen.iter().filter(|it| it.device == "eth1" && it.out == out).filter_map(|it| it.inner(port)))
}

/// Copies that were put on the guest's tap.
fn at_tap(seen: &[Seen]) -> BTreeMap<u32, u32> {
    copies(seen.iter().filter(|it| it.device.starts_with("tlt") && it.out).map(|it| it.frame.as_slice()))
}

#[test]
fn broadcasts_reach_a_moving_guest_once_and_never_loop() {
    let lab = Lab::up("broadcast");
    let mut pings = quiet_guest(&lab);
    let sender = Sender::open(&lab, "peer", "gw0");
    for (from, to) in [("h1", "h2"), ("h2", "h1")] {
        let Seens { sent, source, destination, peer } = move_among_broadcasts(&lab, &sender, from, to);
        pings.assert_answered(&format!("it moved to {to} among broadcasts"));

        let mut at_guest = at_tap(&destination);
        let first = *at_guest.keys().next().expect("broadcasts reach the guest where it came to");
        // What is put on the tap it has left, once its programs are off and until it is gone, nobody reads.
        at_tap(&source).range(..first).for_each(|(number, copies)| *at_guest.entry(*number).or_default() += copies);
        let missing: Vec<_> = (0..sent).filter(|number| !at_guest.contains_key(number)).collect();
        let doubled: Vec<_> = at_guest.iter().filter(|(_, copies)| **copies > 1).collect();
        let carried = tunnelled(&source, true, CARRY);
        println!("{sent} broadcasts to {to}: missed {missing:?}, twice {doubled:?}, carried {}", carried.len());

        let to_all = tunnelled(&peer, true, TENANT);
        assert!(to_all.len() as u32 == sent && to_all.values().all(|copies| *copies == 2), "one a host: {to_all:?}");
        for (seen, out) in [(&peer, false), (&source, true), (&destination, true)] {
            let onward = tunnelled(seen, out, TENANT);
            assert!(onward.is_empty(), "no host sends a broadcast on: {onward:?}");
        }
        assert!(carried.values().all(|copies| *copies == 1), "carried once: {carried:?}");
        // One may arrive between the commit and the moment the source hears of it, by both ways or by neither.
        assert!(at_guest.values().all(|copies| *copies <= 2), "no more than one by each way: {doubled:?}");
        assert!(missing.len() <= 1 && doubled.len() <= 1, "missed {missing:?}, twice {doubled:?}");
    }
}
