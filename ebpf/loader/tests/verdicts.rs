//! Every verdict of `steer`, `refill` and `land`, by BPF_PROG_TEST_RUN on the programs as they are attached.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{borrow::Cow, net::Ipv4Addr};

use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunOptions};
use support::{
    frames::{BROADCAST, GUEST, numbered},
    netns::{Netns, ifindex, ip},
    tap::Tap,
};
use throughline_loader::{Datapath, Direction, LANE_OF_ALL, Mode, PortConfig, PortHandle, PortState};

const NEXT: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;
const LIMIT: u32 = 4;

/// One host: a tap, a hold, a carry device, a port.
struct Host {
    datapath: Datapath,
    tap: Tap,
    hold: Tap,
    port: PortHandle,
}

impl Host {
    /// In the calling thread's namespace.
    fn new(hold_ring: u32) -> Self {
        ip("link add carry0 type vxlan external dstport 4790 nolearning");
        ip("link set carry0 up");
        let tap = Tap::new("guest0", 100);
        let hold = Tap::hold("hold0", hold_ring);
        let datapath = Datapath::load(None).unwrap();
        let port = datapath
            .open_port(&PortConfig {
                tap_ifindex: tap.ifindex,
                hold_ifindex: hold.ifindex,
                carry_ifindex: ifindex("carry0"),
                carry_id: 0xabcdef,
                remote_vtep: Ipv4Addr::new(192, 0, 2, 2),
                line_limit: LIMIT,
                bytes_limit: 1_000_000,
                mode: Mode::Pass,
                direction: Direction::Tap,
            })
            .unwrap();
        datapath.attach_land(ifindex("carry0")).unwrap();
        Self { datapath, tap, hold, port }
    }

    fn steer(&self, to: [u8; 6], mark: u32) -> i32 {
        run(&self.tap.name, TcAttachType::Egress, &numbered(to, 1), self.tap.ifindex, mark)
    }

    fn refill(&self) -> i32 {
        run(&self.hold.name, TcAttachType::Ingress, &numbered(GUEST, 1), self.hold.ifindex, 0)
    }
}

fn run(interface: &str, hook: TcAttachType, frame: &[u8], ifindex: u32, mark: u32) -> i32 {
    let (_, programs) = SchedClassifier::query_tcx(interface, hook).unwrap();
    let info = programs.into_iter().next().expect("a program is attached");
    let program = SchedClassifier::from_program_info(info, Cow::Borrowed("under test")).unwrap();
    // `struct __sk_buff`: mark is its third word, ifindex its eleventh; the kernel takes no others from a test.
    let mut context = [0_u8; 192];
    context[8..12].copy_from_slice(&mark.to_ne_bytes());
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
    program.test_run(options).unwrap().return_value as i32
}

/// The counters that differ, for messages and comparison: everything but what never moves.
fn counted(state: &PortState) -> [u64; 10] {
    let PortState { held, held_bytes, overflowed, carried, refilled, muted, passed, flooded, landed, refused, .. } =
        *state;
    [held, held_bytes, overflowed, carried, refilled, muted, passed, flooded, landed, refused]
}

fn in_a_host<T: Send>(hold_ring: u32, test: impl FnOnce(&Host) -> T + Send) -> T {
    Netns::new().run(|| test(&Host::new(hold_ring)))
}

#[test]
fn pass_lets_everything_go_on() {
    in_a_host(100, |host| {
        assert_eq!(host.steer(GUEST, 0), NEXT);
        assert_eq!(host.steer(BROADCAST, 0), NEXT);
        assert_eq!(host.port.counters().passed, 2);
    });
}

#[test]
fn mute_drops_and_counts() {
    in_a_host(100, |host| {
        host.port.set_mode(Mode::Mute);
        assert_eq!(host.steer(GUEST, 0), DROP);
        assert_eq!(host.steer(BROADCAST, 0), DROP);
        assert_eq!(counted(&host.port.counters()), [0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    });
}

#[test]
fn the_mark_passes_in_every_mode_and_another_does_not() {
    in_a_host(100, |host| {
        let mark = host.port.counters().mark;
        assert_ne!(mark, 0);
        for mode in [Mode::Pass, Mode::Mute, Mode::Hold, Mode::Carry, Mode::Release] {
            host.port.set_mode(mode);
            assert_eq!(host.steer(GUEST, mark), NEXT, "{mode:?}");
        }
        host.port.set_mode(Mode::Mute);
        assert_eq!(host.steer(GUEST, mark ^ 1), DROP);
        assert_eq!(counted(&host.port.counters()), [0, 0, 0, 0, 0, 1, 5, 0, 0, 0]);
    });
}

#[test]
fn hold_keeps_frames_in_order_up_to_the_limit() {
    in_a_host(100, |host| {
        host.port.set_mode(Mode::Hold);
        for _ in 0..LIMIT + 2 {
            assert_eq!(host.steer(GUEST, 0), DROP);
        }
        let state = host.port.counters();
        assert_eq!(counted(&state), [4, 400, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(state.line, 4);
        assert_ne!(state.cpu, 0, "the diverting CPU is said");
        for _ in 0..LIMIT {
            assert!(host.hold.read().is_some());
        }
        assert!(host.hold.read().is_none());
    });
}

#[test]
fn a_full_ring_is_counted_and_leaves_the_line_exact() {
    in_a_host(2, |host| {
        host.port.set_mode(Mode::Hold);
        for _ in 0..LIMIT {
            assert_eq!(host.steer(GUEST, 0), DROP);
        }
        let state = host.port.counters();
        assert_eq!((state.line, state.held, state.overflowed), (2, 2, 2));
    });
}

#[test]
fn carry_goes_straight_only_while_nothing_is_in_line() {
    in_a_host(100, |host| {
        host.port.set_mode(Mode::Hold);
        assert_eq!(host.steer(GUEST, 0), DROP);
        host.port.set_mode(Mode::Carry);
        assert_eq!(host.steer(GUEST, 0), DROP);
        assert_eq!(host.port.line(), 2);
        (0..2).for_each(|_| host.port.subtract_line(LANE_OF_ALL, 100));
        assert_eq!(host.steer(GUEST, 0), REDIRECT);
        let state = host.port.counters();
        assert_eq!((state.held, state.carried, state.line), (2, 1, 0));
    });
}

#[test]
fn carry_drops_what_is_for_a_group() {
    in_a_host(100, |host| {
        host.port.set_mode(Mode::Carry);
        assert_eq!(host.steer(BROADCAST, 0), DROP);
        assert_eq!(counted(&host.port.counters()), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    });
}

#[test]
fn release_passes_only_while_nothing_is_in_line() {
    in_a_host(100, |host| {
        host.port.set_mode(Mode::Hold);
        assert_eq!(host.steer(GUEST, 0), DROP);
        host.port.set_mode(Mode::Release);
        assert_eq!(host.steer(GUEST, 0), DROP);
        assert_eq!(host.steer(BROADCAST, 0), DROP);
        (0..3).for_each(|_| host.port.subtract_line(LANE_OF_ALL, 100));
        assert_eq!(host.steer(GUEST, 0), NEXT);
        let state = host.port.counters();
        assert_eq!((state.held, state.passed, state.line), (3, 1, 0));
    });
}

#[test]
fn refill_goes_by_direction_whatever_the_mode() {
    in_a_host(100, |host| {
        for mode in [Mode::Pass, Mode::Hold, Mode::Carry, Mode::Release] {
            host.port.set_mode(mode);
            for direction in [Direction::Tap, Direction::Carry] {
                host.port.set_direction(direction);
                assert_eq!(host.refill(), REDIRECT, "{mode:?} {direction:?}");
            }
        }
        assert_eq!(host.port.counters().refilled, 8);
    });
}

#[test]
fn a_port_at_rest_has_no_programs_and_no_words() {
    in_a_host(100, |host| {
        host.port.set_mode(Mode::Mute);
        assert_eq!(host.steer(GUEST, 0), DROP);
        let last = host.port.close().unwrap();
        assert_eq!(last.muted, 1);
        assert_eq!(host.port.close().unwrap(), last, "closing again says the same");
        assert_eq!(host.port.counters(), last);
        for (name, hook) in [(&host.tap.name, TcAttachType::Egress), (&host.hold.name, TcAttachType::Ingress)] {
            assert!(SchedClassifier::query_tcx(name, hook).unwrap().1.is_empty());
        }
        assert!(host.datapath.leftover_ports().unwrap().is_empty());
        host.port.set_mode(Mode::Hold);
    });
}

#[test]
fn frames_of_no_port_go_on_and_refills_of_none_are_dropped() {
    in_a_host(100, |host| {
        // Another interface's index in the context: as if the program saw a device without a slot.
        let other = host.hold.ifindex;
        assert_eq!(run(&host.tap.name, TcAttachType::Egress, &numbered(GUEST, 1), other, 0), NEXT);
        let other = host.tap.ifindex;
        assert_eq!(run(&host.hold.name, TcAttachType::Ingress, &numbered(GUEST, 1), other, 0), DROP);
        assert_eq!(counted(&host.port.counters()), [0; 10]);
    });
}

#[test]
fn land_drops_what_came_through_no_tunnel() {
    in_a_host(100, |host| {
        let carry = ifindex("carry0");
        assert_eq!(run("carry0", TcAttachType::Ingress, &numbered(GUEST, 1), carry, 0), DROP);
        assert_eq!(counted(&host.port.counters()), [0; 10]);
    });
}
