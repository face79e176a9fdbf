//! Two ports on the move between the same hosts: neither is in the other's way.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which panic when a requirement is missing")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use support::{
    eventually,
    frames::{Sender, numbered},
    second_port::{Address, FIRST, SECOND, SecondPort},
    topology::{Fabric, Host, Shape, assert_exact},
};
use throughline_loader::Mode;

const WHILE: Duration = Duration::from_millis(60);

/// The peer sends numbered frames to both guests at the same rate.
struct Traffic {
    stop: Arc<AtomicBool>,
    flips: [Arc<AtomicBool>; 2],
    thread: JoinHandle<u64>,
}

impl Traffic {
    fn start(fabric: &Fabric, rate: u32) -> Self {
        let (old, new) = fabric.peer.run(|| (Sender::new("old0"), Sender::new("new0")));
        let stop = Arc::new(AtomicBool::new(false));
        let flips = [Arc::default(), Arc::default()];
        let (stopped, wanted): (_, [Arc<AtomicBool>; 2]) = (Arc::clone(&stop), flips.clone());
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut sent = 0;
            let mut flipped = [false; 2];
            while !stopped.load(SeqCst) {
                let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as u64;
                for number in sent..due {
                    for (at, address) in [FIRST, SECOND].iter().enumerate() {
                        if !flipped[at] && wanted[at].load(SeqCst) {
                            flipped[at] = true;
                            address.send_markers(&old);
                        }
                        if flipped[at] { &new } else { &old }.send(&numbered(address.mac, number));
                    }
                }
                sent = due.max(sent);
                std::thread::sleep(Duration::from_micros(300));
            }
            sent
        });
        Self { stop, flips, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

fn send(fabric: &Fabric, to: Address, numbers: std::ops::Range<u64>) {
    let old = fabric.peer.run(|| Sender::new("old0"));
    numbers.for_each(|number| old.send(&numbered(to.mac, number)));
}

#[test]
fn two_ports_move_at_the_same_time() {
    let fabric = Fabric::new();
    let second = SecondPort::new(&fabric, &Shape::default());
    let sources = [&fabric.source, &second.source];
    let destinations = [&fabric.destination, &second.destination];
    let guests = sources.map(Host::run_guest);
    let traffic = Traffic::start(&fabric, 5_000);
    std::thread::sleep(WHILE);

    // Each a little after the other, so that every phase of one meets every other of the other.
    let [first_guest, second_guest] = guests;
    sources[0].port.set_mode(Mode::Hold);
    std::thread::sleep(WHILE / 10);
    let mut seen = [first_guest.pause(), Vec::new()];
    std::thread::sleep(WHILE / 3);
    sources[1].port.set_mode(Mode::Hold);
    std::thread::sleep(WHILE / 10);
    seen[1] = second_guest.pause();
    std::thread::sleep(WHILE / 3);

    let begin = |at: usize| {
        destinations[at].port.set_mode(Mode::Hold);
        (destinations[at].run_guest(), sources[at].release_to_carry())
    };
    let (first_guest, first_pump) = begin(0);
    std::thread::sleep(WHILE / 6);
    traffic.flips[0].store(true, SeqCst);
    let (second_guest, second_pump) = begin(1);
    let pumps = [first_pump, second_pump];
    std::thread::sleep(WHILE / 6);
    traffic.flips[1].store(true, SeqCst);
    let gates = [0, 1].map(|at| destinations[at].open_gate_after(&pumps[at], [FIRST, SECOND][at].carry_id));
    for gate in &gates {
        eventually("the gate is open", || gate.is_line_empty());
    }
    std::thread::sleep(WHILE);
    let sent = traffic.stop();
    for (seen, guest) in seen.iter_mut().zip([first_guest, second_guest]) {
        seen.extend(guest.finish());
        assert_exact(seen, sent);
    }
    for host in sources.into_iter().chain(destinations) {
        let state = host.port.counters();
        assert_eq!((state.line, state.overflowed, state.refused), (0, 0, 0), "{state:?}");
        assert!(state.held > 0, "{state:?}");
    }
}

#[test]
fn a_guest_that_does_not_read_is_in_nobodys_way() {
    const LIMIT: u64 = 500;
    const SENT: u64 = 2_000;
    const RING: u32 = 64;
    /// Passed at once, with nothing but the ring to wait in.
    const AFTER: u64 = RING as u64 / 2;
    let shape = Shape { line_limit: LIMIT as u32, tap_ring: RING, ..Shape::default() };
    let fabric = Fabric::shaped(&shape);
    let second = SecondPort::new(&fabric, &Shape { tap_ring: RING, ..Shape::default() });
    let (wedged, other) = (&fabric.source, &second.source);
    for host in [wedged, other] {
        host.port.set_mode(Mode::Hold);
    }
    let seen = |host: &Host| host.port.counters().held + host.port.counters().overflowed;
    send(&fabric, FIRST, 0..SENT);
    eventually("all have been seen", || seen(wedged) == SENT);
    let state = wedged.port.counters();
    assert_eq!((state.line, state.overflowed), (LIMIT as i64, SENT - LIMIT), "bounded, and counted");

    // Released, but nobody reads: what its ring takes leaves the line, and no more.
    let pump = wedged.release_to_tap();
    eventually("its ring fills", || wedged.port.line() < LIMIT as i64);
    let began = Instant::now();
    send(&fabric, SECOND, 0..SENT);
    eventually("the other's are held", || seen(other) == SENT);
    let guest = other.run_guest();
    let other_pump = other.release_to_tap();
    eventually("the other's line is empty", || other_pump.is_line_empty());
    send(&fabric, SECOND, SENT..SENT + AFTER);
    assert_exact(&guest.finish(), SENT + AFTER);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "the other was held up: {took:?}");
    assert_eq!(other.port.counters().overflowed, 0);

    let line = wedged.port.line();
    assert!(line > LIMIT as i64 - i64::from(RING), "what has no room in the ring waits: {line}");
    send(&fabric, FIRST, LIMIT..LIMIT + 10);
    eventually("they join the line", || wedged.port.line() == line + 10);
    // It reads at last.
    let guest = wedged.run_guest();
    eventually("its line is empty", || pump.is_line_empty());
    assert_exact(&guest.finish(), LIMIT + 10);
    assert_eq!((wedged.port.line(), pump.stop().lost), (0, 0));
}
