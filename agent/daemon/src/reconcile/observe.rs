//! What is there, for the controller.

use throughline_hypervisor::RunState;
use throughline_wire::v1::{self, agent_message::Message};

use super::Failed;
use crate::{host::Host, resident::Resident};

/// Looks at every guest and reports.
pub(super) async fn report(host: &Host, revision: u64, problems: Vec<String>, failed: &Failed) {
    let mut guests = Vec::new();
    for resident in host.residents().await {
        guests.push(observed(&resident).await);
    }
    for (name, (generation, failure)) in &failed.0 {
        guests.push(v1::ObservedGuest {
            name: name.to_string(),
            generation: generation.0,
            state: v1::GuestState::Failed.into(),
            detail: failure.to_string(),
        });
    }
    host.uplink.send(Message::Observed(v1::ObservedState { revision, guests, problems }));
}

async fn observed(resident: &Resident) -> v1::ObservedGuest {
    use v1::GuestState::{Failed, Paused, Running};
    let (state, detail) = match resident.vm.run_state().await {
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
