//! A migration in words and figures.

use std::time::Duration;

use throughline_wire::v1::{CutoverReport, Migration, OnStall, Phase, Progress, RunsOn};

use crate::units;

/// The phase by name; a number when it is from a newer protocol.
pub(crate) fn phase(migration: &Migration) -> String {
    match Phase::try_from(migration.phase) {
        Ok(Phase::Unspecified) => "unknown",
        Ok(Phase::Stopping) => "stopping",
        Ok(Phase::Preparing) => "preparing",
        Ok(Phase::Precopy) => "pre-copy",
        Ok(Phase::Armed) => "armed",
        Ok(Phase::Paused) => "paused",
        Ok(Phase::Committed) => "committed",
        Ok(Phase::Settling) => "settling",
        Ok(Phase::Done) => "done",
        Ok(Phase::Aborted) => "aborted",
        Err(_) => return migration.phase.to_string(),
    }
    .to_owned()
}

/// The guest's pause: from its stop at the source to its run at the destination, by the two hosts' clocks. Nothing
/// before both happened, or when the clocks contradict each other.
pub(crate) fn pause(report: &CutoverReport) -> Option<Duration> {
    let happened = report.stopped_at_ns != 0 && report.running_at_ns != 0;
    let nanoseconds = report.running_at_ns.checked_sub(report.stopped_at_ns);
    nanoseconds.filter(|_| happened).map(Duration::from_nanos)
}

/// Disks are being copied; memory comes after them.
fn copies_disks(progress: &Progress) -> bool {
    progress.disk_total != 0 && progress.total == 0
}

/// Share that is over of what is being copied, disks or memory, percent.
pub(super) fn percent(progress: &Progress) -> u64 {
    let (over, total) = if copies_disks(progress) {
        (progress.disk_copied.min(progress.disk_total), progress.disk_total)
    } else {
        (progress.total.saturating_sub(progress.remaining), progress.total)
    };
    (u128::from(over) * 100).checked_div(u128::from(total)).map_or(0, |percent| percent as u64)
}

/// How copying the guest's disks is getting on; nothing if it has none.
pub(crate) fn disks(progress: &Progress) -> Option<String> {
    let (copied, total) = (progress.disk_copied, progress.disk_total);
    match total {
        0 => None,
        _ if copied >= total => Some(format!("{} over", units::bytes(total))),
        _ => Some(format!("{} of {} over", units::bytes(copied), units::bytes(total))),
    }
}

/// One line of progress. Of disks, until they are over: percent and how much; then of memory: percent, remaining, rate, dirty
/// rate, expected pause.
pub(super) fn progress(progress: &Progress) -> String {
    match disks(progress) {
        Some(disks) if copies_disks(progress) => format!("{:3} %, disks: {disks}", percent(progress)),
        Some(disks) => format!("{}, disks: {disks}", memory(progress)),
        None => memory(progress),
    }
}

/// Percent, remaining, rate, dirty rate, expected pause.
pub(crate) fn memory(progress: &Progress) -> String {
    let pause = match progress.expected_pause_us {
        0 => "pause not known yet".to_owned(),
        micros => format!("pause {} expected", units::span(Duration::from_micros(micros))),
    };
    let throttle = match progress.throttle_percent {
        0 => String::new(),
        percent => format!(", slowed by {percent} %"),
    };
    format!(
        "{:3} %, {} left, {}, dirty {}, {pause}, pass {}{throttle}",
        percent(progress),
        units::bytes(progress.remaining),
        units::per_second(progress.rate),
        units::per_second(progress.dirty_rate),
        progress.passes
    )
}

/// What is done if memory does not converge, in a word.
pub(crate) fn on_stall(migration: &Migration) -> String {
    let Some(limits) = &migration.limits else { return String::new() };
    match limits.on_stall() {
        OnStall::Unspecified | OnStall::GiveUp => "give up".to_owned(),
        OnStall::Throttle => "throttle".to_owned(),
        OnStall::LongerPause => format!("longer pause, {} ms at most", limits.longest_pause_at_most_ms),
        OnStall::PostCopy => "post-copy".to_owned(),
    }
}

/// How the guest was stopped to be moved; nothing if it was not.
pub(crate) fn stop_first(migration: &Migration) -> String {
    let Some(stop) = &migration.stop_first else { return String::new() };
    let otherwise = if stop.otherwise() == RunsOn::Cut { "else cut" } else { "else stays" };
    format!("within {}, {otherwise}", units::span(Duration::from_millis(stop.deadline_ms.into())))
}

/// Whose markers came in time, by port and peer.
fn markers(report: &CutoverReport) -> String {
    let CutoverReport { markers_in, markers_missed, markers_cold, .. } = report;
    format!("{markers_in} peers in time, {markers_missed} missed, {markers_cold} cold")
}

/// What the cutover did, label and value. Moments are relative to the guest's stop; what did not happen is left out.
pub(crate) fn report_lines(report: &CutoverReport) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(pause) = pause(report) {
        lines.push(("pause", units::span(pause)));
    }
    lines.extend([
        ("held", frames(report.held)),
        ("carried", frames(report.carried)),
        ("gated", frames(report.gated)),
        ("overflowed", frames(report.overflowed)),
        ("refused", frames(report.refused)),
        ("markers", markers(report)),
        ("memory sent", units::bytes(report.memory_bytes)),
    ]);
    let moments = [
        ("armed", report.armed_at_ns),
        ("committed", report.committed_at_ns),
        ("running", report.running_at_ns),
        ("line empty", report.line_empty_at_ns),
        ("gate open", report.gate_open_at_ns),
        ("settled", report.settled_at_ns),
    ];
    let happened = moments.into_iter().filter(|(_, at)| *at != 0 && report.stopped_at_ns != 0);
    lines.extend(happened.map(|(label, at)| (label, relative(at, report.stopped_at_ns))));
    lines
}

fn frames(count: u64) -> String {
    format!("{count} {}", if count == 1 { "frame" } else { "frames" })
}

/// "12.3 ms after the stop".
fn relative(at: u64, stop: u64) -> String {
    let side = if at < stop { "before" } else { "after" };
    format!("{} {side} the stop", units::span(Duration::from_nanos(at.abs_diff(stop))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_one_line() {
        let memory = Progress {
            transferred: 150 << 20,
            remaining: 64 << 20,
            total: 256 << 20,
            rate: 112 << 20,
            dirty_rate: 3 << 20,
            expected_pause_us: 571_000,
            passes: 1,
            ..Progress::default()
        };
        assert_eq!(progress(&memory), " 75 %, 64 MiB left, 112 MiB/s, dirty 3 MiB/s, pause 571.0 ms expected, pass 1");
        let throttled = Progress { throttle_percent: 40, ..memory };
        assert!(progress(&throttled).ends_with("pass 1, slowed by 40 %"));
        assert!(progress(&Progress::default()).contains("not known yet"));
    }

    #[test]
    fn disks_come_before_memory() {
        let copying = Progress { disk_copied: 3 << 30, disk_total: 4 << 30, ..Progress::default() };
        assert_eq!(progress(&copying), " 75 %, disks: 3 GiB of 4 GiB over");
        let mirrored = Progress { disk_copied: 4 << 30, total: 100, remaining: 60, ..copying };
        let line = progress(&mirrored);
        assert!(line.starts_with(" 40 %, 60 B left") && line.ends_with("pass 0, disks: 4 GiB over"), "{line}");
        assert_eq!(disks(&Progress::default()), None);
        assert_eq!(percent(&Progress { disk_copied: 9, disk_total: 8, ..Progress::default() }), 100);
    }

    #[test]
    fn percent_stays_in_bounds() {
        let cases = [(0, 0, 0), (5, 0, 0), (0, 8, 100), (9, 8, 0), (u64::MAX / 2, u64::MAX, 50)];
        for (remaining, total, expected) in cases {
            assert_eq!(percent(&Progress { remaining, total, ..Progress::default() }), expected);
        }
    }

    #[test]
    fn a_pause_needs_both_ends() {
        let at = |stopped_at_ns, running_at_ns| CutoverReport { stopped_at_ns, running_at_ns, ..Default::default() };
        assert_eq!(pause(&at(1_000, 13_000)), Some(Duration::from_micros(12)));
        assert_eq!(pause(&at(0, 13_000)), None);
        assert_eq!(pause(&at(1_000, 0)), None);
        assert_eq!(pause(&at(13_000, 1_000)), None, "clocks that contradict each other");
    }

    #[test]
    fn a_report_tells_moments_from_the_stop() {
        let report = CutoverReport {
            armed_at_ns: 1_000_000,
            stopped_at_ns: 2_000_000,
            running_at_ns: 12_000_000,
            held: 1,
            markers_in: 2,
            ..Default::default()
        };
        let lines = report_lines(&report);
        for expected in [
            ("pause", "10.0 ms"),
            ("held", "1 frame"),
            ("overflowed", "0 frames"),
            ("refused", "0 frames"),
            ("markers", "2 peers in time, 0 missed, 0 cold"),
            ("armed", "1.0 ms before the stop"),
            ("running", "10.0 ms after the stop"),
        ] {
            assert!(lines.contains(&(expected.0, expected.1.to_owned())), "{expected:?} in {lines:?}");
        }
        assert!(lines.iter().all(|(label, _)| *label != "settled"));
    }
}
