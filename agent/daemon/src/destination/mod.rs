//! A migration as its destination lives it.

mod disks;
mod hands;

use std::sync::{Arc, atomic::AtomicBool};

use throughline_cutover::{ColdDestination, Destination, DestinationEvent, Failure, GatePeer, MigrationPlan};
use throughline_wire::v1;
use tokio::sync::mpsc;
use tracing::{Instrument as _, info_span, warn};

use crate::{
    cold::{Incoming, destination::ColdDestinationHands},
    driver::drive,
    host::Host,
    journal::Promise,
    moves::{Move, already_migrating},
    moving::MovingPort,
    resident::Resident,
    slot::Slot,
    uplink::MigrationNews,
};
pub(crate) use hands::CANCELLED;
use hands::DestinationHands;

/// Makes ready to be the destination of an announced migration.
pub fn expect(host: &Arc<Host>, plan: MigrationPlan) {
    let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), v1::Role::Destination);
    if let Err(failure) = try_expect(host, plan, news.clone()) {
        refuse(&news, failure);
    }
}

fn refuse(news: &MigrationNews, failure: Failure) {
    warn!(%failure, "migration refused");
    news.aborted(failure, v1::CutoverReport::default());
}

fn try_expect(host: &Arc<Host>, plan: MigrationPlan, news: MigrationNews) -> Result<(), Failure> {
    if host.config.peer_only {
        return Err(Failure::new("HOST_PEER_ONLY", format!("{} runs no guests", host.name())));
    }
    run(host, plan, Part::New, news)
}

/// Takes up again a migration in which this host owned the guest when its agent ended: the gate still waits for what comes
/// the old way.
///
/// # Errors
/// When that guest is being moved already, or its ports' programs cannot be taken back.
pub async fn resume(host: &Arc<Host>, plan: MigrationPlan, resident: Arc<Resident>) -> Result<(), Failure> {
    let mut ports = Vec::with_capacity(resident.ports.len());
    for (port, port_plan) in resident.ports.iter().zip(&plan.ports) {
        let mut moving = host.adopt_port(port.clone(), port_plan).await?;
        moving.lanes = host.adopt_lanes(&resident.vm, port.port.id).await?;
        host.watch_gate(&moving);
        ports.push(moving);
    }
    let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), v1::Role::Destination);
    run(host, plan, Part::Resumed(resident, ports), news)
}

/// This host's part in a migration.
enum Part {
    /// Not promised yet.
    New,
    /// Committed before this agent began, with the ports as they were.
    Resumed(Arc<Resident>, Vec<MovingPort>),
}

fn run(host: &Arc<Host>, plan: MigrationPlan, part: Part, news: MigrationNews) -> Result<(), Failure> {
    let plan = Arc::new(plan);
    let (events, mut queue) = mpsc::unbounded_channel();
    let (caller, incoming) = (Slot::empty(), Arc::<Incoming>::default());
    let one = Move::Destination {
        plan: plan.clone(),
        events: events.clone(),
        caller: caller.clone(),
        // To a destination that had committed before its agent ended, no source has anything to say.
        called: Arc::new(AtomicBool::new(matches!(part, Part::Resumed(..)))),
        incoming: incoming.clone(),
        news: news.clone(),
    };
    if !host.moves.enter(one) {
        return Err(already_migrating(&plan.guest.name));
    }
    // The queue is new and its receiver is here.
    let _ = events.send(DestinationEvent::Announced);
    let span = info_span!("destination", migration = plan.id, guest = %plan.guest.name);
    let host = host.clone();
    tokio::spawn(
        async move {
            let (generation, limits, awaited) = (plan.generation, plan.limits, GatePeer::all(&plan));
            if matches!(part, Part::New)
                && let Err(failure) = host.take_part(&plan, Promise::Receiving).await
            {
                host.moves.withdraw(&plan.id);
                refuse(&news, failure);
                return;
            }
            if plan.cold {
                let (host, id) = (host.clone(), plan.id.clone());
                let mut hands = ColdDestinationHands::new(host.clone(), plan, events, caller, incoming, news.clone());
                drive(ColdDestination::new(generation, limits), &mut hands, &mut queue, host.clock).await;
                return leave(&host, &id, &news);
            }
            let mut hands = DestinationHands::new(host.clone(), plan.clone(), events, caller, news.clone());
            let machine = match part {
                Part::New => Destination::new(generation, limits, awaited).with_disks(plan.guest.brings_disks()),
                Part::Resumed(resident, ports) => {
                    let open = ports.iter().all(MovingPort::is_released);
                    hands.take_up(&resident, ports);
                    Destination::committed_before(generation, limits, awaited, open)
                }
            };
            let frozen = host.bindings.moving(plan.ports.iter().map(|port| port.vni).collect());
            drive(machine, &mut hands, &mut queue, host.clock).await;
            drop(hands);
            drop(frozen);
            leave(&host, &plan.id, &news);
        }
        .instrument(span),
    );
    Ok(())
}

fn leave(host: &Host, id: &str, news: &MigrationNews) {
    host.moves.leave(id);
    news.repeat();
    host.look_again.notify_one();
}

/// Writes down that this host did not take the guest. Blocks.
pub(crate) fn decline(host: &Host, plan: &MigrationPlan) -> DestinationEvent {
    if let Err(error) = host.journal.promise(&plan.id, Some(plan), Promise::Declined) {
        warn!(%error, "the refusal is not on disk; a restart of this agent would decide the same");
    }
    DestinationEvent::DeclineRecorded
}
