//! Whom this host obeys: what it does when a controller says by what right it commands.

use std::{sync::Arc, time::Duration};

use throughline_cutover::{
    Failure, Mandate,
    fence::{self, Obedience},
};
use throughline_wire::v1::{self, AgentMessage, ControllerMessage, agent_message::Message};
use tokio::sync::mpsc;
use tonic::Streaming;
use tracing::{error, info};

use crate::host::Host;

/// How long a controller that was refused may take to end the stream; it is ended anyway.
const REFUSED: Duration = Duration::from_secs(1);

/// Writes down whom this host obeys from now on, or finds that it does not.
///
/// # Errors
/// `OTHER_FABRIC`, `STALE_TERM`, `INVALID_FIELD`, or the journal's failure: then nothing may be obeyed.
pub async fn heed(host: &Arc<Host>, offered: Option<v1::Mandate>) -> Result<(), Failure> {
    let nobody = || {
        Failure::new("OTHER_FABRIC", "the controller does not say which fabric it is of; it is too old for this agent")
    };
    let offered = Mandate::try_from(offered.ok_or_else(nobody)?)
        .map_err(|error| Failure::new("INVALID_FIELD", format!("mandate: {error}")))?;
    let host = host.clone();
    // The disk may take its time, and others wait for this thread.
    let written = tokio::task::spawn_blocking(move || {
        let known = host.journal.mandate()?;
        match fence::obey(known.as_ref(), &offered)? {
            Obedience::Known => Ok(()),
            Obedience::ToRecord => {
                host.journal.obey(&offered)?;
                info!(fabric = %offered.fabric, term = %offered.term, "obeys this controller");
                Ok(())
            }
        }
    });
    written.await.unwrap_or_else(|panicked| Err(Failure::new("JOURNAL", panicked.to_string())))
}

/// Tells a controller why it is not obeyed, and waits until it has heard; returns what ended the stream.
pub async fn refuse(
    failure: Failure,
    up: &mpsc::UnboundedSender<AgentMessage>,
    mut down: Streaming<ControllerMessage>,
) -> String {
    error!(%failure, "this controller is not obeyed; guests run on");
    let ended = failure.to_string();
    let _ = up.send(AgentMessage { message: Some(Message::Refused(failure.into())) });
    let heard = async { while let Ok(Some(_)) = down.message().await {} };
    let _ = tokio::time::timeout(REFUSED, heard).await;
    ended
}
