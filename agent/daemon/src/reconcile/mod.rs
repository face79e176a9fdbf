//! What should be on this host becomes what is: networks, endpoints, guests. Runs again on every change of either.

mod networks;
mod observe;

use std::{collections::HashMap, sync::Arc};

use throughline_cutover::{Failure, Generation, GuestName, GuestSpec, NetworkName};
use throughline_wire::v1;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{host::Host, journal::OwnedGuest, resident::Resident};

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
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = host.look_again.notified() => {}
        }
    }
}

/// One pass. What cannot be done is returned in words; the rest is done all the same.
async fn once(host: &Arc<Host>, desired: &Desired, failed: &mut Failed) -> Vec<String> {
    let mut problems = Vec::new();
    let known = networks::Known::read(&desired.state, &mut problems);
    host.bindings.know_networks(known.networks.iter().map(|network| &network.network));
    known.ensure(host, &mut problems).await;
    let ended = end_guests(host, desired, failed, &mut problems).await;
    let changed = known.ensure_endpoints(host, &mut problems).await;
    let started = start_guests(host, desired, failed, &mut problems).await;
    if changed || started || ended {
        known.ensure(host, &mut problems).await;
    }
    known.remove_others(host, &mut problems).await;
    problems
}

async fn start_guests(host: &Arc<Host>, desired: &Desired, failed: &mut Failed, problems: &mut Vec<String>) -> bool {
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
        let generation = Generation(wanted.generation);
        let here = host.resident(&spec.name).await.is_some() || host.moves.concerns(&spec.name);
        let given_up = failed.0.get(&spec.name).is_some_and(|(at, _)| *at == generation);
        // A guest this host gave away must not be booted here on the word of an old state: it runs elsewhere.
        if here || given_up || desired.moves_ended < host.moves.ended() {
            continue;
        }
        match boot(host, &spec, generation).await {
            Ok(resident) => {
                host.settle_in(resident).await;
                started = true;
            }
            Err(failure) => {
                problems.push(format!("guest {}: {failure}", spec.name));
                failed.0.insert(spec.name.clone(), (generation, failure));
            }
        }
    }
    started
}

async fn boot(host: &Host, spec: &GuestSpec, generation: Generation) -> Result<Arc<Resident>, Failure> {
    let unknown =
        |network: &NetworkName| Failure::new("UNKNOWN_NETWORK", format!("network {network} is not on this host"));
    let segments: Result<Vec<_>, _> = spec
        .ports
        .iter()
        .map(|port| host.bindings.segment(&port.network).ok_or_else(|| unknown(&port.network)))
        .collect();
    let segments = segments?;
    let vnis = segments.iter().map(|segment| segment.vni).collect();
    if host.journal.guests().is_ok_and(|owned| owned.iter().any(|guest| guest.spec.name == spec.name)) {
        let message = "it was here before this agent started and could not be taken back; see the agent's log; if its QEMU \
                       is gone, delete the guest and create it anew";
        return Err(Failure::new("GUEST_LOST", message));
    }
    let owned = OwnedGuest { spec: spec.clone(), generation, vnis };
    host.journal.own(&owned).map_err(|error| Failure::new("JOURNAL", error.to_string()))?;
    let booted = host.boot(spec, generation, &segments).await;
    if booted.is_err()
        && let Err(error) = host.journal.disown(&spec.name)
    {
        warn!(%error, guest = %spec.name, "the journal names a guest that did not start");
    }
    booted
}

/// Ends guests that are no longer wanted here. Only a state that was sent after the last move ended may say so.
async fn end_guests(host: &Host, desired: &Desired, failed: &mut Failed, problems: &mut Vec<String>) -> bool {
    let wanted = |name: &GuestName| {
        desired.state.guests.iter().filter_map(|guest| guest.spec.as_ref()).any(|spec| spec.name == name.as_str())
    };
    failed.0.retain(|name, _| wanted(name));
    let mut ended = false;
    forget_lost(host, desired, &wanted, problems).await;
    for resident in host.residents().await {
        let name = &resident.spec.name;
        if wanted(name) {
            host.is_wanted(name);
            continue;
        }
        if host.moves.concerns(name) || desired.moves_ended < host.moves.ended() {
            continue;
        }
        if host.is_unconfirmed(name) {
            problems
                .push(format!("guest {name} was committed here and the controller does not want it here; it runs on"));
            continue;
        }
        match resident.vm.quit().await {
            Ok(_) => {
                info!(guest = %name, "ended");
                host.move_out(name).await;
                ended = true;
                if let Err(error) = host.journal.disown(name) {
                    problems.push(format!("guest {name}: {error}"));
                }
            }
            Err(error) => problems.push(format!("guest {name} does not end: {error}")),
        }
    }
    ended
}

/// Guests that are on record here but could not be taken back, and that nobody wants any more.
async fn forget_lost(host: &Host, desired: &Desired, wanted: &impl Fn(&GuestName) -> bool, problems: &mut Vec<String>) {
    if desired.moves_ended < host.moves.ended() {
        return;
    }
    for owned in host.journal.guests().unwrap_or_default() {
        let name = &owned.spec.name;
        if wanted(name) {
            host.is_wanted(name);
            continue;
        }
        if host.moves.concerns(name) || host.resident(name).await.is_some() || host.is_unconfirmed(name) {
            continue;
        }
        if let Err(error) = host.journal.disown(name) {
            problems.push(format!("guest {name}: {error}"));
        }
    }
}
