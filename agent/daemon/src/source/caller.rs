//! The source's stream to the destination.

use std::time::Duration;

use throughline_cutover::{End, Failure, Generation, MigrationPlan, SourceEvent};
use throughline_identity::{Identity, Security};
use throughline_wire::{
    limits::LARGEST_PEER_MESSAGE,
    v1::{
        DiskHere, FromDestination, FromSource, Prepare, Prepared, ResolveRequest, from_destination::Message,
        from_source, peer_client::PeerClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Streaming, transport::Endpoint};
use tracing::warn;

use crate::slot::Slot;

/// How long a destination may take to answer the phone.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// A destination that says nothing, not even to HTTP/2's pings, for this long is lost.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// The open stream. What is sent after it broke is lost; the break itself comes as `PeerLost`.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    to_destination: mpsc::UnboundedSender<FromSource>,
}

impl Call {
    /// Calls the destination; everything it says, and that it cannot be reached, comes as events, but for where memory may
    /// come: that is left in `prepared`. It is told what there is of the guest's disks.
    pub(crate) fn place(
        security: &Security,
        plan: &MigrationPlan,
        events: mpsc::UnboundedSender<SourceEvent>,
        prepared: Slot<Prepared>,
        disks: Vec<DiskHere>,
    ) -> Self {
        let (to_destination, queue) = mpsc::unbounded_channel();
        let call = Self { to_destination };
        call.say(from_source::Message::Prepare(Prepare {
            migration_id: plan.id.clone(),
            token: plan.token.clone(),
            generation: plan.generation.0,
            disks,
        }));
        let way = Way::to_destination(security, plan);
        tokio::spawn(async move {
            let ended = match open(&way, queue).await {
                Ok(stream) => listen(stream, &events, &prepared).await,
                Err(status) => Some(status),
            };
            let event = match ended {
                Some(status) if refused(&status) => {
                    SourceEvent::PeerDeclined(Failure::new("DESTINATION_REFUSED", status.message()))
                }
                Some(status) => {
                    warn!(%status, "the stream to the destination broke");
                    SourceEvent::PeerLost
                }
                None => SourceEvent::PeerLost,
            };
            let _ = events.send(event);
        });
        call
    }

    /// Says something to the destination.
    pub(crate) fn say(&self, message: from_source::Message) {
        let _ = self.to_destination.send(FromSource { message: Some(message) });
    }
}

/// Refusals that mean: the cutover was never begun over there.
fn refused(status: &tonic::Status) -> bool {
    use tonic::Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unimplemented};
    matches!(status.code(), FailedPrecondition | InvalidArgument | PermissionDenied | Unimplemented)
}

/// Where another host's agent is, and who must be there.
pub(crate) struct Way {
    security: Security,
    address: String,
    agent: Identity,
}

impl Way {
    pub(crate) fn to_destination(security: &Security, plan: &MigrationPlan) -> Self {
        Self::to(security, &plan.destination)
    }

    /// To any host's agent.
    pub(crate) fn to(security: &Security, end: &End) -> Self {
        let (address, agent) = (end.peer_endpoint.clone(), Identity::Agent(end.host.clone()));
        Self { security: security.clone(), address, agent }
    }

    pub(crate) async fn connect(&self) -> Result<PeerClient<tonic::transport::Channel>, tonic::Status> {
        let Self { security, address, agent } = self;
        let endpoint = Endpoint::from_shared(format!("{}://{address}", security.scheme()))
            .map_err(|error| tonic::Status::invalid_argument(format!("{address} is not an address: {error}")))?
            .connect_timeout(CALL_DEADLINE)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        match security.dial(endpoint, agent).await {
            Ok(channel) => Ok(PeerClient::new(channel).max_decoding_message_size(LARGEST_PEER_MESSAGE)),
            Err(error) if error.is_refusal() => Err(tonic::Status::permission_denied(error.told())),
            Err(error) => Err(tonic::Status::unavailable(error.told())),
        }
    }
}

async fn open(
    way: &Way,
    queue: mpsc::UnboundedReceiver<FromSource>,
) -> Result<Streaming<FromDestination>, tonic::Status> {
    let mut client = way.connect().await?;
    Ok(client.cutover(UnboundedReceiverStream::new(queue)).await?.into_inner())
}

/// Turns messages into events until the stream ends; returns why, if it was not the destination's own end.
async fn listen(
    mut stream: Streaming<FromDestination>,
    events: &mpsc::UnboundedSender<SourceEvent>,
    prepared: &Slot<Prepared>,
) -> Option<tonic::Status> {
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                if let Some(event) = event_of(message, prepared)
                    && events.send(event).is_err()
                {
                    return None;
                }
            }
            Ok(None) => return None,
            Err(status) => return Some(status),
        }
    }
}

/// What a message means to the source; `None`: news that changes nothing here.
fn event_of(message: FromDestination, prepared: &Slot<Prepared>) -> Option<SourceEvent> {
    match message.message? {
        Message::Prepared(it) => {
            prepared.put(it);
            Some(SourceEvent::PeerPrepared)
        }
        Message::Committed(it) => Some(SourceEvent::PeerCommitted { generation: Generation(it.generation) }),
        Message::Declined(it) => {
            let failure =
                it.failure.map_or_else(|| Failure::new("DECLINED", "the destination gave no reason"), Into::into);
            Some(SourceEvent::PeerDeclined(failure))
        }
        Message::Running(_) | Message::GateOpen(_) => None,
    }
}

/// Asks the destination whether it committed; its answer comes as an event, no answer as none.
pub(crate) fn ask(security: &Security, plan: &MigrationPlan, events: mpsc::UnboundedSender<SourceEvent>) {
    let way = Way::to_destination(security, plan);
    let request = ResolveRequest { migration_id: plan.id.clone(), token: plan.token.clone() };
    tokio::spawn(async move {
        let answer = async { way.connect().await?.resolve(request).await };
        match answer.await.map(tonic::Response::into_inner) {
            Ok(answer) if answer.committed => {
                let _ = events.send(SourceEvent::PeerCommitted { generation: Generation(answer.generation) });
            }
            Ok(_) => {
                let message = "the destination did not commit and never will; the guest runs on at the source";
                let _ = events.send(SourceEvent::PeerDeclined(Failure::new("DESTINATION_DECLINED", message)));
            }
            Err(status) => warn!(%status, "the destination does not say whether it committed; asking again"),
        }
    });
}
