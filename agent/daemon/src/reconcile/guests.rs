//! Guests as they should be here: running, or stopped.

use std::{sync::Arc, time::Duration};

use throughline_cutover::{
    Failure, Generation, GuestName, GuestSpec, OwnedGuest, Power, Promotion, Stop,
    fence::{self, Have},
};
use tracing::{info, warn};

use super::Failed;
use crate::{
    host::Host,
    resident::{Resident, hypervisor_failure},
};

/// Why a guest whose disk somebody else has open does not start.
const DISK_IN_USE: &str = "DISK_IN_USE";
/// Why one does not whose disk is over an image that this host has not read.
const IMAGE_BEING_READ: &str = "IMAGE_BEING_READ";
/// How soon it is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How a guest should be here.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) generation: Generation,
    pub(super) boot: bool,
    pub(super) power: Power,
    /// By what it gets its disks, if it fails over to this host and is not here yet.
    pub(super) promotion: Option<Promotion>,
}

/// Makes one guest be here as ordered, or notes why it is not. True if it was started.
pub(super) async fn have_guest(
    host: &Arc<Host>,
    spec: &GuestSpec,
    order: &Order,
    failed: &mut Failed,
) -> Result<bool, Failure> {
    match order.power {
        Power::On => have_running(host, spec, order, failed).await,
        Power::Off(stop) => {
            failed.0.remove(&spec.name);
            let stopped = have_stopped(host, spec, order, stop).await;
            if let (Err(failure), Some(_)) = (&stopped, &order.promotion) {
                failed.0.insert(spec.name.clone(), (order.generation, failure.clone()));
            }
            stopped.map(|()| false)
        }
    }
}

/// What there is of a guest here.
struct Found {
    resident: Option<Arc<Resident>>,
    /// As the journal has it.
    owned: Option<OwnedGuest>,
    verdict: Have,
}

impl Found {
    async fn look(host: &Host, spec: &GuestSpec, order: &Order) -> Result<Self, Failure> {
        let name = &spec.name;
        let (resident, owned) = (host.resident(name).await, host.journal.find_guest(name)?);
        let held = match (&resident, &owned) {
            (Some(resident), _) => Some(resident.generation()),
            (None, Some(owned)) => Some(owned.generation),
            (None, None) => None,
        };
        let gone = host.journal.gone(name)?;
        let verdict = fence::have(name, held, gone, order.generation, order.boot);
        Ok(Self { resident, owned, verdict })
    }

    fn is_noted_as_stopped(&self) -> bool {
        self.owned.as_ref().is_some_and(|owned| owned.stopped)
    }
}

async fn have_running(host: &Arc<Host>, spec: &GuestSpec, order: &Order, failed: &mut Failed) -> Result<bool, Failure> {
    let name = &spec.name;
    let found = Found::look(host, spec, order).await?;
    if found.resident.is_none() && failed.0.get(name).is_some_and(|(at, _)| *at == order.generation) {
        return Ok(false);
    }
    // An order from the past withdraws nothing.
    if let Have::Refuse(failure) = found.verdict {
        return refuse(name, order, found.resident.is_some(), failure, failed);
    }
    if !host.stops.withdraw(name) {
        return Ok(false);
    }
    if let (true, Some(promotion)) = (found.owned.is_some(), &order.promotion)
        && let Err(failure) = host.keepers.check(promotion)
    {
        return refuse(name, order, found.resident.is_some(), failure, failed);
    }
    // Nobody stops it any more; somebody just may have.
    let found = Found::look(host, spec, order).await?;
    let noted_as_stopped = found.is_noted_as_stopped();
    match (found.resident, found.verdict) {
        (resident, Have::Refuse(failure)) => return refuse(name, order, resident.is_some(), failure, failed),
        (Some(resident), verdict) => {
            if verdict == Have::Raise {
                raise(host, &resident, order.generation)?;
            }
            // Somebody may have begun to see it off meanwhile: it shut down. Else the agent that was to stop it got no further than to
            // note it.
            if noted_as_stopped {
                if !host.stops.withdraw(name) {
                    return Ok(false);
                }
                host.journal.note_power(name, true)?;
            }
        }
        (None, _) => {
            let booted = match (found.owned, &order.promotion) {
                (Some(owned), _) if !owned.stopped => Err(lost()),
                (None, Some(promotion)) => match promote(host, spec, order, promotion).await {
                    Ok(()) => boot(host, spec, order.generation, true).await,
                    Err(failure) => Err(failure),
                },
                (before, _) => boot(host, spec, order.generation, before.is_some()).await,
            };
            match booted {
                Ok(resident) => host.settle_in(resident).await,
                // Whoever reads or writes a disk is about to let go of it, and an image will have been read.
                Err(failure) if [DISK_IN_USE, IMAGE_BEING_READ].contains(&failure.reason.as_str()) => {
                    look_again_soon(host);
                    return Err(failure);
                }
                Err(failure) => return refuse(name, order, false, failure, failed),
            }
            return Ok(true);
        }
    }
    failed.0.remove(name);
    Ok(false)
}

/// One that is not here counts as failed, and is not tried again at this generation; one that is here runs on.
fn refuse(
    name: &GuestName,
    order: &Order,
    is_here: bool,
    failure: Failure,
    failed: &mut Failed,
) -> Result<bool, Failure> {
    if !is_here {
        failed.0.insert(name.clone(), (order.generation, failure.clone()));
    }
    Err(failure)
}

fn look_again_soon(host: &Arc<Host>) {
    let host = host.clone();
    tokio::spawn(async move {
        tokio::time::sleep(LOOK_AGAIN).await;
        host.look_again.notify_one();
    });
}

/// Of a guest that this host has on record, and nothing else of.
fn lost() -> Failure {
    let message = "it was here before this agent started and could not be taken back; see the agent's log; if its QEMU is gone, \
                   stop the guest, so that this is noted, and start it";
    Failure::new("GUEST_LOST", message)
}

/// Also of a guest that failed, or never ran: from then on it is known that it does not.
async fn have_stopped(host: &Arc<Host>, spec: &GuestSpec, order: &Order, stop: Stop) -> Result<(), Failure> {
    let name = &spec.name;
    let found = Found::look(host, spec, order).await?;
    let noted = found.is_noted_as_stopped() && found.verdict == Have::Kept;
    match (found.resident, found.verdict) {
        (_, Have::Refuse(failure)) => return Err(failure),
        (Some(resident), verdict) => {
            if verdict == Have::Raise {
                raise(host, &resident, order.generation)?;
            }
            host.stop(resident, stop);
            return Ok(());
        }
        (None, _) => {}
    }
    // One that could not be taken back may run all the same.
    if let Some(vm) = host.find_qemu(name).await? {
        warn!(guest = %name, "a QEMU of a guest that is to be stopped was in nobody's hands; it is ended");
        vm.quit().await.map_err(hypervisor_failure)?;
    }
    match (&found.owned, &order.promotion) {
        (None, Some(promotion)) => {
            let promoted = promote(host, spec, order, promotion).await;
            if promoted.as_ref().is_err_and(|failure| failure.reason == DISK_IN_USE) {
                look_again_soon(host);
            }
            return promoted;
        }
        (Some(_), Some(promotion)) => host.keepers.check(promotion)?,
        (_, None) => {}
    }
    if !noted {
        let vnis = host.bindings.segments(spec)?.iter().map(|segment| segment.vni).collect();
        let owned = OwnedGuest { spec: spec.clone(), generation: order.generation, vnis, stopped: true, asked: false };
        host.journal.own(&owned)?;
        info!(guest = %name, generation = %order.generation, "is noted as stopped");
    }
    Ok(())
}

/// The record affirms at a higher generation that the guest is this host's.
fn raise(host: &Host, resident: &Resident, generation: Generation) -> Result<(), Failure> {
    host.journal.raise(&resident.owned_at(generation))?;
    info!(guest = %resident.spec.name, held = %resident.generation(), %generation, "held at a higher generation from now on");
    resident.raise(generation);
    Ok(())
}

/// A guest that fails over is this host's from here on, stopped, with the disks of its replica.
async fn promote(host: &Arc<Host>, spec: &GuestSpec, order: &Order, promotion: &Promotion) -> Result<(), Failure> {
    let vnis = host.bindings.segments(spec)?.iter().map(|segment| segment.vni).collect();
    host.promote(spec, order.generation, promotion, vnis).await
}

/// A guest that is not here begins to run: for the first time, or again after it was `stopped`.
async fn boot(host: &Host, spec: &GuestSpec, generation: Generation, stopped: bool) -> Result<Arc<Resident>, Failure> {
    let segments = host.bindings.segments(spec)?;
    let vnis = segments.iter().map(|segment| segment.vni).collect();
    // Until it runs it is what it was: stopped, or nobody's.
    host.journal.own(&OwnedGuest { spec: spec.clone(), generation, vnis, stopped, asked: false })?;
    let booted = host.boot(spec, generation, &segments).await;
    let noted = match &booted {
        Ok(_) => host.journal.note_power(&spec.name, true),
        Err(_) if stopped => Ok(()),
        Err(_) => host.journal.disown(&spec.name),
    };
    if let Err(error) = noted {
        warn!(%error, guest = %spec.name, "the journal does not say of this guest whether it runs");
    }
    booted
}
