//! Guests whose cards have several queues: each flow keeps to one of them, on the move and at rest.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Weak},
    time::Duration,
};

use throughline_cutover::Failure;
use throughline_hypervisor::{GuestEvent, GuestEventKind};
use tokio::sync::broadcast::Receiver;
use tracing::warn;

use crate::{
    host::Host,
    moving::off_the_loop,
    resident::{Resident, ResidentPort, duplicate},
    watch::next,
};

/// How long after a guest's driver has spoken, so that one that speaks all the time is heard ten times a second; and how
/// often a move is looked at that is to be over first: QEMU is asked nothing meanwhile.
const SOON: Duration = Duration::from_millis(100);

impl Host {
    /// Has each flow for cards with several queues keep to one of them; again changes nothing. QEMU has to have started.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub async fn keep_flows(&self, ports: &[Arc<ResidentPort>]) -> Result<(), Failure> {
        let several = ports.iter().map(|port| &port.tap).filter(|tap| !tap.further.is_empty());
        let taps: Vec<OwnedFd> = several.map(|tap| duplicate(&tap.fd)).collect::<Result<_, _>>()?;
        if taps.is_empty() {
            return Ok(());
        }
        let datapath = self.datapath.clone();
        off_the_loop(move || taps.iter().try_for_each(|tap| datapath.keep_flows(tap.as_fd()))).await
    }
}

/// Sees to it for as long as the guest lives here: QEMU leaves flows to the kernel whenever the guest's driver sets up a card.
/// Holds neither the guest nor its devices, which go with their last holder.
pub async fn watch(host: Arc<Host>, resident: Weak<Resident>, mut events: Receiver<GuestEvent>) {
    while keep(&host, &resident).await.is_some() {
        loop {
            match next(&mut events).await {
                Some(event) if event.kind == GuestEventKind::CardChanged => break,
                Some(_) => {}
                None => return,
            }
        }
    }
}

/// `None` if the guest is not here any more.
async fn keep(host: &Host, resident: &Weak<Resident>) -> Option<()> {
    loop {
        tokio::time::sleep(SOON).await;
        let resident = resident.upgrade()?;
        if host.moves.concerns(&resident.spec.name) {
            continue;
        }
        // Heard of first: what comes from now on is told again.
        if let Err(error) = resident.vm.hear_of_cards().await {
            warn!(%error, guest = %resident.spec.name, "it will not be known when the guest's driver sets up a card");
        }
        if let Err(failure) = host.keep_flows(&resident.ports).await {
            warn!(%failure, guest = %resident.spec.name, "flows follow the guest's answers from queue to queue");
        }
        return Some(());
    }
}
