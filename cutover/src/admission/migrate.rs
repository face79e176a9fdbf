//! May the guest move, and where to?

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::{
    Denial, GuestFacts, View,
    create::{can_run, has_no_old_disks, known_host},
};
use crate::{GuestName, HostName, Phase, Power, ReplicaName, StopFirst};

/// A wish to move a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRequest {
    /// Chosen by the caller; the same twice is the same wish.
    pub request_id: String,
    /// Guest to move.
    pub guest: GuestName,
    /// Where to; `None`: the fabric chooses.
    pub destination: Option<HostName>,
    /// It is stopped before, if it runs; `None`: it moves as it is.
    #[serde(default)]
    pub stop_first: Option<StopFirst>,
    /// See [`crate::MigrationPlan::flatten`].
    #[serde(default)]
    pub flatten: bool,
}

/// How a guest moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it runs.
    Running,
    /// It is stopped, and arrives stopped.
    Stopped,
    /// It runs, is stopped, moves, and is started again.
    StoppedFirst(StopFirst),
}

/// What becomes of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was made before and is this migration.
    Known {
        /// Its id.
        migration: String,
    },
    /// It may begin.
    Admitted {
        /// Host that owns the guest.
        source: HostName,
        /// Host it goes to.
        destination: HostName,
        /// And how.
        manner: Manner,
    },
}

/// Whether a guest may move, and where to. `earlier` is the request that had the same id, with its migration's id.
///
/// # Errors
/// `REQUEST_ID_REUSED`, `UNKNOWN_GUEST`, `ALREADY_MIGRATING`, `UNKNOWN_HOST`, `SAME_HOST`, `HOST_DOWN` (either end),
/// `HOST_PEER_ONLY`, `NOT_ENOUGH_MEMORY`, `DISKS_BEING_DELETED`, `REPLICA_AT_DESTINATION`, `GUEST_NOT_RUNNING`,
/// `FLATTENS_STOPPED`, `NO_DESTINATION`.
pub fn migrate(
    view: &impl View,
    request: &MigrationRequest,
    earlier: Option<(&str, &MigrationRequest)>,
) -> Result<Verdict, Denial> {
    if let Some((migration, earlier)) = earlier {
        return match earlier == request {
            true => Ok(Verdict::Known { migration: migration.to_owned() }),
            false => Err(Denial::RequestIdReused { migration: migration.to_owned() }),
        };
    }
    let name = &request.guest;
    let Some(guest) = view.guest(name) else {
        return Err(Denial::UnknownGuest { field: "guest".to_owned(), name: name.clone() });
    };
    if let Some(migration) = guest.migration {
        return Err(Denial::AlreadyMigrating { guest: name.clone(), migration });
    }
    let destination = match &request.destination {
        Some(host) => named(view, name, &guest, host)?,
        None => choose(view, name, &guest)?,
    };
    if !known_host(view, "guest", &guest.host)?.connected {
        return Err(Denial::HostDown { field: "guest".to_owned(), host: guest.host });
    }
    let (manner, ready) = match (guest.power, request.stop_first) {
        (Power::Off(_), _) => (Manner::Stopped, guest.stopped),
        (Power::On, None) => (Manner::Running, guest.running),
        (Power::On, Some(stop)) => (Manner::StoppedFirst(stop), guest.running),
    };
    if !ready {
        return Err(Denial::GuestNotRunning { guest: name.clone() });
    }
    if request.flatten && manner != Manner::Running {
        return Err(Denial::FlattensStopped { guest: name.clone() });
    }
    Ok(Verdict::Admitted { source: guest.host, destination, manner })
}

/// Whether a migration may still be undone.
///
/// # Errors
/// `TOO_LATE` once it has committed or ended.
pub fn cancel(migration: &str, phase: Phase) -> Result<(), Denial> {
    if phase < Phase::Committed { Ok(()) } else { Err(Denial::TooLate { migration: migration.to_owned() }) }
}

/// Whether an operator's word may end a migration. `undoing`: it is being undone and neither end has said so far what became
/// of it. `destination_connected`: the destination's agent can be asked.
///
/// # Errors
/// `NOT_UNRESOLVED`, `DESTINATION_CONNECTED`.
pub fn resolve(
    migration: &str,
    undoing: bool,
    destination: &HostName,
    destination_connected: bool,
) -> Result<(), Denial> {
    if !undoing {
        return Err(Denial::NotUnresolved { migration: migration.to_owned() });
    }
    if destination_connected {
        return Err(Denial::DestinationConnected { migration: migration.to_owned(), host: destination.clone() });
    }
    Ok(())
}

fn named(view: &impl View, name: &GuestName, guest: &GuestFacts, host: &HostName) -> Result<HostName, Denial> {
    const FIELD: &str = "destination_host";
    let facts = known_host(view, FIELD, host)?;
    if *host == guest.host {
        return Err(Denial::SameHost { field: FIELD.to_owned(), guest: name.clone(), host: host.clone() });
    }
    can_run(&facts, FIELD, FIELD, guest.memory_kib)?;
    has_no_old_disks(view, "guest", host, name)?;
    let replica = ReplicaName { guest: name.clone(), host: facts.name };
    if view.replica(&replica).is_some() {
        return Err(Denial::ReplicaAtDestination { replica });
    }
    Ok(replica.host)
}

/// Most free memory wins; of equals the first by name, so that the choice can be foretold.
fn choose(view: &impl View, name: &GuestName, guest: &GuestFacts) -> Result<HostName, Denial> {
    let able = view.hosts().filter(|host| host.name != guest.host);
    let able =
        able.filter(|host| can_run(host, "", "", guest.memory_kib).is_ok() && !view.deletes_disks(&host.name, name));
    let keeps = |host: &HostName| view.replicas().any(|it| it.guest == *name && it.host == *host);
    let able = able.filter(|host| !keeps(&host.name));
    let best = able.min_by_key(|host| (Reverse(host.memory_free_kib()), host.name.clone()));
    best.map(|host| host.name).ok_or_else(|| Denial::NoDestination { guest: name.clone(), asked_kib: guest.memory_kib })
}
