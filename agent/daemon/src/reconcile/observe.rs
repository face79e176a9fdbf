//! What is there, for the controller.

use throughline_cutover::GuestName;
use throughline_hypervisor::RunState;
use throughline_wire::v1::{self, agent_message::Message};
use tracing::warn;

use super::Failed;
use crate::{host::Host, replica, resident::Resident};

/// Looks at every guest and reports.
pub(super) async fn report(host: &Host, revision: u64, problems: Vec<String>, failed: &Failed) {
    let mut guests = Vec::new();
    for resident in host.residents().await {
        guests.push(observed(host, &resident).await);
    }
    guests.extend(stopped(host, &guests, failed).await);
    for (name, (generation, failure)) in &failed.0 {
        guests.push(v1::ObservedGuest {
            name: name.to_string(),
            generation: generation.0,
            state: v1::GuestState::Failed.into(),
            detail: failure.to_string(),
        });
    }
    let replicas = replica::observed(host).await;
    host.uplink.send(Message::Observed(v1::ObservedState { revision, guests, problems, replicas }));
}

/// Guests that were stopped. That nothing runs of them is looked at, not believed.
async fn stopped(host: &Host, present: &[v1::ObservedGuest], failed: &Failed) -> Vec<v1::ObservedGuest> {
    let owned = host.journal.guests().unwrap_or_else(|error| {
        warn!(%error, "stopped guests are not told of");
        Vec::new()
    });
    let is_told =
        |name: &GuestName| failed.0.contains_key(name) || present.iter().any(|guest| guest.name == name.as_str());
    let mut guests = Vec::new();
    for owned in owned.into_iter().filter(|owned| owned.stopped && !is_told(&owned.spec.name)) {
        let (state, detail) = match host.find_qemu(&owned.spec.name).await {
            Ok(None) => (v1::GuestState::Stopped, String::new()),
            Ok(Some(_)) => (v1::GuestState::Failed, "it is noted as stopped, and a QEMU of it runs".to_owned()),
            Err(failure) => (v1::GuestState::Failed, failure.to_string()),
        };
        let (name, generation) = (owned.spec.name.to_string(), owned.generation.0);
        guests.push(v1::ObservedGuest { name, generation, state: state.into(), detail });
    }
    guests
}

async fn observed(host: &Host, resident: &Resident) -> v1::ObservedGuest {
    use v1::GuestState::{Failed, Paused, Running, Stopping};
    let (state, detail) = match resident.vm.run_state().await {
        _ if host.stops.concern(&resident.spec.name) => (Stopping, String::new()),
        Ok(RunState::Running) => (Running, String::new()),
        Ok(RunState::Shutdown) => (Failed, "the guest has shut itself down".to_owned()),
        Ok(RunState::DiskError) => (
            Failed,
            "QEMU stopped the guest because a request to one of its disks failed; see that this host has room"
                .to_owned(),
        ),
        Ok(state @ (RunState::Panicked | RunState::Broken)) => (Failed, format!("QEMU reports {state:?}")),
        Ok(_) => (Paused, String::new()),
        Err(error) => (Failed, error.to_string()),
    };
    let (name, generation) = (resident.spec.name.to_string(), resident.generation().0);
    v1::ObservedGuest { name, generation, state: state.into(), detail }
}
