//! Listening to a QEMU.

use throughline_hypervisor::GuestEvent;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tracing::warn;

/// What QEMU says next; `None` after the last. A listener too slow for some of it goes on with the rest.
pub async fn next(events: &mut Receiver<GuestEvent>) -> Option<GuestEvent> {
    loop {
        match events.recv().await {
            Ok(event) => return Some(event),
            Err(RecvError::Lagged(missed)) => warn!(missed, "QEMU said more than this agent could follow"),
            Err(RecvError::Closed) => return None,
        }
    }
}
