//! Guests as they should be here: running, or stopped.

use std::sync::Arc;

use throughline_cutover::{
    Failure, Generation, GuestSpec, NetworkName, OwnedGuest, Power, Stop,
    fence::{self, Have},
};
use tracing::{info, warn};

use super::Failed;
use crate::{
    host::Host,
    resident::{Resident, Segment},
};

/// How a guest should be here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) generation: Generation,
    pub(super) boot: bool,
    pub(super) power: Power,
}

/// Makes one guest be here as ordered, or notes why it is not. True if it was started.
pub(super) async fn have_guest(
    host: &Arc<Host>,
    spec: &GuestSpec,
    order: Order,
    failed: &mut Failed,
) -> Result<bool, Failure> {
    match order.power {
        Power::On => {
            host.stops.withdraw(&spec.name);
            have_running(host, spec, order, failed).await
        }
        Power::Off(stop) => {
            failed.0.remove(&spec.name);
            have_stopped(host, spec, order, stop).await.map(|()| false)
        }
    }
}

async fn have_running(
    host: &Arc<Host>,
    spec: &GuestSpec,
    order: Order,
    failed: &mut Failed,
) -> Result<bool, Failure> {
    let name = &spec.name;
    let resident = host.resident(name).await;
    let stopped = host.journal.find_guest(name)?.filter(|owned| owned.stopped).map(|owned| owned.generation);
    let held = resident.as_ref().map(|resident| resident.generation()).or(stopped);
    let gone = host.journal.gone(name)?;
    match (resident, fence::have(name, held, gone, order.generation, order.boot)) {
        (Some(_), Have::Refuse(failure)) => return Err(failure),
        (Some(resident), verdict) => {
            if verdict == Have::Raise {
                raise(host, &resident, order.generation)?;
            }
            // The agent that was to stop it may have got no further than to note it.
            if stopped.is_some() && !host.stops.concern(name) {
                host.journal.note_power(name, true)?;
            }
        }
        (None, _) if failed.0.get(name).is_some_and(|(at, _)| *at == order.generation) => return Ok(false),
        (None, verdict) => {
            let booted = match verdict {
                Have::Refuse(failure) => Err(failure),
                // Held, and not there: it was stopped.
                Have::Boot | Have::Kept | Have::Raise => boot(host, spec, order.generation).await,
            };
            host.settle_in(booted.inspect_err(|failure| {
                failed.0.insert(name.clone(), (order.generation, failure.clone()));
            })?)
            .await;
            return Ok(true);
        }
    }
    failed.0.remove(name);
    Ok(false)
}

/// Also of a guest that failed, or never ran: from then on it is known that it does not.
async fn have_stopped(host: &Arc<Host>, spec: &GuestSpec, order: Order, stop: Stop) -> Result<(), Failure> {
    let name = &spec.name;
    if let Some(resident) = host.resident(name).await {
        match fence::have(name, Some(resident.generation()), None, order.generation, false) {
            Have::Refuse(failure) => return Err(failure),
            Have::Raise => raise(host, &resident, order.generation)?,
            Have::Kept | Have::Boot => {}
        }
        host.stop(resident, stop);
        return Ok(());
    }
    let (owned, gone) = (host.journal.find_guest(name)?, host.journal.gone(name)?);
    let held = owned.as_ref().map(|owned| owned.generation);
    match fence::have(name, held, gone, order.generation, order.boot) {
        Have::Refuse(failure) => Err(failure),
        Have::Kept if owned.is_some_and(|owned| owned.stopped) => Ok(()),
        Have::Kept | Have::Raise | Have::Boot => {
            let vnis = segments(host, spec)?.iter().map(|segment| segment.vni).collect();
            let owned = OwnedGuest { spec: spec.clone(), generation: order.generation, vnis, stopped: true };
            host.journal.own(&owned)?;
            info!(guest = %name, generation = %order.generation, "is noted as stopped");
            Ok(())
        }
    }
}

/// The record affirms at a higher generation that the guest is this host's.
fn raise(host: &Host, resident: &Resident, generation: Generation) -> Result<(), Failure> {
    host.journal.own(&resident.owned_at(generation))?;
    info!(guest = %resident.spec.name, held = %resident.generation(), %generation, "held at a higher generation from now on");
    resident.raise(generation);
    Ok(())
}

/// The networks that a guest's ports are on.
fn segments(host: &Host, spec: &GuestSpec) -> Result<Vec<Segment>, Failure> {
    let unknown =
        |network: &NetworkName| Failure::new("UNKNOWN_NETWORK", format!("network {network} is not on this host"));
    let ports = spec.ports.iter();
    ports.map(|port| host.bindings.segment(&port.network).ok_or_else(|| unknown(&port.network))).collect()
}

/// A guest that is not here begins to run: for the first time, or again after it was stopped.
async fn boot(host: &Host, spec: &GuestSpec, generation: Generation) -> Result<Arc<Resident>, Failure> {
    let segments = segments(host, spec)?;
    let vnis = segments.iter().map(|segment| segment.vni).collect();
    let before = host.journal.find_guest(&spec.name)?;
    if before.as_ref().is_some_and(|owned| !owned.stopped) {
        let message = "it was here before this agent started and could not be taken back; see the agent's log; if its QEMU \
                       is gone, stop the guest, so that this is noted, and start it";
        return Err(Failure::new("GUEST_LOST", message));
    }
    // Until it runs it is what it was: stopped, or nobody's.
    let stopped = before.is_some();
    host.journal.own(&OwnedGuest { spec: spec.clone(), generation, vnis, stopped })?;
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
