//! TCP whose super-frames all wait in line and are written back by the pump, and a hold in the midst of it.

use std::time::{Duration, Instant};

use throughline_loader::{Mode, Pump};

use crate::{
    guest::{Stacks, Stream, Wire},
    report::{Report, Target},
    support::{eventually, topology::Fabric},
};

const ROUNDS: usize = 7;
const WINDOW: Duration = Duration::from_millis(700);
const WARM_UP: Duration = Duration::from_millis(300);
/// Gbit/s.
const CARD: u64 = 5;
const HELD: Duration = Duration::from_millis(5);

pub(crate) fn measure(report: &mut Report) {
    report.part("gso");
    through_the_line(report, "hold, carry, land", true, |fabric| fabric.source.release_to_carry());
    through_the_line(report, "hold, own tap", false, |fabric| fabric.source.release_to_tap());
    held_for_a_moment(report);
}

/// Every frame is held and written back: the line is never let open.
fn through_the_line(report: &mut Report, way: &str, away: bool, release: impl Fn(&Fabric) -> Pump) {
    let fabric = Fabric::new();
    let stacks = Stacks::new(&fabric, Wire::Kernel, away);
    let stream = stacks.stream(&fabric);
    std::thread::sleep(WARM_UP);
    let source = &fabric.source;
    source.port.set_mode(Mode::Hold);
    let pump = release(&fabric);
    source.port.set_mode(Mode::Hold);
    std::thread::sleep(WARM_UP);

    let (before, again) = (source.port.counters(), stream.retransmits());
    let rates = (0..ROUNDS).map(|_| stream.rate(WINDOW)).collect();
    let (after, again) = (source.port.counters(), stream.retransmits() - again);
    let frames = (after.held - before.held) as f64;
    let bytes = (after.held_bytes - before.held_bytes) as f64;
    report.row_with_target(&format!("TCP through {way}"), "Gbit/s", rates, Target::AtLeast(5.0));
    report.row(format!("TCP through {way}: a held frame's length"), "bytes", vec![bytes / frames]);
    report.row(format!("TCP through {way}: segments sent again"), "segments", vec![again as f64]);
    let lost = (after.overflowed - before.overflowed) + pump.counts().lost;
    report.row_with_target(&format!("TCP through {way}: lost"), "frames", vec![lost as f64], Target::AtMost(0.0));
    drop(stream);
    drop(pump);
}

/// A guest that pauses for a moment under a stream of TCP, and leaves. The stream has the pace of a card: one that is as
/// fast as this machine's memory keeps a full window in line, and a line that is fed as fast as it empties never seals.
fn held_for_a_moment(report: &mut Report) {
    let fabric = Fabric::new();
    let stacks = Stacks::new(&fabric, Wire::Kernel, true);
    let stream = stacks.stream(&fabric);
    stream.keep_pace(CARD);
    std::thread::sleep(WARM_UP);
    let (mut drained, mut rates, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    let (mut again, mut probes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let round = one_hold(&fabric, &stream);
        drained.push(round.drained.as_secs_f64() * 1e3);
        probes.push(round.probes as f64);
        again.push(round.again.saturating_sub(round.probes) as f64);
        rates.push(round.rate);
        lengths.push(round.length);
    }
    let held = format!("TCP at {CARD} Gbit/s, held for {} ms, then carried", HELD.as_millis());
    report.row(format!("{held}: release to an empty line"), "ms", drained);
    report.row(format!("{held}: a held frame's length"), "bytes", lengths);
    report.row(format!("{held}: rate after"), "Gbit/s", rates);
    // Linux asks after two ticks without an acknowledgement, whoever paused.
    report.row(format!("{held}: loss probes"), "segments", probes);
    report.row_with_target(&format!("{held}: sent again, no probe"), "segments", again, Target::AtMost(0.0));
}

struct Round {
    drained: Duration,
    again: u64,
    probes: u64,
    rate: f64,
    length: f64,
}

fn one_hold(fabric: &Fabric, stream: &Stream) -> Round {
    let source = &fabric.source;
    let probes = loss_probes(fabric);
    let (before, again) = (source.port.counters(), stream.retransmits());
    source.port.set_mode(Mode::Hold);
    std::thread::sleep(HELD);
    let released = Instant::now();
    let pump = source.release_to_carry();
    eventually("the line is empty", || pump.is_line_empty());
    let drained = released.elapsed();
    let rate = stream.rate(WINDOW);
    let again = stream.retransmits() - again;
    let probes = loss_probes(fabric) - probes;
    let after = source.port.counters();
    let length = (after.held_bytes - before.held_bytes) as f64 / (after.held - before.held).max(1) as f64;
    // As before the move, for the next round; what may be sent again for this is not counted.
    drop(pump);
    source.port.set_mode(Mode::Pass);
    std::thread::sleep(WARM_UP);
    Round { drained, again, probes, rate, length }
}

/// The peer's, so far.
fn loss_probes(fabric: &Fabric) -> u64 {
    let text = fabric.peer.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let probes = names.zip(values).find(|(name, _)| *name == "TCPLossProbes");
    probes.expect("TCPLossProbes").1.parse().unwrap()
}
