//! After a restart: guests that ran on are taken back, moves that were under way are ended or gone on with.

use std::sync::Arc;

use throughline_cutover::{Failure, MigrationPlan};
use throughline_hypervisor::{FdRole, RunState};
use throughline_wire::v1;
use tracing::{info, warn};

use crate::{
    destination,
    disks::Unfinished,
    host::Host,
    journal::{MoveRecord, Promise},
    resident::{Resident, hypervisor_failure},
    source,
    uplink::MigrationNews,
};

/// Takes up where the last agent of this host left off.
///
/// # Errors
/// When the journal cannot be read. A guest or move that cannot be taken back is logged and left as it is.
pub async fn recover(host: &Arc<Host>) -> Result<(), Failure> {
    let moves = host.journal.moves()?;
    for owned in host.journal.guests()? {
        let came =
            |plan: &MigrationPlan| plan.guest.name == owned.spec.name && plan.generation.next() == owned.generation;
        let committed = moves
            .iter()
            .any(|(_, record)| record.promise == Promise::Committed && record.plan.as_ref().is_some_and(came));
        // The last agent may not have got to it after the commit.
        if committed && let Err(failure) = host.keep_disks(&owned.spec).await {
            warn!(guest = %owned.spec.name, %failure, "its disks are not all here");
        }
        match host.adopt(&owned).await {
            Ok(Some(resident)) => {
                // A point that the last agent was sending: nobody may come to go on with it, and the guest's writes go through it.
                if !owned.spec.disks.is_empty()
                    && let Err(error) = resident.vm.abandon_point().await
                {
                    warn!(guest = %owned.spec.name, %error, "a point of its replica stays for now");
                }
                host.settle_in(Arc::new(resident)).await;
            }
            Ok(None) if owned.stopped => {}
            Ok(None) => warn!(guest = %owned.spec.name, "was here, its QEMU is gone"),
            Err(failure) => warn!(guest = %owned.spec.name, %failure, "cannot be taken back"),
        }
    }
    for (id, record) in &moves {
        let (id, Some(plan)) = (id.clone(), record.plan.clone()) else { continue };
        if !is_newest(&moves, &plan, record.at_ms) {
            end_stale(host, &id, &plan, record.promise);
            continue;
        }
        let taken_up = match record.promise {
            Promise::Receiving => decline(host, &id, &plan).await,
            Promise::Committed => stay(host, plan).await,
            Promise::Sending => keep(host, &id, &plan).await,
            Promise::GivenUp => go_on(host, plan).await,
            Promise::Declined => discard_incoming(host, &plan).await,
            Promise::Left => forget(host, &plan).await,
        };
        if let Err(failure) = taken_up {
            warn!(migration = id, %failure, "could not be taken up after the restart");
        }
    }
    discard_leftovers(host).await;
    host.end_tests_left_over().await;
    Ok(host.journal.clear_out()?)
}

/// Whether no later migration of the same guest is on record: only the newest may touch the guest.
fn is_newest(moves: &[(String, MoveRecord)], plan: &MigrationPlan, at_ms: u64) -> bool {
    let of_guest = moves.iter().filter_map(|(_, record)| Some((record.plan.as_ref()?, record.at_ms)));
    let of_guest = of_guest.filter(|(other, _)| other.guest.name == plan.guest.name);
    let newest = of_guest.map(|(other, at)| (other.generation, at)).max();
    newest == Some((plan.generation, at_ms))
}

/// A move that a later one has overtaken was undone, or it could not have been; only the record was left open.
fn end_stale(host: &Host, id: &str, plan: &MigrationPlan, promise: Promise) {
    if matches!(promise, Promise::Sending | Promise::Receiving)
        && let Err(error) = host.journal.promise(id, Some(plan), Promise::Declined)
    {
        warn!(%error, migration = id, "an overtaken migration stays open in the journal");
    }
}

/// A destination that had not committed: it never will.
async fn decline(host: &Arc<Host>, id: &str, plan: &MigrationPlan) -> Result<(), Failure> {
    host.journal.promise(id, Some(plan), Promise::Declined)?;
    discard_incoming(host, plan).await?;
    info!(migration = id, guest = %plan.guest.name, "declined after a restart");
    tell_aborted(host, plan, v1::Role::Destination);
    Ok(())
}

/// A source whose guest has left: what it could not remove of its disks then. One that came into being here since is another guest.
async fn forget(host: &Arc<Host>, plan: &MigrationPlan) -> Result<(), Failure> {
    let newest = host.journal.newest(&plan.guest.name)?;
    let owned = host.journal.find_guest(&plan.guest.name)?.is_some();
    if plan.guest.disks.is_empty() || owned || newest.is_some_and(|newest| newest > plan.generation.next()) {
        return Ok(());
    }
    host.remove_disks(&plan.guest.name).await
}

/// What was to receive a guest that this host declined, if the last agent did not get to undoing it. A guest on record here,
/// taken back or not, is none of that.
async fn discard_incoming(host: &Arc<Host>, plan: &MigrationPlan) -> Result<(), Failure> {
    let owned = host.journal.find_guest(&plan.guest.name)?.is_some();
    if owned || plan.destination.host != *host.name() {
        return Ok(());
    }
    // One that ended while nobody looked may not have ended in order.
    let mut ended_badly = !plan.cold;
    if let Some(vm) = host.find_qemu(&plan.guest.name).await? {
        ended_badly = !vm.quit().await.map_err(hypervisor_failure)?.orderly;
    }
    host.leave_disks(&plan.guest, Unfinished::PutAside { ended_badly }).await?;
    for port in &plan.ports {
        if let Err(error) = host.datapath.close_landing(port.carry_id.get()) {
            warn!(%error, carry_id = %port.carry_id, "a landing stays open");
        }
    }
    Ok(())
}

/// A destination that had committed: if the move was under way, the machine goes on from there.
async fn stay(host: &Arc<Host>, plan: MigrationPlan) -> Result<(), Failure> {
    let Some(resident) = host.resident(&plan.guest.name).await else { return mourn(host, &plan) };
    if resident.generation() != plan.generation.next() {
        return Ok(());
    }
    if !is_moving(host, &resident)? {
        return Ok(());
    }
    let resumed = destination::resume(host, plan, resident.clone()).await;
    // Whatever becomes of its frames: the guest is this host's, and is not to stand.
    if resumed.is_err() && resident.vm.run_state().await.map_err(hypervisor_failure)? != RunState::Running {
        resident.vm.cont().await.map_err(hypervisor_failure)?;
    }
    resumed
}

/// A destination that had committed, whose QEMU is gone, or never was, the move having been a cold one: the guest is this host's, and the
/// controller may not have heard of it.
fn mourn(host: &Arc<Host>, plan: &MigrationPlan) -> Result<(), Failure> {
    let generation = plan.generation.next();
    if host.journal.find_guest(&plan.guest.name)?.is_some_and(|guest| guest.generation == generation) {
        let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), v1::Role::Destination);
        news.committed(generation, v1::CutoverReport::default());
    }
    Ok(())
}

/// A source that had given nothing up: the guest is its own.
async fn keep(host: &Arc<Host>, id: &str, plan: &MigrationPlan) -> Result<(), Failure> {
    if plan.cold {
        host.journal.promise(id, Some(plan), Promise::Declined)?;
        info!(migration = id, guest = %plan.guest.name, "kept after a restart, stopped");
        tell_aborted(host, plan, v1::Role::Source);
        return Ok(());
    }
    let resident = host.resident(&plan.guest.name).await;
    if let Some(resident) = resident.filter(|resident| resident.generation() == plan.generation) {
        if !plan.guest.disks.is_empty() {
            // What is left of one the next move ends.
            if let Err(error) = resident.vm.abandon_mirrors().await {
                warn!(%error, "a disk's copy stays for now");
            }
        }
        if let Err(error) = resident.vm.cancel_migration().await {
            info!(%error, "no migration of QEMU's to cancel");
        }
        if resident.vm.run_state().await.map_err(hypervisor_failure)? != RunState::Running {
            resident.vm.cont().await.map_err(hypervisor_failure)?;
        }
        if is_moving(host, &resident)? {
            release_and_close(host, &resident, plan).await?;
        }
    }
    host.journal.promise(id, Some(plan), Promise::Declined)?;
    if host.resident(&plan.guest.name).await.is_none() {
        let news = MigrationNews::new(host.uplink.clone(), id.to_owned(), v1::Role::Source);
        news.aborted(source::lost_here(plan), v1::CutoverReport::default());
        return Ok(());
    }
    info!(migration = id, guest = %plan.guest.name, "kept after a restart");
    tell_aborted(host, plan, v1::Role::Source);
    Ok(())
}

/// A source that had given the guest up: the destination is asked, and the machine goes on from there, if its QEMU is there.
async fn go_on(host: &Arc<Host>, plan: MigrationPlan) -> Result<(), Failure> {
    if plan.cold {
        return source::resume_cold(host, plan);
    }
    match host.resident(&plan.guest.name).await {
        Some(resident) => source::resume(host, plan, resident).await,
        None => {
            source::bury(host, plan);
            Ok(())
        }
    }
}

fn is_moving(host: &Host, resident: &Resident) -> Result<bool, Failure> {
    let leftover = host.datapath.leftover_ports().map_err(crate::resident::datapath_failure)?;
    Ok(resident.ports.iter().any(|port| leftover.contains(&port.tap.index)))
}

async fn release_and_close(host: &Host, resident: &Resident, plan: &MigrationPlan) -> Result<(), Failure> {
    for (port, port_plan) in resident.ports.iter().zip(&plan.ports) {
        let mut moving = host.adopt_port(port.clone(), port_plan).await?;
        moving.lanes = host.adopt_lanes(&resident.vm, port.port.id).await?;
        let lanes = moving.lanes.len() as u32;
        moving.release_to_tap()?;
        crate::moving::until_or_late(|| moving.line_is_empty()).await;
        moving.close().await?;
        for lane in (1..=lanes).rev() {
            resident.vm.drop_fd(FdRole::Lane(port.port.id, lane)).await.map_err(hypervisor_failure)?;
        }
        if let Err(error) = host.datapath.close_landing(port_plan.carry_id.get()) {
            warn!(%error, carry_id = %port_plan.carry_id, "a landing stays open");
        }
    }
    Ok(())
}

fn tell_aborted(host: &Host, plan: &MigrationPlan, role: v1::Role) {
    let message = "the agent was restarted before commit; the guest stays with the source; migrate again";
    let news = MigrationNews::new(host.uplink.clone(), plan.id.clone(), role);
    news.aborted(Failure::new("AGENT_RESTARTED", message), v1::CutoverReport::default());
}

/// Programs on devices that are gone, or that nobody goes on with.
async fn discard_leftovers(host: &Host) {
    let mut moving = Vec::new();
    for resident in host.residents().await {
        if host.moves.concerns(&resident.spec.name) {
            moving.extend(resident.ports.iter().map(|port| port.tap.index));
        }
    }
    let leftover = host.datapath.leftover_ports().unwrap_or_default();
    for tap in leftover.into_iter().filter(|tap| !moving.contains(tap)) {
        if let Err(error) = host.datapath.discard_port(tap) {
            warn!(%error, tap, "a port's programs were left over and could not be removed");
        }
    }
}
