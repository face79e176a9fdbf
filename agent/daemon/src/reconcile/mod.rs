//! What should be on this host becomes what is: networks, endpoints, guests. Runs again on every change of either.

mod guests;
mod networks;
mod observe;

use std::{collections::HashMap, sync::Arc};

use throughline_cutover::{DiskFate, Failure, Generation, GuestName, GuestSpec, Promotion, fence};
use throughline_wire::{disk_fate, power_of, v1};
use tokio::sync::watch;
use tracing::{info, warn};

use self::guests::Order;
use crate::{host::Host, replica, resident::hypervisor_failure};

/// What the controller wants of this host, and when this host heard it.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The state.
    pub state: v1::DesiredState,
    /// How many moves had ended here when it came: what it says of guests moved later is old.
    pub moves_ended: u64,
}

/// Guests that could not be started, so that they are not tried for ever.
#[derive(Debug, Default)]
struct Failed(HashMap<GuestName, (Generation, Failure)>);

/// Reads the networks and endpoints of a desired state; what cannot be read, in words.
pub fn read(state: &v1::DesiredState) -> Vec<String> {
    let mut problems = Vec::new();
    networks::Known::read(state, &mut problems);
    problems
}

/// Reconciles until nobody can want anything any more.
pub async fn run(host: Arc<Host>, mut wanted: watch::Receiver<Option<Desired>>) {
    let mut failed = Failed::default();
    loop {
        let desired = wanted.borrow_and_update().clone();
        if let Some(desired) = desired {
            let problems = once(&host, &desired, &mut failed).await;
            for problem in &problems {
                warn!(revision = desired.state.revision, problem, "not as wanted");
            }
            observe::report(&host, desired.state.revision, problems, &failed).await;
        }
        clear_out(&host).await;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = host.look_again.notified() => {}
        }
    }
}

/// Old moves are forgotten, off this thread: the disk may take its time.
async fn clear_out(host: &Arc<Host>) {
    let journal = host.journal.clone();
    let cleared = tokio::task::spawn_blocking(move || journal.clear_out_now_and_then()).await;
    if let Ok(Err(error)) = cleared {
        warn!(%error, "the journal keeps more moves than it has to");
    }
}

/// One pass. What cannot be done is returned in words; the rest is done all the same.
async fn once(host: &Arc<Host>, desired: &Desired, failed: &mut Failed) -> Vec<String> {
    let mut problems = Vec::new();
    let known = networks::Known::read(&desired.state, &mut problems);
    host.bindings.know_networks(known.networks.iter().map(|network| &network.network));
    known.ensure(host, &mut problems).await;
    // Before guests: one that fails over to this host takes what its replica's keeper has to let go of.
    replica::reconcile(host, &desired.state, &mut problems).await;
    let ended = end_guests(host, desired, failed, &mut problems).await;
    let changed = known.ensure_endpoints(host, &mut problems).await;
    let started = have_guests(host, desired, failed, &mut problems).await;
    if changed || started || ended {
        known.ensure(host, &mut problems).await;
    }
    networks::remove_named(host, &desired.state, &mut problems).await;
    problems
}

async fn have_guests(host: &Arc<Host>, desired: &Desired, failed: &mut Failed, problems: &mut Vec<String>) -> bool {
    let mut started = false;
    for wanted in &desired.state.guests {
        let spec = match wanted
            .spec
            .clone()
            .ok_or("spec is missing".to_owned())
            .and_then(|spec| GuestSpec::try_from(spec).map_err(|error| error.to_string()))
        {
            Ok(spec) => spec,
            Err(error) => {
                problems.push(format!("a guest of the desired state: {error}"));
                continue;
            }
        };
        // A guest this host gave away must not be booted here on the word of an old state: it runs elsewhere.
        if host.moves.concerns(&spec.name) || desired.moves_ended < host.moves.ended() {
            continue;
        }
        let power = match power_of(wanted.stop) {
            Ok(power) => power,
            Err(error) => {
                problems.push(format!("guest {} of the desired state: stop.{error}", spec.name));
                continue;
            }
        };
        let promotion = match wanted.promotion.clone().map(Promotion::try_from).transpose() {
            Ok(promotion) => promotion,
            Err(error) => {
                problems.push(format!("guest {} of the desired state: promotion.{error}", spec.name));
                continue;
            }
        };
        let order = Order { generation: Generation(wanted.generation), boot: wanted.boot, power, promotion };
        match guests::have_guest(host, &spec, &order, failed).await {
            Ok(booted) => started |= booted,
            Err(failure) => problems.push(format!("guest {}: {failure}", spec.name)),
        }
    }
    started
}

/// Ends guests that are named to end, at the generation named or below. Only a state that was sent after the last move
/// ended may say so. A guest that is not named runs on: the controller may not know of it.
async fn end_guests(host: &Host, desired: &Desired, failed: &mut Failed, problems: &mut Vec<String>) -> bool {
    let wanted = |name: &GuestName| {
        desired.state.guests.iter().filter_map(|guest| guest.spec.as_ref()).any(|spec| spec.name == name.as_str())
    };
    failed.0.retain(|name, _| wanted(name));
    let mut ended = false;
    for order in &desired.state.end_guests {
        let Ok(name) = order.name.parse::<GuestName>() else {
            problems.push(format!("a guest to end: {:?} is not a name", order.name));
            continue;
        };
        if host.moves.concerns(&name) || desired.moves_ended < host.moves.ended() {
            continue;
        }
        // A word this agent does not know deletes nothing.
        let fate = disk_fate("disks", order.disks).ok().flatten().unwrap_or_default();
        match end_guest(host, &name, Generation(order.generation), fate).await {
            Ok(was_here) => ended |= was_here,
            Err(failure) => problems.push(format!("guest {name} does not end: {failure}")),
        }
    }
    ended
}

/// Ends one guest. False: it was not running here.
async fn end_guest(host: &Host, name: &GuestName, ordered: Generation, fate: DiskFate) -> Result<bool, Failure> {
    let resident = host.resident(name).await;
    if let Some(resident) = &resident {
        fence::end(name, resident.generation(), ordered)?;
        if !host.stops.withdraw(name) {
            return Err(Failure::new("GUEST_STOPPING", "it is just being stopped; it is ended when it has"));
        }
        let _turn = host.senders.take_turn(name).await;
        resident.vm.quit().await.map_err(hypervisor_failure)?;
        info!(guest = %name, %ordered, ?fate, "ended");
        host.move_out(name).await;
    } else {
        // On record here, but it could not be taken back, or its disks could not be removed.
        let owned = host.journal.find_guest(name)?;
        if owned.is_none_or(|owned| owned.generation > ordered) {
            // One that never started here, or left, may have left disks.
            let newest = host.journal.newest(name)?;
            if fate == DiskFate::Delete && host.disks.is_some() && newest.is_none_or(|newest| newest <= ordered) {
                host.delete_disks(name).await?;
            }
            return Ok(false);
        }
    }
    if fate == DiskFate::Delete {
        host.delete_disks(name).await?;
    }
    host.journal.ended(name, ordered)?;
    Ok(resident.is_some())
}
