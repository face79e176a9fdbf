//! A migration as its source lives it.

mod caller;
mod disks;
mod hands;
mod progress;

use std::{sync::Arc, time::Duration};

use throughline_cutover::{ColdSource, Failure, MigrationPlan, OwnedGuest, Source, SourceEvent};
use throughline_identity::Security;
use throughline_wire::v1;
use tokio::sync::mpsc;
use tracing::{Instrument as _, info_span, warn};

use crate::{
    cold::source::{ColdSourceHands, check},
    driver::drive,
    host::Host,
    journal::Promise,
    moves::{Move, already_migrating},
    moving::MovingPort,
    resident::Resident,
    uplink::MigrationNews,
};
pub(crate) use caller::{Call, Way, ask};
pub(crate) use hands::REPORT_EVERY;
use hands::SourceHands;

/// How often a destination that does not answer is asked again.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Begins a migration this host is the source of.
pub async fn start(host: Arc<Host>, plan: MigrationPlan) {
    let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), v1::Role::Source);
    if let Err(failure) = try_start(&host, plan, &news).await {
        refuse(&news, failure);
    }
}

fn refuse(news: &MigrationNews, failure: Failure) {
    warn!(%failure, "migration refused");
    news.aborted(failure, v1::CutoverReport::default());
}

async fn try_start(host: &Arc<Host>, plan: MigrationPlan, news: &MigrationNews) -> Result<(), Failure> {
    if plan.cold {
        check(host, &plan).await?;
        let machine = ColdSource::new(plan.generation, plan.limits);
        return run(host, plan, Part::Cold(machine, Promise::Sending), news.clone());
    }
    let resident = host.resident(&plan.guest.name).await.ok_or_else(|| {
        let message = format!("guest {} does not run on {}", plan.guest.name, host.name());
        Failure::new("GUEST_NOT_RUNNING", message)
    })?;
    if resident.generation() != plan.generation {
        let message = format!(
            "{} holds {} at generation {}, the plan is for {}",
            host.name(),
            plan.guest.name,
            resident.generation(),
            plan.generation
        );
        return Err(Failure::new("STALE_GENERATION", message));
    }
    let machine = Source::new(plan.generation, plan.limits).with_disks(plan.guest.brings_disks());
    run(host, plan, Part::New(machine, resident), news.clone())
}

/// Takes up again a migration in which this host had given the guest up when its agent ended.
///
/// # Errors
/// When that guest is being moved already.
pub async fn resume(host: &Arc<Host>, plan: MigrationPlan, resident: Arc<Resident>) -> Result<(), Failure> {
    let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), v1::Role::Source);
    let machine = Source::given_up_before(plan.generation, plan.limits);
    let mut ports = Vec::with_capacity(resident.ports.len());
    for (port, port_plan) in resident.ports.iter().zip(&plan.ports) {
        match host.adopt_port(port.clone(), port_plan).await {
            Ok(moving) => ports.push(moving),
            // The last agent had let its line out and was about to end its part: that is to be done all the same.
            Err(failure) => warn!(%failure, tap = port.tap.name, "a port has no programs any more"),
        }
    }
    run(host, plan, Part::Resumed(machine, resident, ports), news)
}

/// The same, of a guest that moves while it is stopped.
///
/// # Errors
/// When that guest is being moved already.
pub fn resume_cold(host: &Arc<Host>, plan: MigrationPlan) -> Result<(), Failure> {
    let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), v1::Role::Source);
    let machine = ColdSource::given_up_before(plan.generation, plan.limits);
    run(host, plan, Part::Cold(machine, Promise::GivenUp), news)
}

/// Ends a migration in which this host had given the guest up, and whose QEMU was gone when this agent began: there is
/// nothing to go on with here, but the destination's word, which the journal and the controller get.
pub fn bury(host: &Arc<Host>, plan: MigrationPlan) {
    let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), v1::Role::Source);
    let span = info_span!("source", migration = plan.id, guest = %plan.guest.name);
    let host = host.clone();
    tokio::spawn(
        async move {
            let committed = has_committed(&host.security, &plan).await;
            // The answer may have taken days: a guest of that name that came into being here since is another.
            let ours = |owned: &OwnedGuest| owned.spec.name != plan.guest.name || owned.generation == plan.generation;
            let committed = committed && host.journal.guests().is_ok_and(|guests| guests.iter().all(ours));
            if committed {
                host.clear_out_disks(&plan.guest).await;
            }
            let promise = if committed { Promise::Left } else { Promise::Declined };
            if let Err(error) = host.journal.promise(&plan.id, Some(&plan), promise) {
                warn!(%error, "the journal still shows this migration as under way");
            }
            if committed {
                let message = "its agent and the guest's old QEMU ended before it had settled; frames for the guest that \
                               waited there went with them, if there were any";
                news.settled_less(Failure::new("SOURCE_DIED", message));
            } else {
                news.aborted(lost_here(&plan), v1::CutoverReport::default());
            }
            host.look_again.notify_one();
        }
        .instrument(span),
    );
}

/// What is said of a guest that no destination took and whose QEMU is gone.
pub fn lost_here(plan: &MigrationPlan) -> Failure {
    let message =
        format!("the QEMU of guest {} ended while its agent was away, and no other host has it", plan.guest.name);
    Failure::new("GUEST_LOST", message)
}

/// Asks the destination until it answers.
async fn has_committed(security: &Security, plan: &MigrationPlan) -> bool {
    let (events, mut answers) = mpsc::unbounded_channel();
    loop {
        caller::ask(security, plan, events.clone());
        match tokio::time::timeout(ASK_EVERY, answers.recv()).await {
            Ok(Some(SourceEvent::PeerCommitted { generation })) => return generation == plan.generation.next(),
            Ok(Some(SourceEvent::PeerDeclined(_))) => return false,
            Ok(_) | Err(_) => {}
        }
    }
}

/// This host's part in a migration.
enum Part {
    /// Not promised yet.
    New(Source, Arc<Resident>),
    /// Promised before this agent began, with the ports as they were.
    Resumed(Source, Arc<Resident>, Vec<MovingPort>),
    /// Of a stopped guest, and what this host is to be bound to or is already.
    Cold(ColdSource, Promise),
}

impl Part {
    /// Whether this host is to be bound to it first.
    fn is_new(&self) -> bool {
        matches!(self, Self::New(..) | Self::Cold(_, Promise::Sending))
    }
}

fn run(host: &Arc<Host>, plan: MigrationPlan, part: Part, news: MigrationNews) -> Result<(), Failure> {
    let plan = Arc::new(plan);
    let (events, mut queue) = mpsc::unbounded_channel();
    if !host.moves.enter(Move::Source { plan: plan.clone(), events: events.clone(), news: news.clone() }) {
        return Err(already_migrating(&plan.guest.name));
    }
    // The queue is new and its receiver is here.
    let _ = events.send(SourceEvent::Begin);
    let span = info_span!("source", migration = plan.id, guest = %plan.guest.name);
    let host = host.clone();
    tokio::spawn(
        async move {
            let id = plan.id.clone();
            if part.is_new()
                && let Err(failure) = host.take_part(&plan, Promise::Sending).await
            {
                host.moves.withdraw(&id);
                refuse(&news, failure);
                return;
            }
            // Until it has ended no point of a replica is sent.
            let _turn = host.senders.take_turn(&plan.guest.name).await;
            let (machine, resident, ports) = match part {
                Part::Cold(machine, _) => {
                    let mut hands = ColdSourceHands::new(host.clone(), plan, events, news.clone());
                    drive(machine, &mut hands, &mut queue, host.clock).await;
                    drop(hands);
                    return leave(&host, &id, &news);
                }
                Part::New(machine, resident) => (machine, resident, Vec::new()),
                Part::Resumed(machine, resident, ports) => (machine, resident, ports),
            };
            let frozen = host.bindings.moving(plan.ports.iter().map(|port| port.vni).collect());
            let mut hands = SourceHands::new(host.clone(), plan, resident, ports, events, news.clone());
            drive(machine, &mut hands, &mut queue, host.clock).await;
            drop(hands);
            drop(frozen);
            leave(&host, &id, &news);
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

/// Writes down that the guest is given up. Blocks.
pub(crate) fn give_up(host: &Host, plan: &MigrationPlan) -> SourceEvent {
    match host.journal.promise(&plan.id, Some(plan), Promise::GivenUp) {
        Ok(()) => SourceEvent::GiveUpRecorded,
        Err(error) => SourceEvent::Abort(error.into()),
    }
}

/// Its QEMU is gone before the destination has committed: there is nothing left to move.
fn guest_ended() -> Failure {
    Failure::new(
        "GUEST_ENDED",
        "the guest's QEMU ended during the migration, and the guest with it; its log on the source's host says why",
    )
}
