//! A migration as its destination lives it.

mod hands;

use std::sync::Arc;

use throughline_cutover::{Destination, DestinationEvent, Failure, MigrationPlan};
use throughline_wire::v1;
use tokio::sync::mpsc;
use tracing::{Instrument as _, info_span, warn};

use crate::{
    driver::drive,
    host::Host,
    journal::{JournalError, Promise},
    moves::Move,
    slot::Slot,
    uplink::MigrationNews,
};
use hands::DestinationHands;

/// Makes ready to be the destination of an announced migration.
pub fn expect(host: &Arc<Host>, plan: MigrationPlan) {
    let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), v1::Role::Destination);
    if let Err(failure) = try_expect(host, plan, news.clone()) {
        warn!(%failure, "migration refused");
        news.aborted(failure, v1::CutoverReport::default());
    }
}

fn try_expect(host: &Arc<Host>, plan: MigrationPlan, news: MigrationNews) -> Result<(), Failure> {
    if host.config.peer_only {
        return Err(Failure::new("HOST_PEER_ONLY", format!("{} runs no guests", host.name())));
    }
    if host.moves.concerns(&plan.guest.name) {
        return Err(Failure::new("ALREADY_MIGRATING", format!("guest {} is being moved already", plan.guest.name)));
    }
    let journal = |error: JournalError| Failure::new("JOURNAL", error.to_string());
    if host.journal.find_move(&plan.id).map_err(journal)?.is_some() {
        return Err(Failure::new(
            "ALREADY_DECIDED",
            "this host has taken part in this migration before; begin a new one",
        ));
    }
    host.journal.promise(&plan.id, Some(&plan), Promise::Receiving).map_err(journal)?;
    let plan = Arc::new(plan);
    let (events, mut queue) = mpsc::unbounded_channel();
    let caller = Slot::empty();
    let one =
        Move::Destination { plan: plan.clone(), events: events.clone(), caller: caller.clone(), news: news.clone() };
    if !host.moves.enter(one) {
        return Err(Failure::new("ALREADY_MIGRATING", format!("guest {} is being moved already", plan.guest.name)));
    }
    // The queue is new and its receiver is here.
    let _ = events.send(DestinationEvent::Announced);
    let span = info_span!("destination", migration = plan.id, guest = %plan.guest.name);
    let host = host.clone();
    tokio::spawn(
        async move {
            let id = plan.id.clone();
            let machine = Destination::new(plan.generation, plan.limits);
            let frozen = host.bindings.moving(plan.ports.iter().map(|port| port.vni).collect());
            let mut hands = DestinationHands::new(host.clone(), plan, events, caller, news);
            drive(machine, &mut hands, &mut queue, host.clock).await;
            drop(hands);
            drop(frozen);
            host.moves.leave(&id);
            host.look_again.notify_one();
        }
        .instrument(span),
    );
    Ok(())
}
