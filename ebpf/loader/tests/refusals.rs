//! What the datapath refuses, and that a refusal leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{fs::File, net::Ipv4Addr};

use support::{
    eventually,
    frames::MARKER,
    netns::Netns,
    tap::Tap,
    topology::{CARRY_ID, DESTINATION, Fabric, SOURCE, assert_exact, landing},
};
use throughline_loader::{
    Datapath, DatapathError, Direction, Exit, Mode, PortConfig, Pump, PumpCounts, PumpError, PumpOptions,
};

fn config(tap: u32, hold: u32) -> PortConfig {
    PortConfig {
        tap_ifindex: tap,
        hold_ifindex: hold,
        carry_ifindex: 0,
        carry_id: 0,
        remote_vtep: Ipv4Addr::UNSPECIFIED,
        line_limit: 100,
        bytes_limit: 1_000_000,
        mode: Mode::Pass,
        direction: Direction::Tap,
    }
}

#[test]
fn a_tap_or_hold_belongs_to_one_port() {
    Netns::new().run(|| {
        let taps: Vec<_> = ["a", "b", "c"].into_iter().map(|name| Tap::new(name, 10)).collect();
        let [a, b, c] = [taps[0].ifindex, taps[1].ifindex, taps[2].ifindex];
        let datapath = Datapath::load(None).unwrap();
        let port = datapath.open_port(&config(a, b)).unwrap();
        for taken in [config(a, c), config(c, b)] {
            assert!(matches!(datapath.open_port(&taken), Err(DatapathError::AlreadyOpen { .. })));
        }
        port.close().unwrap();
        datapath.open_port(&config(c, b)).unwrap();
    });
}

#[test]
fn a_port_that_could_not_be_opened_leaves_nothing() {
    Netns::new().run(|| {
        let [tap, hold] = ["a", "b"].map(|name| Tap::new(name, 10));
        let datapath = Datapath::load(None).unwrap();
        for missing in [config(tap.ifindex, 9_999), config(9_999, hold.ifindex)] {
            let error = datapath.open_port(&missing).unwrap_err();
            assert!(matches!(error, DatapathError::NoInterface { ifindex: 9_999, .. }), "{error:?}");
            assert!(datapath.leftover_ports().unwrap().is_empty());
        }
        datapath.open_port(&config(tap.ifindex, hold.ifindex)).unwrap();
    });
}

#[test]
fn closing_works_after_the_devices_went() {
    Netns::new().run(|| {
        let [tap, hold] = ["a", "b"].map(|name| Tap::new(name, 10));
        let datapath = Datapath::load(None).unwrap();
        let port = datapath.open_port(&config(tap.ifindex, hold.ifindex)).unwrap();
        drop((tap, hold));
        port.close().unwrap();
        assert!(datapath.leftover_ports().unwrap().is_empty());
    });
}

#[test]
fn every_slot_can_be_used_and_no_more() {
    Netns::new().run(|| {
        let datapath = Datapath::load(None).unwrap();
        let slots = throughline_abi::SLOTS;
        let taps: Vec<_> = (0..2 * slots + 2).map(|number| Tap::new(&format!("t{number}"), 1)).collect();
        let mut pairs = taps.chunks(2).map(|pair| config(pair[0].ifindex, pair[1].ifindex));
        let ports: Vec<_> = pairs.by_ref().take(slots as usize).map(|c| datapath.open_port(&c).unwrap()).collect();
        let one_more = pairs.next().unwrap();
        assert!(matches!(datapath.open_port(&one_more), Err(DatapathError::NoSlot)));
        ports[17].close().unwrap();
        datapath.open_port(&one_more).unwrap();
    });
}

#[test]
fn two_moves_do_not_share_a_carry_id() {
    let fabric = Fabric::new();
    let destination = &fabric.destination;
    let open = |source| destination.datapath.open_landing(CARRY_ID, &destination.port, &landing(source, MARKER));
    open(SOURCE).unwrap();
    assert!(matches!(open(DESTINATION), Err(DatapathError::LandingTaken { carry_id: CARRY_ID })));
    destination.datapath.close_landing(CARRY_ID).unwrap();
    destination.datapath.close_landing(CARRY_ID).unwrap();
    open(DESTINATION).unwrap();
}

#[test]
fn a_pump_takes_nothing_but_taps_of_one_kind() {
    let fabric = Fabric::new();
    let source = &fabric.source;
    source.netns.run(|| {
        let release = |hold, drain| {
            Pump::release(&source.port, vec![hold], Exit::Carry { drain: vec![drain] }, PumpOptions::default())
        };
        let file = || File::open("/dev/null").unwrap().into();
        assert!(matches!(release(file(), source.tap.dup()), Err(PumpError::NotATap { role: "hold", .. })));
        assert!(matches!(release(source.hold.dup(), file()), Err(PumpError::NotATap { role: "tap", .. })));
        let plain = Tap::without_header("plain", 10);
        assert!(matches!(release(source.hold.dup(), plain.dup()), Err(PumpError::HeaderLength { tap: 0, hold: 12 })));
    });
    let state = source.port.counters();
    assert_eq!((state.mode, state.direction, state.line), (0, 0, 0), "nothing has changed");
}

#[test]
fn a_pump_that_was_stopped_is_taken_over_in_order() {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    fabric.send(0..500);
    eventually("they are in the tap's ring", || source.port.counters().passed > 500);
    source.port.set_mode(Mode::Hold);
    fabric.send(500..5_000);
    eventually("all are held", || source.port.line() == 4_500);

    let guest = destination.run_guest();
    let mut counts = PumpCounts::default();
    for _ in 0..20 {
        let stopped = source.release_to_carry().stop();
        counts.from_tap += stopped.from_tap;
        counts.from_hold += stopped.from_hold;
    }
    let pump = source.release_to_carry();
    fabric.send(5_000..5_100);
    eventually("the line is empty", || pump.is_line_empty());
    assert_exact(&guest.finish(), 5_100);
    let last = pump.stop();
    assert_eq!((counts.from_tap + last.from_tap, last.lost, source.port.line()), (500, 0, 0));
    assert_eq!(counts.from_hold + last.from_hold, source.port.counters().held);
}
