//! What a demo found out, as it is written to JSON.

use std::fs;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use throughline_probe::observe::Sighting;
use throughline_probe::peer::{End, Report, Retransmission};

use super::delivery;
use super::disks::Disk;
use super::resources::Snapshot;
use crate::operator::Operator;

/// How many lost packets are traced.
const TRACED: usize = 16;

/// All results of a demo.
#[derive(Debug, Serialize)]
pub(super) struct Record<R> {
    /// One entry a migration.
    pub(super) runs: Vec<R>,
    /// Where it was measured.
    pub(super) host: HostInfo,
    /// What was there before, between and after the migrations; empty if nobody looked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) resources: Vec<Snapshot>,
    /// The guest's disks after all of them; empty if it has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) disks: Vec<Disk>,
}

impl<R> Record<R> {
    /// Nothing found out yet.
    pub(super) fn new(host: HostInfo) -> Self {
        Self { runs: Vec::new(), host, resources: Vec::new(), disks: Vec::new() }
    }
}

/// One migration. Times of phases and counts of held, carried and gated frames are the agents'; the rest is the probes'.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Run {
    /// Host the guest left.
    pub(super) from: String,
    /// Host it went to.
    pub(super) to: String,
    /// How long the guest stood still: STOP at the source to `cont` at the destination, milliseconds.
    pub(super) pause_ms: f64,
    /// From `cont` to the first frame on the destination's tap, milliseconds.
    pub(super) hold_added_ms: f64,
    /// Longest time without a frame for the guest on either tap between arm and settle, milliseconds.
    pub(super) gap_ms: f64,
    /// Numbered UDP packets sent, both ways (echoes not counted).
    pub(super) sent: u64,
    /// Of them, by the peer.
    pub(super) sent_to_guest: u64,
    /// Of them, by the guest.
    pub(super) sent_from_guest: u64,
    /// Messages sent on the TCP stream, both ways.
    pub(super) tcp_messages: u64,
    /// Packets and pings that did not reach the guest (a ping without an answer counts here).
    pub(super) lost_to_guest: u64,
    /// Of them, pings.
    pub(super) pings_lost: u64,
    /// Where the first of the lost packets to the guest were last seen; times from the guest's STOP.
    pub(super) lost_traces: Vec<String>,
    /// Packets and echoes that left the guest and did not reach the peer.
    pub(super) lost_from_guest: u64,
    /// Packets, echoes and pings that came more than once, each fault counted where it happened.
    pub(super) duplicated: u64,
    /// Packets, echoes and pings that came after a later one, each fault counted where it was seen.
    pub(super) reordered: u64,
    /// The furthest any of them had fallen behind, packets.
    pub(super) displacement: u64,
    /// Frames that waited at the source.
    pub(super) held: u64,
    /// Frames the source passed on to the destination.
    pub(super) carried: u64,
    /// Frames that came the new way too early and waited.
    pub(super) gated: u64,
    /// Frames lost because a hold was full.
    pub(super) overflowed: u64,
    /// TCP segments retransmitted from arm on, both ends.
    pub(super) tcp_retransmits: u32,
    /// TCP segments retransmitted before arm, both ends: an emulated guest stalls as pre-copy begins.
    pub(super) precopy_stall_retransmits: u32,
    /// Each time a kernel's count of them had risen.
    pub(super) retransmissions: Vec<Retransmitted>,
    /// TCP connections that broke.
    pub(super) tcp_resets: u64,
    /// Times the guest took over 10 s to answer a question for its counts.
    pub(super) stalls: u64,
    /// TCP messages that did not arrive, or not as they were sent.
    pub(super) tcp_damaged: u64,
    /// Longest time the guest was silent towards the peer, in the whole run, milliseconds.
    pub(super) longest_silence_ms: f64,
    /// Whether every byte of the guest's watched memory is what was last written to it.
    pub(super) memory_ok: bool,
    /// When each phase began, milliseconds from arm.
    pub(super) phases_ms: Phases,
}

/// TCP segments retransmitted.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Retransmitted {
    /// When it became known, milliseconds from arm.
    at_ms: f64,
    /// By whom.
    end: End,
    segments: u32,
}

/// When things happened, milliseconds from arm; absent: they did not.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Phases {
    pub(super) stopped: Option<f64>,
    pub(super) pre_switchover: Option<f64>,
    pub(super) continued: Option<f64>,
    pub(super) memory_in: Option<f64>,
    pub(super) decided: Option<f64>,
    pub(super) committed: Option<f64>,
    pub(super) cont: Option<f64>,
    pub(super) running: Option<f64>,
    pub(super) line_empty: Option<f64>,
    pub(super) gate_open: Option<f64>,
    pub(super) settled: Option<f64>,
}

/// The agents' report, as the operator's command prints it: `CutoverReport` of the protocol, less what is not used here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cutover {
    pub(super) armed_at_ns: u64,
    pub(super) stopped_at_ns: u64,
    pub(super) pre_switchover_at_ns: u64,
    pub(super) continued_at_ns: u64,
    pub(super) memory_in_at_ns: u64,
    pub(super) decided_at_ns: u64,
    pub(super) committed_at_ns: u64,
    pub(super) cont_at_ns: u64,
    pub(super) running_at_ns: u64,
    pub(super) line_empty_at_ns: u64,
    pub(super) gate_open_at_ns: u64,
    pub(super) settled_at_ns: u64,
    pub(super) held: u64,
    pub(super) carried: u64,
    pub(super) gated: u64,
    pub(super) overflowed: u64,
}

impl Cutover {
    /// How long the guest stood still: STOP at the source to `cont` at the destination, milliseconds.
    pub(super) fn pause_ms(&self) -> f64 {
        ms(self.running_at_ns.saturating_sub(self.stopped_at_ns))
    }
}

/// What was seen on the two taps.
#[derive(Debug)]
pub(super) struct Taps {
    pub(super) source: Vec<Sighting>,
    pub(super) destination: Vec<Sighting>,
}

impl Run {
    /// Puts together what the agents, the probes and the observers say about one migration.
    pub(super) fn of(from: &str, to: &str, cutover: &Cutover, probes: &Report, taps: &Taps) -> Result<Self> {
        let hold_added = delivery::hold_added(&taps.destination, cutover.running_at_ns)
            .with_context(|| format!("no frame ever reached the guest's tap on {to}"))?;
        let window = cutover.armed_at_ns..cutover.settled_at_ns;
        let gap = delivery::longest_gap(&taps.source, &taps.destination, cutover.running_at_ns, window);
        let trace = |&number: &u64| delivery::trace(number, &taps.source, &taps.destination, cutover.stopped_at_ns);
        let (before, after) = retransmits(probes, cutover.armed_at_ns);
        let Report { to_guest, echoes, from_guest, ping, memory, stream, .. } = probes;
        Ok(Self {
            from: from.to_owned(),
            to: to.to_owned(),
            pause_ms: cutover.pause_ms(),
            hold_added_ms: ms(hold_added),
            gap_ms: ms(gap),
            sent: to_guest.sent + from_guest.sent,
            sent_to_guest: to_guest.sent,
            sent_from_guest: from_guest.sent,
            tcp_messages: stream.sent,
            lost_to_guest: to_guest.lost + ping.lost,
            pings_lost: ping.lost,
            lost_traces: to_guest.lost_numbers.iter().take(TRACED).map(trace).collect(),
            lost_from_guest: probes.lost_from_guest(),
            duplicated: probes.duplicated(),
            reordered: probes.reordered(),
            displacement: [to_guest, echoes, from_guest, ping]
                .map(|probe| probe.displacement)
                .into_iter()
                .max()
                .unwrap_or(0),
            held: cutover.held,
            carried: cutover.carried,
            gated: cutover.gated,
            overflowed: cutover.overflowed,
            tcp_retransmits: after,
            precopy_stall_retransmits: before,
            retransmissions: stream.retransmissions.iter().map(|event| Retransmitted::of(event, cutover)).collect(),
            tcp_resets: stream.resets,
            stalls: stream.stalls,
            tcp_damaged: stream.corrupted + stream.undelivered,
            longest_silence_ms: ms(from_guest.longest_gap_ns),
            memory_ok: memory.corrupted == 0 && memory.rewritten > 0,
            phases_ms: Phases::of(cutover),
        })
    }
}

impl Retransmitted {
    fn of(event: &Retransmission, cutover: &Cutover) -> Self {
        let Retransmission { at_ns, end, segments } = *event;
        Self { at_ms: (at_ns as f64 - cutover.armed_at_ns as f64) / 1e6, end, segments }
    }
}

impl Phases {
    pub(super) fn of(cutover: &Cutover) -> Self {
        let since_arm = |at: u64| (at > 0).then(|| (at as f64 - cutover.armed_at_ns as f64) / 1e6);
        Self {
            stopped: since_arm(cutover.stopped_at_ns),
            pre_switchover: since_arm(cutover.pre_switchover_at_ns),
            continued: since_arm(cutover.continued_at_ns),
            memory_in: since_arm(cutover.memory_in_at_ns),
            decided: since_arm(cutover.decided_at_ns),
            committed: since_arm(cutover.committed_at_ns),
            cont: since_arm(cutover.cont_at_ns),
            running: since_arm(cutover.running_at_ns),
            line_empty: since_arm(cutover.line_empty_at_ns),
            gate_open: since_arm(cutover.gate_open_at_ns),
            settled: since_arm(cutover.settled_at_ns),
        }
    }
}

/// Segments retransmitted before and from `armed_at` on.
fn retransmits(probes: &Report, armed_at: u64) -> (u32, u32) {
    let (before, after): (Vec<_>, Vec<_>) =
        probes.stream.retransmissions.iter().partition(|retransmission| retransmission.at_ns < armed_at);
    let segments = |events: Vec<&Retransmission>| events.iter().map(|event| event.segments).sum();
    (segments(before), segments(after))
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The machine all hosts of the lab share.
#[derive(Debug, Serialize)]
pub(super) struct HostInfo {
    /// Release of its kernel.
    kernel: String,
    /// Processors.
    cpus: usize,
    /// QEMU's version, in its own words.
    qemu: String,
    /// Accelerator the agents found usable.
    accelerator: String,
}

impl HostInfo {
    /// Asks the machine, QEMU, and the fabric about `hypervisor`.
    pub(super) fn find(operator: &Operator, hypervisor: &str) -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let output = Command::new("qemu-system-x86_64").arg("--version").output().context("cannot run QEMU")?;
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        let host: Value = operator.ask(&["host", "get", hypervisor])?;
        let accelerator = host["accelerator"].as_str().unwrap_or_default().to_owned();
        Ok(Self { kernel, cpus: thread::available_parallelism()?.get(), qemu: version, accelerator })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use throughline_probe::arrivals::Summary;
    use throughline_probe::memory;
    use throughline_probe::peer::StreamReport;

    use super::*;

    fn all_arrived() -> Summary {
        Summary { sent: 100, arrived: 100, ..Summary::default() }
    }

    fn flawless() -> Report {
        Report {
            to_guest: all_arrived(),
            lost_sent_at_ns: Vec::new(),
            echoes: all_arrived(),
            from_guest: all_arrived(),
            ping: all_arrived(),
            memory: memory::Status { pages: 1, rewritten: 5, corrupted: 0 },
            disks: Vec::new(),
            stream: StreamReport {
                sent: 10,
                undelivered: 0,
                corrupted: 0,
                resets: 0,
                stalls: 0,
                retransmissions: Vec::new(),
            },
        }
    }

    fn cutover() -> Cutover {
        let (ms, armed) = (1_000_000, 5_000_000_000);
        Cutover {
            armed_at_ns: armed,
            stopped_at_ns: armed + ms,
            running_at_ns: armed + 10 * ms,
            settled_at_ns: armed + 400 * ms,
            held: 20,
            ..Cutover::default()
        }
    }

    fn taps() -> Taps {
        let at = |sequence, ms: u64| Sighting { sequence, at_ns: 5_000_000_000 + ms * 1_000_000 };
        Taps { source: vec![at(0, 0), at(1, 1)], destination: vec![at(2, 11), at(3, 12)] }
    }

    fn run(probes: &Report) -> Run {
        Run::of("h1", "h2", &cutover(), probes, &taps()).unwrap()
    }

    /// A run in which nothing went wrong.
    pub(in crate::demo) fn good_run() -> Run {
        run(&flawless())
    }

    #[test]
    fn a_flawless_run() {
        let run = good_run();
        assert_eq!((run.pause_ms, run.hold_added_ms, run.gap_ms), (9.0, 1.0, 10.0));
        assert_eq!(
            (run.sent, run.lost_to_guest, run.lost_from_guest, run.duplicated, run.reordered),
            (200, 0, 0, 0, 0)
        );
        assert_eq!(run.phases_ms.settled, Some(400.0));
        assert_eq!(run.phases_ms.gate_open, None);
        assert!(run.memory_ok);
    }

    #[test]
    fn each_fault_is_counted_once_and_on_its_side() {
        let mut probes = flawless();
        probes.to_guest = Summary { sent: 100, arrived: 97, lost: 3, duplicated: 1, ..Summary::default() };
        probes.echoes = Summary { sent: 100, arrived: 95, lost: 5, duplicated: 1, ..Summary::default() };
        let run = run(&probes);
        assert_eq!((run.lost_to_guest, run.lost_from_guest, run.duplicated), (3, 2, 1));
    }

    #[test]
    fn the_stall_before_arm_is_apart() {
        let mut probes = flawless();
        let at = |at_ns, segments| Retransmission { at_ns, end: End::Guest, segments };
        probes.stream.retransmissions = vec![at(4_000_000_000, 7), at(5_100_000_000, 2)];
        let run = run(&probes);
        assert_eq!((run.precopy_stall_retransmits, run.tcp_retransmits), (7, 2));
    }

    #[test]
    fn a_destination_that_got_nothing_is_an_error() {
        let taps = Taps { destination: Vec::new(), ..taps() };
        assert!(Run::of("h1", "h2", &cutover(), &flawless(), &taps).is_err());
    }
}
