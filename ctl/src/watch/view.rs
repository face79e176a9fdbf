//! How a migration being watched is shown: JSON lines, plain lines, or one live line on a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use throughline_wire::v1::{Migration, MigrationEvent, Phase};
use tokio::time::Instant;

use super::{live::Live, report};
use crate::{
    failure::Failure,
    output::{Format, print},
    table::{printable, properties},
    units,
};

/// Least time between two plain lines of mere progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Shows events as they come, then the end.
pub(super) trait View {
    /// Shows one event.
    fn event(&mut self, event: &MigrationEvent) -> Result<(), Failure>;

    /// Says something that is not an event, on stderr.
    fn notice(&mut self, text: &str) {
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Shows how it ended.
    fn end(&mut self, end: &Migration) -> Result<(), Failure>;
}

/// The view that suits the form of the output and where it goes.
pub(super) fn choose(output: Format) -> Box<dyn View> {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    match output {
        Format::Json => Box::new(JsonLines),
        Format::Table if io::stdout().is_terminal() && !dumb => Box::new(Live::new()),
        Format::Table => Box::new(Plain::default()),
    }
}

/// One JSON object a line: the protocol's own events, the last one with the report.
struct JsonLines;

impl View for JsonLines {
    fn event(&mut self, event: &MigrationEvent) -> Result<(), Failure> {
        print(&format!("{}\n", serde_json::to_string(event).map_err(io::Error::from)?))
    }

    fn notice(&mut self, text: &str) {
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(io::stderr(), "{}", serde_json::json!({ "notice": text }));
    }

    fn end(&mut self, _end: &Migration) -> Result<(), Failure> {
        Ok(())
    }
}

/// A line for every change of phase or message, and now and then one of progress.
#[derive(Default)]
struct Plain {
    phase: Option<i32>,
    progress_at: Option<Instant>,
}

impl Plain {
    /// The line for `event`, if it gets one.
    fn line(&mut self, event: &MigrationEvent, now: Instant) -> Option<String> {
        let migration = event.migration.as_ref()?;
        let news = self.phase.replace(migration.phase) != Some(migration.phase) || !event.message.is_empty();
        let text = match &migration.progress {
            _ if !event.message.is_empty() => printable(&event.message),
            Some(progress) => report::progress(progress),
            None => String::new(),
        };
        if !news {
            if self.progress_at.is_some_and(|at| now - at < PROGRESS_EVERY) {
                return None;
            }
            self.progress_at = Some(now);
        }
        let elapsed = event.at_ms.saturating_sub(migration.created_at_ms) as f64 / 1000.0;
        Some(format!("{elapsed:8.3} s  {:9}  {text}", report::phase(migration)).trim_end().to_owned())
    }
}

impl View for Plain {
    fn event(&mut self, event: &MigrationEvent) -> Result<(), Failure> {
        self.line(event, Instant::now()).map_or(Ok(()), |line| print(&format!("{line}\n")))
    }

    fn end(&mut self, end: &Migration) -> Result<(), Failure> {
        print(&summary(end))
    }
}

/// How it ended, in a few lines. Why it was aborted is said as the command's error.
pub(super) fn summary(end: &Migration) -> String {
    let took = end.ended_at_ms.checked_sub(end.created_at_ms).filter(|_| end.ended_at_ms != 0);
    let took = took.map(|ms| format!(" in {}", units::span(Duration::from_millis(ms)))).unwrap_or_default();
    let course = format!("{}: {} from {} to {}", end.id, end.guest, end.source_host, end.destination_host);
    let heading = format!("migration {course}: {}{took}\n", report::phase(end));
    let mut figures = end.report.iter().flat_map(report::report_lines).collect::<Vec<_>>();
    if let Some(failure) = end.failure.as_ref().filter(|_| end.phase() == Phase::Done) {
        figures.push(("warning", format!("{} ({})", failure.message, failure.reason)));
    }
    printable(heading.trim_end()) + "\n" + &properties(&figures)
}

#[cfg(test)]
mod tests {
    use throughline_wire::v1::{Failure, Progress};

    use super::*;

    fn event(at_ms: u64, phase: Phase, message: &str) -> MigrationEvent {
        let progress = Some(Progress { total: 100, remaining: 40, ..Progress::default() });
        let migration = Migration { phase: phase.into(), created_at_ms: 1_000, progress, ..Migration::default() };
        MigrationEvent { sequence: 1, at_ms, migration: Some(migration), message: message.to_owned() }
    }

    #[test]
    fn phases_and_messages_always_get_a_line() {
        let (mut plain, now) = (Plain::default(), Instant::now());
        let first = plain.line(&event(1_000, Phase::Preparing, "accepted"), now).unwrap();
        assert_eq!(first, "   0.000 s  preparing  accepted");
        assert!(
            plain.line(&event(1_250, Phase::Precopy, ""), now).unwrap().starts_with("   0.250 s  pre-copy    60 %")
        );
        assert!(plain.line(&event(1_300, Phase::Precopy, "slow\u{7}"), now).unwrap().ends_with("slow\u{fffd}"));
    }

    #[test]
    fn progress_gets_a_line_a_second() {
        let (mut plain, now) = (Plain::default(), Instant::now());
        plain.line(&event(1_000, Phase::Precopy, ""), now).expect("a new phase");
        let lines = (0..30).filter(|tenth| {
            let at = now + Duration::from_millis(tenth * 100);
            plain.line(&event(1_000, Phase::Precopy, ""), at).is_some()
        });
        assert_eq!(lines.count(), 3);
    }

    #[test]
    fn a_summary_says_who_went_where() {
        let end = Migration {
            id: "m1".to_owned(),
            guest: "web-1".to_owned(),
            source_host: "h1".to_owned(),
            destination_host: "h2".to_owned(),
            phase: Phase::Done.into(),
            created_at_ms: 1_000,
            ended_at_ms: 4_200,
            ..Migration::default()
        };
        assert_eq!(summary(&end), "migration m1: web-1 from h1 to h2: done in 3.2 s\n");
        let failure = Some(Failure { reason: "PEER_LATE".to_owned(), message: "h3 was told late".to_owned() });
        assert!(summary(&Migration { failure, ..end }).ends_with("\nwarning  h3 was told late (PEER_LATE)\n"));
    }
}
