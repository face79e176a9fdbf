//! What the probes saw around one cell.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use throughline_probe::peer::Report;

use crate::demo::late;
use crate::demo::probes::Probes;

/// How long, and how often, what has not arrived is waited for.
const DRAIN: Duration = Duration::from_millis(400);
const LATE: u32 = 10;
/// How many lost packets are traced.
const TRACED: usize = 2;

/// Where the present window began, and what the probes count from the beginning on.
#[derive(Debug, Default)]
pub(super) struct Window {
    mark: Option<usize>,
    resets: u64,
    damaged: u64,
    corrupted: u64,
}

/// What happened in a window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Numbered packets, each way together.
    pub(super) sent: u64,
    /// Packets and pings that did not reach the guest.
    pub(super) lost_to_guest: u64,
    /// Packets and echoes of the guest's that did not reach the peer.
    pub(super) lost_from_guest: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    /// TCP connections that broke.
    pub(super) resets: u64,
    /// TCP messages that did not arrive, or not as they were sent.
    pub(super) damaged: u64,
    /// Pages of the guest's memory that were not what was last written.
    pub(super) corrupted: u64,
    /// Longest time without a packet from the guest, milliseconds.
    pub(super) silence_ms: u64,
    /// Of the packets that did not reach the guest the first and the last, by when they were sent, nanoseconds since 1970.
    #[serde(skip)]
    pub(super) lost_between: Option<(u64, u64)>,
    /// Where the first of them were seen.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(super) traces: Vec<String>,
}

impl Window {
    /// Begins one.
    pub(super) fn begin(&mut self, probes: &mut Probes, hosts: &[&str]) -> Result<()> {
        // What was seen before is another window's.
        for host in hosts {
            probes.sightings(host)?;
        }
        self.mark = Some(probes.mark()?);
        Ok(())
    }

    /// Ends it: what happened since it began.
    pub(super) fn end(&mut self, probes: &mut Probes, hosts: &[&str]) -> Result<Counts> {
        let (from, to) = (self.mark.take().unwrap_or_default(), probes.mark()?);
        let whole = |report: &Report| report.missing() + report.ping.lost + report.stream.undelivered == 0;
        let report = late::wait(DRAIN, LATE, whole, || probes.report(from, to))?;
        let mut counts = self.counted(&report);
        if counts.lost_to_guest > 0 {
            for host in hosts {
                let seen = probes.sightings(host)?.frames;
                for (number, sent) in report.to_guest.lost_numbers.iter().zip(&report.lost_sent_at_ns).take(TRACED) {
                    let at = seen.iter().find(|frame| frame.sequence == *number).map(|frame| frame.at_ns as f64);
                    let words = at.map(|at| format!("{:.1} ms after it was sent", (at - *sent as f64) / 1e6));
                    counts.traces.push(format!(
                        "packet {number}, sent at {sent}, on the tap of {host}: {}",
                        words.unwrap_or_else(|| "never".to_owned())
                    ));
                }
            }
        }
        Ok(counts)
    }

    fn counted(&mut self, report: &Report) -> Counts {
        let Report { to_guest, from_guest, ping, memory, stream, lost_sent_at_ns, .. } = report;
        let since = |before: &mut u64, now: u64| {
            let more = now.saturating_sub(*before);
            *before = now;
            more
        };
        Counts {
            sent: to_guest.sent + from_guest.sent,
            lost_to_guest: to_guest.lost + ping.lost,
            lost_from_guest: report.lost_from_guest(),
            duplicated: report.duplicated(),
            reordered: report.reordered(),
            resets: since(&mut self.resets, stream.resets),
            damaged: since(&mut self.damaged, stream.corrupted) + stream.undelivered,
            corrupted: since(&mut self.corrupted, memory.corrupted),
            silence_ms: from_guest.longest_gap_ns / 1_000_000,
            lost_between: lost_sent_at_ns.first().copied().zip(lost_sent_at_ns.last().copied()),
            traces: Vec::new(),
        }
    }
}
