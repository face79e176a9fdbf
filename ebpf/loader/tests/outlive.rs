//! An agent that dies in mid-move, and the next one: pins keep the programs, the words and the order.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{path::PathBuf, time::Duration};

use aya::maps::{Array, MapData};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use support::{
    eventually,
    topology::{DEPTH, Fabric, Host, Shape, assert_exact},
};
use throughline_loader::{AttachVia, Datapath, DatapathError, Mode, PumpCounts};

const WHILE: Duration = Duration::from_millis(60);

/// Runs `test` with a bpffs of its own, which goes with the thread.
fn with_bpffs(test: impl FnOnce(PathBuf) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: these tests need root (CAP_SYS_ADMIN)");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            mount(Some("bpf"), "/mnt", Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
            test(PathBuf::from("/mnt/throughline"));
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// The host's next agent: same devices, same pins, nothing else.
fn next_agent(host: &mut Host, shape: &Shape) {
    let tap = host.tap.ifindex;
    (host.datapath, host.port) = host.netns.run(|| {
        let datapath = Datapath::load_with(&shape.options()).unwrap();
        assert_eq!(datapath.leftover_ports().unwrap(), [tap]);
        // Adopted while the old handles still exist, and those dropped after: neither detaches anything.
        let port = datapath.adopt_port(tap).unwrap();
        (datapath, port)
    });
}

fn killed_while_frames_are_held(attach: AttachVia) {
    with_bpffs(|pin_dir| {
        let shape = Shape { attach, pin_dir: Some(pin_dir.clone()), ..Shape::default() };
        let mut fabric = Fabric::shaped(&shape);
        let guest = fabric.source.run_guest();
        let traffic = fabric.traffic(5_000);
        std::thread::sleep(WHILE);
        fabric.source.port.set_mode(Mode::Hold);
        std::thread::sleep(Duration::from_millis(1));
        let mut seen = guest.pause();
        let before = fabric.source.port.counters();

        next_agent(&mut fabric.source, &shape);
        let (source, destination) = (&fabric.source, &fabric.destination);
        let after = source.port.counters();
        assert_eq!((after.mode, after.mark, after.line_limit), (before.mode, before.mark, DEPTH));
        assert!(after.held >= before.held && after.line >= before.line, "{before:?} {after:?}");

        let guest = destination.run_guest();
        let pump = source.release_to_carry();
        std::thread::sleep(WHILE);
        let sent = traffic.stop();
        eventually("the line is empty", || pump.is_line_empty());
        seen.extend(guest.finish());
        assert_exact(&seen, sent);
        drop(pump);

        source.netns.run(|| {
            source.port.close().unwrap();
            source.datapath.detach_land(nix::net::if_::if_nametoindex("carry0").unwrap()).unwrap();
        });
        assert!(source.datapath.leftover_ports().unwrap().is_empty());
        let links: Vec<_> = std::fs::read_dir(pin_dir.join("links")).unwrap().collect();
        assert!(links.is_empty(), "{links:?}");
    });
}

#[test]
fn an_agent_killed_while_frames_are_held_loses_none() {
    killed_while_frames_are_held(AttachVia::Tcx);
}

#[test]
fn an_agent_killed_while_frames_are_held_loses_none_without_tcx() {
    killed_while_frames_are_held(AttachVia::Clsact);
}

#[test]
fn a_line_that_counts_what_died_with_the_agent_opens_all_the_same() {
    with_bpffs(|pin_dir| {
        let shape = Shape { pin_dir: Some(pin_dir), ..Shape::default() };
        let mut fabric = Fabric::shaped(&shape);
        fabric.source.port.set_mode(Mode::Hold);
        fabric.send(0..100);
        eventually("all are held", || fabric.source.port.line() == 100);
        // Killed between reading and writing back.
        assert!(fabric.source.hold.read().is_some());

        next_agent(&mut fabric.source, &shape);
        let (source, destination) = (&fabric.source, &fabric.destination);
        let guest = destination.run_guest();
        let pump = source.release_to_carry();
        eventually("the line is empty", || pump.is_line_empty());
        fabric.send(100..110);
        let seen = guest.finish();
        assert_eq!(seen, (1..110).collect::<Vec<_>>());
        assert_eq!(source.port.counters().carried, 10, "the seal is open");
        assert_eq!(pump.stop(), PumpCounts { from_hold: 99, unaccounted: 1, ..PumpCounts::default() });
    });
}

#[test]
fn what_nobody_wants_back_is_discarded() {
    with_bpffs(|pin_dir| {
        let shape = Shape { pin_dir: Some(pin_dir.clone()), ..Shape::default() };
        let fabric = Fabric::shaped(&shape);
        let source = &fabric.source;
        let tap = source.tap.ifindex;
        source.netns.run(|| {
            let next = Datapath::load_with(&shape.options()).unwrap();
            next.discard_port(tap).unwrap();
            assert!(next.leftover_ports().unwrap().is_empty());
            assert!(matches!(next.adopt_port(tap), Err(DatapathError::NotOpen { ifindex }) if ifindex == tap));
            assert!(matches!(next.discard_port(tap), Err(DatapathError::NotOpen { .. })));
        });
        let links = std::fs::read_dir(pin_dir.join("links")).unwrap().count();
        assert_eq!(links, 1, "only the carry device's");
    });
}

#[test]
fn pins_of_another_layout_are_refused() {
    with_bpffs(|pin_dir| {
        std::fs::create_dir_all(&pin_dir).unwrap();
        Array::<MapData, [u64; 4]>::create(64, 0).unwrap().pin(pin_dir.join("ports")).unwrap();
        let error = Datapath::load(Some(&pin_dir)).expect_err("refused");
        assert!(matches!(error, DatapathError::Layout { .. }), "{error}");
    });
}
