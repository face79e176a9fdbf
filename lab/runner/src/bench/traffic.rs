//! The probes of one load, and what they saw in one window: a move, or the same time without one.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use throughline_probe::arrivals::Gap;
use throughline_probe::control::Client;
use throughline_probe::load;
use throughline_probe::peer::{Report, Retransmission};

use super::load::{Flood, Load};
use super::way::Moved;
use crate::demo::probe::Probe;
use crate::demo::probes::BOOT;
use crate::demo::{cast, late};
use crate::lab::Lab;
use crate::play::sibling;
use crate::signals;

/// How long a probe may take to answer: longer than it goes on asking the guest.
pub(super) const ANSWER: Duration = Client::PATIENCE.saturating_add(Duration::from_secs(20));

/// Time for probes to find their rhythm.
const WARM_UP: Duration = Duration::from_millis(1000);

/// After a move: late retransmissions (a timeout takes TCP at least 200 ms) still belong to it.
const AFTERMATH: Duration = Duration::from_millis(700);

/// After a window's last packet was sent: by then all should have arrived. What has not is waited for as long again.
const DRAIN: Duration = Duration::from_millis(1500);

/// How often it is waited for.
const LATE: u32 = 4;

/// How long a window without a move is.
const STILL: Duration = Duration::from_secs(2);

/// How long after the guest runs again a silence still counts as the move's.
const AFTER_NS: u64 = 3_000_000_000;

/// What was seen in one window.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Window {
    /// The move; none: the machine's own noise.
    pub(super) moved: Option<Moved>,
    /// How long the guest stood still, milliseconds.
    pub(super) pause_ms: f64,
    /// Longest time without an echo from the guest around the move, or in the whole window without one, milliseconds.
    pub(super) outage_ms: f64,
    /// When that began, milliseconds after STOP.
    pub(super) outage_began_ms: f64,
    /// Packets sent to the guest, pings included.
    pub(super) sent_to_guest: u64,
    /// Of them, not arrived (a ping: not answered).
    pub(super) lost_to_guest: u64,
    /// Of them, sent after the guest ran again (pings not counted).
    pub(super) lost_after_run: u64,
    /// Packets and echoes sent by the guest.
    pub(super) sent_from_guest: u64,
    /// Of them, not arrived.
    pub(super) lost_from_guest: u64,
    /// Came more than once, both ways.
    pub(super) duplicated: u64,
    /// Came after a later one of their flow, both ways.
    pub(super) reordered: u64,
    /// TCP segments retransmitted, both ends, from STOP on; in the whole window without a move.
    pub(super) retransmits: u32,
    /// Of TCP segments retransmitted, those before STOP: an emulated guest stalls as pre-copy begins.
    pub(super) retransmits_before: u32,
    /// TCP connections that broke, and questions to the guest that had no answer in 10 s.
    pub(super) resets: u64,
    /// TCP messages that did not arrive, or not as they were sent.
    pub(super) damaged: u64,
    /// Bulk, megabytes both ways.
    pub(super) bulk_mb: f64,
    /// Whether the guest's watched memory is what was written to it.
    pub(super) memory_ok: bool,
}

/// The probes of a load.
#[derive(Debug)]
pub(super) struct Traffic<'a> {
    lab: &'a Lab,
    peers: &'a [&'a str],
    load: &'a Load,
    paced: Probe,
    faults: Faults,
}

/// What has gone wrong with the paced stream since its start.
#[derive(Debug, Default)]
struct Faults {
    resets: u64,
    damaged: u64,
}

impl Faults {
    fn of(Report { stream, .. }: &Report) -> Self {
        Self { resets: stream.resets + stream.stalls, damaged: stream.corrupted + stream.undelivered }
    }
}

impl<'a> Traffic<'a> {
    /// Starts what goes on all the time; waits until the guest answers.
    pub(super) fn start(lab: &'a Lab, peers: &'a [&'a str], load: &'a Load) -> Result<Self> {
        let mut command = lab.namespace(peers[0]).command(sibling("throughline-probe")?)?;
        command.args(["peer", "--guest", cast::GUEST_ADDRESS, "--pps", &load.paced.to_string()]);
        command.args(["--patience", &BOOT.as_secs().to_string()]);
        let paced = Probe::start(format!("the probe on {}", peers[0]), command, BOOT + ANSWER)?;
        Ok(Self { lab, peers, load, paced, faults: Faults::default() })
    }

    /// A window in which the guest stays.
    pub(super) fn still(&mut self) -> Result<Window> {
        self.window(|| signals::sleep(STILL).map(|()| None))
    }

    /// A window in which something happens.
    pub(super) fn window(&mut self, act: impl FnOnce() -> Result<Option<Moved>>) -> Result<Window> {
        let floods = self.load.floods.iter().map(|flood| start_flood(self.lab, self.peers, *flood));
        let mut floods: Vec<Probe> = floods.collect::<Result<_>>()?;
        signals::sleep(WARM_UP)?;
        let from: usize = self.paced.ask("mark", ANSWER)?;
        let moved = act()?;
        signals::sleep(AFTERMATH)?;
        let to: usize = self.paced.ask("mark", ANSWER)?;
        // They end together; what is under way then arrives while they, and this, wait.
        floods.iter_mut().try_for_each(|flood| flood.tell("finish"))?;
        signals::sleep(DRAIN)?;
        let reports: Vec<load::Report> = floods.iter_mut().map(|flood| flood.answer(ANSWER)).collect::<Result<_>>()?;
        let report = self.report(from, to)?;
        let window = Window::of(moved, &report, &reports);
        // The stream's faults are counted from its start on.
        let before = std::mem::replace(&mut self.faults, Faults::of(&report));
        Ok(Window {
            resets: window.resets - before.resets,
            damaged: window.damaged.saturating_sub(before.damaged),
            ..window
        })
    }

    /// What the paced probes saw between two marks.
    fn report(&mut self, from: usize, to: usize) -> Result<Report> {
        let question = format!("report {from} {to}");
        let mut before = None;
        // What is lost by the thousand does not get less, and is not waited for to the end.
        let whole = |report: &Report| {
            let missing = report.missing();
            missing == 0 || before.replace(missing) == Some(missing)
        };
        late::wait(DRAIN, LATE, whole, || self.paced.ask(&question, ANSWER))
    }
}

/// Starts one peer's flood.
pub(super) fn start_flood(lab: &Lab, peers: &[&str], flood: Flood) -> Result<Probe> {
    let host = peers[flood.peer];
    let mut command = lab.namespace(host).command(sibling("throughline-probe")?)?;
    command.args(["load", "--guest", cast::GUEST_ADDRESS, "--pps", &flood.pps.to_string()]);
    command.args(["--flows", &flood.flows.to_string()]);
    if flood.bulk {
        command.arg("--bulk");
    }
    Probe::start(format!("the load on {host}"), command, BOOT + ANSWER)
}

impl Window {
    fn of(moved: Option<Moved>, paced: &Report, floods: &[load::Report]) -> Self {
        // The guest that is measured has no disks.
        let Report { to_guest, lost_sent_at_ns, echoes, from_guest, ping, memory, stream, disks: _ } = paced;
        let running = moved.map_or(u64::MAX, |moved| moved.running_at_ns);
        let late = |times: &[u64]| times.iter().filter(|&&sent| sent > running).count() as u64;
        let rises = floods.iter().flat_map(|flood| &flood.bulk.retransmissions).chain(&stream.retransmissions);
        let stopped = moved.map_or(0, |moved| moved.stopped_at_ns);
        let (before, after): (Vec<&Retransmission>, Vec<_>) = rises.partition(|rise| rise.at_ns < stopped);
        let segments = |rises: &[&Retransmission]| rises.iter().map(|rise| rise.segments).sum();
        let (outage_ms, outage_began_ms) = outage(moved, &echoes.gaps);
        let sum = |count: fn(&load::Report) -> u64| floods.iter().map(count).sum::<u64>();
        Self {
            moved,
            pause_ms: moved.map_or(0.0, |moved| moved.pause_ms()),
            outage_ms,
            outage_began_ms,
            sent_to_guest: to_guest.sent + ping.sent + sum(|flood| flood.sent),
            lost_to_guest: to_guest.lost + ping.lost + sum(|flood| flood.lost),
            lost_after_run: late(lost_sent_at_ns)
                + floods.iter().map(|flood| late(&flood.lost_sent_at_ns)).sum::<u64>(),
            sent_from_guest: from_guest.sent + to_guest.arrived,
            lost_from_guest: paced.lost_from_guest(),
            duplicated: paced.duplicated() + sum(|flood| flood.duplicated),
            reordered: paced.reordered() + sum(|flood| flood.reordered),
            retransmits: segments(&after),
            retransmits_before: segments(&before),
            resets: Faults::of(paced).resets + sum(|flood| flood.bulk.resets),
            damaged: Faults::of(paced).damaged + sum(|flood| flood.bulk.corrupted),
            bulk_mb: sum(|flood| flood.bulk.to_guest + flood.bulk.from_guest) as f64 / 1e6,
            memory_ok: memory.corrupted == 0 && memory.rewritten > 0,
        }
    }
}

/// The longest gap that touches the time from STOP until well after the guest runs again: how long it was, and how long
/// after STOP it began, milliseconds.
fn outage(moved: Option<Moved>, gaps: &[Gap]) -> (f64, f64) {
    let touches = |gap: &&Gap| match moved {
        None => true,
        Some(moved) => {
            gap.began_ns + gap.length_ns > moved.stopped_at_ns && gap.began_ns < moved.running_at_ns + AFTER_NS
        }
    };
    let Some(longest) = gaps.iter().filter(touches).max_by_key(|gap| gap.length_ns) else { return (0.0, 0.0) };
    let stopped = moved.map_or(longest.began_ns, |moved| moved.stopped_at_ns);
    (longest.length_ns as f64 / 1e6, (longest.began_ns as f64 - stopped as f64) / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_before_the_move_is_not_the_moves() {
        let ms = 1_000_000;
        let gap = |began_ns, length_ns| Gap { began_ns: began_ns * ms, length_ns: length_ns * ms };
        let gaps = [gap(100, 400), gap(990, 30), gap(9000, 500)];
        let moved = Moved { stopped_at_ns: 1000 * ms, running_at_ns: 1010 * ms, ..Moved::default() };
        assert_eq!(outage(Some(moved), &gaps), (30.0, -10.0));
        assert_eq!(outage(None, &gaps), (500.0, 0.0));
        assert_eq!(outage(None, &[]), (0.0, 0.0));
    }
}
