//! The gate opens peer by peer: each sender's frames wait in a lane of their own.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use support::{
    eventually,
    frames::{GUEST, Sender, numbered},
    netns::{Netns, ifindex, ip},
    tap::Tap,
    topology::Guest,
};
use throughline_loader::{Datapath, Direction, LANE_OF_ALL, LANES, Mode, PortConfig, PortHandle, Pump};

const EARLY: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
const LATE: [u8; 6] = [0x02, 0, 0, 0, 1, 2];
const STRANGER: [u8; 6] = [0x02, 0, 0, 0, 1, 3];
const EARLY_LANE: u32 = 1;
const LATE_LANE: u32 = 2;
/// Set in the numbers of a sender's frames, so that they are told apart.
const OF_LATE: u64 = 1 << 40;
const OF_STRANGER: u64 = 1 << 41;
const FRAME_LEN: i64 = 100;

/// A destination: senders are wired to its bridge, its gate is up.
struct Gate {
    netns: Netns,
    datapath: Datapath,
    port: PortHandle,
    tap: Tap,
    queues: Vec<OwnedFd>,
    sender: Sender,
}

impl Gate {
    fn up(bytes_limit: u64) -> Self {
        let netns = Netns::new();
        let (datapath, port, tap, queues, sender) = netns.run(|| {
            ip("link add br0 type bridge mcast_snooping 0");
            ip("link add new0 type veth peer name up0");
            ip("link set up0 master br0 up");
            ip("link set new0 up");
            let tap = Tap::new("guest0", 10_000);
            ip("link set guest0 master br0");
            ip("link set br0 up");
            let (hold, queues) = Tap::hold_with_lanes("hold0", 10_000, LANES);
            let datapath = Datapath::load(None).unwrap();
            datapath.steer_lanes(queues[0].as_fd()).unwrap();
            let port = datapath
                .open_port(&PortConfig {
                    tap_ifindex: tap.ifindex,
                    hold_ifindex: ifindex("hold0"),
                    carry_ifindex: 0,
                    carry_id: 0,
                    remote_vtep: Ipv4Addr::UNSPECIFIED,
                    line_limit: 9_000,
                    bytes_limit,
                    mode: Mode::Mute,
                    direction: Direction::Tap,
                })
                .unwrap();
            port.give_lanes([(EARLY, EARLY_LANE), (LATE, LATE_LANE)]).unwrap();
            drop(hold);
            (datapath, port, tap, queues, Sender::new("new0"))
        });
        let gate = Self { netns, datapath, port, tap, queues, sender };
        // A link takes its time to be up.
        eventually("the path is up", || {
            gate.send(STRANGER, 0, 0..1);
            gate.port.counters().muted > 0
        });
        std::thread::sleep(Duration::from_millis(50));
        gate.port.set_mode(Mode::Hold);
        gate
    }

    fn send(&self, from: [u8; 6], flag: u64, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let mut frame = numbered(GUEST, number | flag);
            frame[6..12].copy_from_slice(&from);
            self.sender.send(&frame);
        }
    }

    fn pump(&self) -> Pump {
        let queues = self.queues.iter().map(|queue| queue.try_clone().unwrap()).collect();
        self.netns.run(|| Pump::at_gate(&self.port, queues, self.tap.queues()).unwrap())
    }

    fn run_guest(&self) -> Guest {
        Guest::run(self.tap.queues(), Duration::ZERO)
    }
}

/// Numbers of one sender, in the order in which they came.
fn of(seen: &[u64], flag: u64) -> Vec<u64> {
    seen.iter().filter(|number| **number & (OF_LATE | OF_STRANGER) == flag).map(|number| number & !flag).collect()
}

#[test]
fn one_peer_is_let_in_while_another_is_waited_for() {
    let gate = Gate::up(1 << 30);
    let guest = gate.run_guest();
    let pump = gate.pump();
    gate.send(LATE, OF_LATE, 0..200);
    gate.send(EARLY, 0, 0..200);
    gate.send(STRANGER, OF_STRANGER, 0..50);
    eventually("all wait", || gate.port.line() == 450);
    assert_eq!([EARLY_LANE, LATE_LANE, LANE_OF_ALL].map(|lane| gate.port.lane(lane)), [200, 200, 50]);

    pump.open_lanes(1 << EARLY_LANE);
    eventually("the early one's lane is empty", || gate.port.lane(EARLY_LANE) == 0);
    let held = gate.port.counters().held;
    gate.send(EARLY, 0, 200..300);
    gate.send(LATE, OF_LATE, 200..300);
    eventually("the late one still waits", || gate.port.lane(LATE_LANE) == 300);
    assert_eq!(gate.port.counters().held, held + 100, "the early one goes straight on");

    pump.open_all();
    eventually("nothing waits", || gate.port.line() == 0);
    gate.send(LATE, OF_LATE, 300..350);
    gate.send(STRANGER, OF_STRANGER, 50..60);
    let seen = guest.finish();
    assert_eq!(of(&seen, 0), (0..300).collect::<Vec<_>>());
    assert_eq!(of(&seen, OF_LATE), (0..350).collect::<Vec<_>>());
    assert_eq!(of(&seen, OF_STRANGER), (0..60).collect::<Vec<_>>());
    let first_late = seen.iter().position(|number| number & OF_LATE != 0).unwrap();
    assert!(first_late >= 300, "the late one was let in before its time, after {first_late} frames");
    let state = gate.port.counters();
    assert_eq!((state.line, state.line_bytes, state.lanes, state.overflowed), (0, 0, [0; LANES], 0));
}

#[test]
fn a_lane_opened_under_traffic_stays_in_order() {
    let gate = Gate::up(1 << 30);
    let guest = gate.run_guest();
    let pump = gate.pump();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            for block in 0..300_u64 {
                gate.send(EARLY, 0, block * 10..block * 10 + 10);
                gate.send(LATE, OF_LATE, block * 10..block * 10 + 10);
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        std::thread::sleep(Duration::from_millis(40));
        pump.open_lanes(1 << LATE_LANE);
        std::thread::sleep(Duration::from_millis(40));
        pump.open_lanes(1 << EARLY_LANE);
        sending.join().unwrap();
    });
    eventually("nothing waits", || gate.port.line() == 0);
    let seen = guest.finish();
    assert_eq!(of(&seen, 0), (0..3_000).collect::<Vec<_>>());
    assert_eq!(of(&seen, OF_LATE), (0..3_000).collect::<Vec<_>>());
}

#[test]
fn a_sender_that_moves_itself_waits_for_all() {
    let gate = Gate::up(1 << 30);
    gate.port.take_lane(EARLY).unwrap();
    gate.port.take_lane(STRANGER).unwrap();
    gate.send(EARLY, 0, 0..5);
    eventually("they wait", || gate.port.lane(LANE_OF_ALL) == 5);
    assert!(gate.port.has_seen(LANE_OF_ALL) && !gate.port.has_seen(EARLY_LANE));
}

#[test]
fn a_line_is_bounded_in_bytes_and_counts_them_back() {
    let gate = Gate::up(50 * FRAME_LEN as u64);
    gate.send(LATE, OF_LATE, 0..80);
    eventually("all have been seen", || gate.port.counters().held + gate.port.counters().overflowed == 80);
    let state = gate.port.counters();
    assert_eq!((state.held, state.overflowed, state.line_bytes), (50, 30, 50 * FRAME_LEN));
    let guest = gate.run_guest();
    let pump = gate.pump();
    pump.open_all();
    eventually("nothing waits", || gate.port.line() == 0);
    gate.send(LATE, OF_LATE, 50..60);
    assert_eq!(of(&guest.finish(), OF_LATE), (0..60).collect::<Vec<_>>());
    assert_eq!(gate.port.counters().line_bytes, 0);
}

#[test]
fn lanes_end_with_their_port() {
    let gate = Gate::up(1 << 30);
    gate.netns.run(|| gate.port.close().unwrap());
    assert!(gate.datapath.leftover_ports().unwrap().is_empty());
    gate.port.give_lanes([(EARLY, EARLY_LANE)]).unwrap();
    gate.port.take_lane(EARLY).unwrap();
}
