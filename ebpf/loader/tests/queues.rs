//! Several queues and processors between source and destination: frames of one flow keep to one of them, whichever way
//! they take through the kernel.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{collections::BTreeSet, net::UdpSocket, time::Duration};

use support::{
    eventually,
    frames::{FRAME_LEN, NUMBER_OFFSET, PORT},
    netns::ip,
    queues::{Sniffer, run_on, slow_queue_of_second_cpu},
    topology::{Fabric, assert_exact},
};
use throughline_loader::Mode;

const FLOWS: usize = 4;
const EACH: usize = 20;
const WHILE: Duration = Duration::from_millis(60);

/// Sockets of the peer's own kernel, which gives each a flow hash that nothing in its frames tells.
fn sockets(fabric: &Fabric) -> Vec<UdpSocket> {
    fabric.peer.run(|| {
        ip("addr add 10.9.0.1/24 dev old0");
        ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:10 dev old0 nud permanent");
        let connected = |_| {
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            socket.connect(("10.9.0.2", PORT)).unwrap();
            socket
        };
        (0..FLOWS).map(connected).collect()
    })
}

/// Flow and outer source port of a frame on the underlay, if it is one of the carry tunnel.
fn flow_and_queue(frame: &[u8]) -> Option<([u8; 2], [u8; 2])> {
    const CARRY_PORT: u16 = 4790;
    const INNER: usize = 14 + 20 + 8 + 8;
    let carried = frame.len() == INNER + FRAME_LEN && frame[36..38] == CARRY_PORT.to_be_bytes();
    carried.then(|| (frame[INNER + 34..INNER + 36].try_into().unwrap(), frame[34..36].try_into().unwrap()))
}

#[test]
fn a_flow_has_one_outer_port_however_its_frames_are_carried() {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    let sockets = sockets(&fabric);
    let wire = destination.netns.run(|| Sniffer::new("und0"));
    let send = || {
        for number in 0..FLOWS * EACH {
            sockets[number % FLOWS].send(&[0; FRAME_LEN - NUMBER_OFFSET]).unwrap();
        }
    };
    let seen = || {
        let mut seen = Vec::new();
        eventually("all are on the wire", || {
            seen.extend(wire.drain().iter().filter_map(|frame| flow_and_queue(frame)));
            seen.len() == FLOWS * EACH
        });
        seen.into_iter().collect::<BTreeSet<_>>()
    };

    source.port.set_mode(Mode::Hold);
    send();
    eventually("all are held", || source.port.line() == (FLOWS * EACH) as i64);
    let pump = source.release_to_carry();
    eventually("the line is empty", || pump.is_line_empty());
    let written_back = seen();
    send();
    eventually("all are carried", || source.port.counters().carried == (FLOWS * EACH) as u64);
    let carried = seen();

    assert_eq!(written_back.len(), FLOWS, "one outer port a flow: {written_back:?}");
    assert_eq!(written_back, carried, "(flow, outer port) of frames written back, and of frames that went straight on");
}

#[test]
fn a_line_goes_where_its_port_receives() {
    let fabric = Fabric::new();
    let (source, destination) = (&fabric.source, &fabric.destination);
    slow_queue_of_second_cpu(&source.netns, "und0");
    // The first CPU receives; whoever releases the line happens to run on the other.
    run_on(0);
    let traffic = fabric.traffic(5_000);
    run_on(1);
    source.port.set_mode(Mode::Hold);
    std::thread::sleep(WHILE);

    let guest = destination.run_guest();
    let pump = source.release_to_carry();
    eventually("the line is empty", || pump.is_line_empty());
    std::thread::sleep(WHILE);
    let sent = traffic.stop();
    let mut seen: Vec<u64> = std::iter::from_fn(|| source.tap.read())
        .map(|frame| support::frames::number_of(&frame).expect("a numbered frame"))
        .collect();
    seen.extend(guest.finish());
    assert_exact(&seen, sent);
    let state = source.port.counters();
    assert!(state.held > 100 && state.carried > 100, "{state:?}");
}
