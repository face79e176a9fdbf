//! Watching a migration to its end: `migrate` and `migration watch`.
//!
//! The controller sends the history first, then what happens. When the controller goes away in between, the migration
//! goes on without it; so does this: it attaches again for as long as a call may take, and skips what it has seen.

mod live;
mod report;
mod view;

use std::time::Duration;

use throughline_wire::v1::{Migration, Phase, RunsOn, WatchMigrationRequest};
use tokio::time::{Instant, sleep};

pub(crate) use self::report::{disks, memory, on_stall, pause, phase, report_lines, stop_first};
use self::view::View;
use crate::{
    exit::Exit,
    failure::Failure,
    session::{Session, interruptible},
};

/// Between attempts to attach again.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// Shows the migration until it has ended. `accepted` says that it is known to exist, whether or not the controller can
/// be asked about it just now.
///
/// # Errors
/// It was aborted, there is no such migration, the controller went away for longer than a call may take, or Ctrl-C.
pub(crate) async fn to_the_end(session: &Session, id: &str, accepted: bool) -> Result<(), Failure> {
    let mut watcher = Watcher { session, id, exists: accepted, seen: None, view: view::choose(session.output) };
    let end = interruptible(watcher.follow(), || interrupted(session, id)).await?;
    watcher.view.end(&end)?;
    let see = session.hint(&format!("guest get {}", end.guest));
    if end.phase() == Phase::Aborted {
        return Err(aborted(&end, &see));
    }
    if end.stop_first.is_some() {
        watcher
            .view
            .notice(&format!("{} is booted at {} now; whether it runs: {see}", end.guest, end.destination_host));
    }
    Ok(())
}

struct Watcher<'a> {
    session: &'a Session,
    id: &'a str,
    /// The controller has spoken of it: worth attaching again.
    exists: bool,
    /// Sequence of the last event shown.
    seen: Option<u64>,
    view: Box<dyn View>,
}

/// Why one attachment ended.
enum Detached {
    /// The migration has ended.
    End(Box<Migration>),
    /// The stream broke; whether anything new came over it.
    Lost { failure: Failure, progressed: bool },
}

impl Watcher<'_> {
    /// Attaches, again and again if need be, until the migration has ended.
    async fn follow(&mut self) -> Result<Migration, Failure> {
        let mut lost_since: Option<Instant> = None;
        loop {
            match self.attach().await? {
                Detached::End(migration) => return Ok(*migration),
                Detached::Lost { failure, .. } if !self.exists => return Err(failure),
                Detached::Lost { failure, progressed } => {
                    let now = Instant::now();
                    let since = lost_since.filter(|_| !progressed).unwrap_or(now);
                    if now - since >= self.session.timeout {
                        return Err(failure.next(format!("the migration goes on; {}", ways_on(self.session, self.id))));
                    }
                    if since == now {
                        self.view.notice("lost the controller; the migration goes on, trying to watch it again");
                    }
                    lost_since = Some(since);
                    sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    /// Watches over one connection. What trying again may cure comes back as `Lost`.
    async fn attach(&mut self) -> Result<Detached, Failure> {
        let what = format!("watch migration {}", self.id);
        let before = self.seen;
        match self.read(&what).await {
            Ok(end) => Ok(Detached::End(Box::new(end))),
            Err(failure) if failure.is_unreachable() => Ok(Detached::Lost { failure, progressed: self.seen != before }),
            Err(failure) => Err(failure),
        }
    }

    async fn read(&mut self, what: &str) -> Result<Migration, Failure> {
        let mut fabric = self.session.connect().await?;
        let request = WatchMigrationRequest { id: self.id.to_owned() };
        let mut events = self.session.answer(what, fabric.watch_migration(request)).await?;
        while let Some(event) = events.message().await.map_err(|status| Failure::answered(what, &status))? {
            let ended = event.migration.as_ref().is_some_and(|now| matches!(now.phase(), Phase::Done | Phase::Aborted));
            // The end is news whatever its number: a controller that came back may have forgotten how far it counted.
            if !ended && self.seen.is_some_and(|seen| event.sequence <= seen) {
                continue;
            }
            self.exists = true;
            self.seen = Some(event.sequence);
            self.view.event(&event)?;
            if let Some(migration) = event.migration.filter(|_| ended) {
                return Ok(migration);
            }
        }
        Err(Failure::new(
            Exit::Unreachable,
            "STREAM_ENDED",
            what,
            "the controller ended the stream before the migration",
        ))
    }
}

fn ways_on(session: &Session, id: &str) -> String {
    let [watch, cancel] = ["watch", "cancel"].map(|verb| session.hint(&format!("migration {verb} {id}")));
    format!("watch it: {watch}; undo it: {cancel}")
}

fn interrupted(session: &Session, id: &str) -> Failure {
    Failure::new(Exit::Interrupted, "INTERRUPTED", format!("watch migration {id}"), "the migration goes on")
        .next(ways_on(session, id))
}

fn aborted(end: &Migration, see: &str) -> Failure {
    let what = format!("migrate guest {} to {}", end.guest, end.destination_host);
    let (message, reason) = match &end.failure {
        Some(failure) => (failure.message.as_str(), failure.reason.as_str()),
        None => ("it was aborted; the record does not say why", "ABORTED"),
    };
    Failure::new(Exit::MigrationAborted, reason, what, message).next(what_next(end, reason, see))
}

/// What became of the guest of a migration that was undone, and what may be done.
fn what_next(end: &Migration, reason: &str, see: &str) -> String {
    let source = &end.source_host;
    match &end.stop_first {
        None => format!("the guest stays at {source}; put it right and migrate again"),
        Some(stop) if reason == "GUEST_DID_NOT_STOP" && stop.otherwise() != RunsOn::Cut => format!(
            "the guest runs on at {source}; migrate again with a longer --stop-within, or with --if-it-runs-on cut to have its power \
             cut after that"
        ),
        Some(_) => {
            format!("the guest is to run at {source} again, which shows in: {see}; put it right and migrate again")
        }
    }
}
