//! Everything a frame for a guest can go through, one after the other: hold, carry, gate.

use super::{
    eventually,
    tap::{Tap, VNET_HEADER},
    topology::{Fabric, Host},
};
use throughline_loader::Mode;

/// A frame and its vnet header, as a guest reads it.
pub(crate) type Received = ([u8; VNET_HEADER], Vec<u8>);

/// What waits where.
pub(crate) struct Stages<'a, F> {
    /// Held at the source, and carried from the line.
    pub(crate) held: &'a [F],
    /// Carried straight on.
    pub(crate) carried: &'a [F],
    /// Kept back at the destination's gate.
    pub(crate) gated: &'a [F],
}

impl<'a, F> Stages<'a, F> {
    /// A third each.
    pub(crate) fn thirds(frames: &'a [F]) -> Self {
        let third = frames.len() / 3;
        let (held, rest) = frames.split_at(third);
        let (carried, gated) = rest.split_at(third);
        Self { held, carried, gated }
    }
}

/// Sends each stage's frames, down the old path or the new one, waits until they are where they belong, and lets them all
/// out at the destination; what its guest then reads.
pub(crate) fn go_the_whole_way<F>(
    fabric: &Fabric,
    stages: &Stages<'_, F>,
    send_old: impl Fn(&F),
    send_new: impl Fn(&F),
) -> Vec<Received> {
    let (source, destination) = (&fabric.source, &fabric.destination);
    source.port.set_mode(Mode::Hold);
    stages.held.iter().for_each(&send_old);
    eventually("they are held", || source.port.counters().held == stages.held.len() as u64);

    destination.port.set_mode(Mode::Hold);
    let pump = source.release_to_carry();
    eventually("the line is empty", || pump.is_line_empty());
    stages.carried.iter().for_each(&send_old);
    eventually("they are carried", || source.port.counters().carried == stages.carried.len() as u64);

    stages.gated.iter().for_each(&send_new);
    eventually("they wait at the gate", || destination.port.line() == stages.gated.len() as i64);
    let old = (stages.held.len() + stages.carried.len()) as u64;
    eventually("the old ones have landed", || destination.port.counters().landed == old);
    let mut received = everything_in(&destination.tap);
    let gate = destination.release_to_tap();
    eventually("the gate is open", || {
        received.extend(everything_in(&destination.tap));
        gate.is_line_empty()
    });
    received.extend(everything_in(&destination.tap));
    let counts = [pump.stop(), gate.stop()];
    assert!(counts.iter().all(|counts| counts.lost == 0), "{counts:?}");
    for host in [source, destination] {
        let state = host.port.counters();
        assert_eq!((state.line, state.overflowed, state.refused), (0, 0, 0), "{state:?}");
    }
    received
}

/// What is in a tap's ring.
pub(crate) fn everything_in(tap: &Tap) -> Vec<Received> {
    std::iter::from_fn(|| tap.read_with_header()).collect()
}

/// Bytes of frames, for messages that can be read.
#[track_caller]
pub(crate) fn assert_same(received: &[Received], sent: &[Vec<u8>]) {
    let lengths = |frames: &mut dyn Iterator<Item = usize>| frames.collect::<Vec<_>>();
    assert_eq!(
        lengths(&mut received.iter().map(|(_, frame)| frame.len())),
        lengths(&mut sent.iter().map(Vec::len)),
        "lengths, in order"
    );
    for (at, ((_, received), sent)) in received.iter().zip(sent).enumerate() {
        let differs = received.iter().zip(sent).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first byte of frame {at} that differs");
    }
}

/// Frames for the guest from another one on the same host, behind vnet headers.
pub(crate) fn neighbour(host: &Host) -> Tap {
    host.netns.run(|| {
        let neighbour = Tap::new("guest9", 10_000);
        super::netns::ip("link set guest9 master br0");
        neighbour
    })
}
