//! Answers about moves that are no longer under way here, from what the journal remembers.

use throughline_cutover::{Failure, MigrationPlan};
use throughline_wire::v1::{self, CutoverReport, Role, Step};
use tracing::{info, warn};

use crate::{
    host::Host,
    journal::{MoveRecord, Promise},
    uplink::MigrationNews,
};

/// Says what became of a move that the controller wants undone. That it never began here is made true for good first: the
/// order to begin it may be on its way through this agent.
pub fn answer_abort(host: &Host, id: &str) {
    let known = match host.journal.begin(id, None, Promise::Declined) {
        Ok(known) => known,
        Err(error) => {
            warn!(%error, migration = id, "what became of a migration cannot be said; the controller asks again");
            return;
        }
    };
    let Some((record, plan)) = known.as_ref().and_then(|record| Some((record, record.plan.as_ref()?))) else {
        info!(migration = id, "no part in this migration; nothing to undo");
        // Which end this host was to be is not said; the controller takes the one that fits.
        for role in [Role::Source, Role::Destination] {
            news(host, id, role).aborted(never_began(), CutoverReport::default());
        }
        return;
    };
    let news = news(host, id, role(host, plan));
    match record.promise {
        Promise::Committed => news.committed(plan.generation.next(), CutoverReport::default()),
        Promise::Left => news.step(Step::Settled, CutoverReport::default()),
        Promise::Declined => news.aborted(undone(), CutoverReport::default()),
        // Bound, but not under way: recovery has not come to it yet, and will report.
        Promise::Sending | Promise::Receiving | Promise::GivenUp => {}
    }
}

/// Says how far this host is in a move that it is told to begin and has, or had, a part in already: the controller's record is older than
/// that. False: it has none.
pub fn answer_beginning(host: &Host, id: &str) -> bool {
    if let Some(one) = host.moves.get(id) {
        one.repeat_news();
        return true;
    }
    let is_known = look_up(host, id).is_some();
    if is_known {
        answer_abort(host, id);
    }
    is_known
}

/// Says that a move the controller wants settled is.
pub fn answer_settle(host: &Host, id: &str) {
    let Some(MoveRecord { plan: Some(plan), promise, .. }) = look_up(host, id) else {
        info!(migration = id, "no part in this migration; nothing to settle");
        return;
    };
    if promise == Promise::GivenUp {
        // Not under way, so its QEMU is gone. What the controller wanted before it knew of the commit is old from here on.
        host.moves.leave(id);
        if let Err(error) = host.journal.promise(id, Some(&plan), Promise::Left) {
            warn!(%error, migration = id, "the journal still names a guest that has left");
            return;
        }
    }
    if matches!(promise, Promise::Committed | Promise::Left | Promise::GivenUp) {
        news(host, id, role(host, &plan)).step(Step::Settled, CutoverReport::default());
    }
}

fn look_up(host: &Host, id: &str) -> Option<MoveRecord> {
    host.journal.find_move(id).unwrap_or_else(|error| {
        warn!(%error, migration = id, "what became of a migration cannot be looked up");
        None
    })
}

fn role(host: &Host, plan: &MigrationPlan) -> v1::Role {
    if plan.source.host == *host.name() { Role::Source } else { Role::Destination }
}

fn news(host: &Host, id: &str, role: Role) -> MigrationNews {
    MigrationNews::new(host.uplink.clone(), id.to_owned(), role)
}

fn never_began() -> Failure {
    Failure::new("NEVER_BEGAN", "this host never had a part in the migration")
}

fn undone() -> Failure {
    Failure::new("UNDONE", "this host's part was undone; the guest stays with the source")
}
