//! The `Peer` service: what a source may ask of this host as a destination.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use throughline_cutover::{DestinationEvent, Failure, Generation, MigrationPlan};
use throughline_wire::v1::{
    FromDestination, FromSource, ResolveRequest, ResolveResponse, from_source::Message, peer_server::Peer,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::{
    host::Host,
    journal::Promise,
    memberships,
    moves::{Move, ToSource},
};

/// How long a source must say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a question waits for a decision that is being written.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);

/// Serves sources.
#[derive(Debug, Clone)]
pub struct PeerService {
    host: Arc<Host>,
}

impl PeerService {
    /// For this host.
    pub fn new(host: Arc<Host>) -> Self {
        Self { host }
    }

    /// The announced move that `id` and `token` name.
    fn announced(&self, id: &str, token: &str) -> Result<Move, Status> {
        let found = self.host.moves.get(id).filter(|one| matches!(one, Move::Destination { .. }));
        match found {
            Some(one) if one.plan().token == token => Ok(one),
            _ => Err(Status::permission_denied(
                "no such migration was announced to this host, or the token is not its token; migrations are begun through the controller",
            )),
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type CutoverStream = Pin<Box<dyn Stream<Item = Result<FromDestination, Status>> + Send>>;

    async fn cutover(&self, request: Request<Streaming<FromSource>>) -> Result<Response<Self::CutoverStream>, Status> {
        let mut from_source = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, from_source.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("no prepare message within 5 s"))??;
        let Some(Message::Prepare(prepare)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("prepare must be the first message of a cutover"));
        };
        let one = self.announced(&prepare.migration_id, &prepare.token)?;
        let Move::Destination { plan, events, caller, .. } = one else {
            return Err(Status::internal("a source's move was taken for a destination's"));
        };
        if Generation(prepare.generation) != plan.generation {
            return Err(Status::failed_precondition(format!(
                "generation {} was offered, the plan is for {}; the source's knowledge is stale",
                prepare.generation, plan.generation
            )));
        }
        let (to_source, answers) = mpsc::unbounded_channel();
        caller.put(to_source);
        let gone = || Status::aborted("the migration has ended here");
        events.send(DestinationEvent::SourceCalled).map_err(|_| gone())?;
        info!(migration = plan.id, guest = %plan.guest.name, source = %plan.source.host, "source called");
        tokio::spawn(listen(from_source, events, self.host.clone(), plan));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }

    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveResponse>, Status> {
        let ResolveRequest { migration_id, token } = request.into_inner();
        if migration_id.is_empty() || migration_id.len() > 64 {
            return Err(Status::invalid_argument("migration_id must have 1 to 64 bytes"));
        }
        match self.host.moves.get(&migration_id) {
            Some(_) => {
                if let Move::Destination { events, .. } = self.announced(&migration_id, &token)? {
                    let _ = events.send(DestinationEvent::Asked);
                }
            }
            None => self.recorded(&migration_id, &token)?,
        }
        self.decision(&migration_id).await.map(Response::new)
    }
}

impl PeerService {
    /// Whether the asker knows the token of a move that this host remembers. A plan that never reached this host's journal
    /// was never expected here, and its controller has the last word.
    fn recorded(&self, id: &str, token: &str) -> Result<(), Status> {
        let record = self.host.journal.find_move(id).map_err(|error| Status::unavailable(error.to_string()))?;
        match record.and_then(|record| record.plan) {
            Some(plan) if plan.token == token => Ok(()),
            _ => Err(Status::permission_denied("no such migration is remembered here, or the token is not its token")),
        }
    }

    /// What this host has durably decided; decides against if nothing is under way.
    async fn decision(&self, id: &str) -> Result<ResolveResponse, Status> {
        let asked = tokio::time::Instant::now();
        while asked.elapsed() < RESOLVE_DEADLINE {
            let record = self.host.journal.find_move(id).map_err(|error| Status::unavailable(error.to_string()))?;
            match record {
                Some(record) if record.promise == Promise::Committed => {
                    let generation = record.plan.map_or(0, |plan| plan.generation.next().0);
                    return Ok(ResolveResponse { committed: true, generation });
                }
                Some(record) if record.promise == Promise::Declined => return Ok(ResolveResponse::default()),
                _ if self.host.moves.get(id).is_none() => {
                    let plan = record.and_then(|record| record.plan);
                    let declined = self.host.journal.promise(id, plan.as_ref(), Promise::Declined);
                    declined.map_err(|error| Status::unavailable(error.to_string()))?;
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        Err(Status::unavailable("the decision is still being made; ask again"))
    }
}

/// Turns the source's messages into events until its stream ends.
async fn listen(
    mut from_source: Streaming<FromSource>,
    events: mpsc::UnboundedSender<DestinationEvent>,
    host: Arc<Host>,
    plan: Arc<MigrationPlan>,
) {
    loop {
        let event = match from_source.next().await {
            Some(Ok(FromSource { message: Some(Message::Joined(joined)) })) => {
                memberships::take_over(&host, &plan, &joined).await;
                continue;
            }
            Some(Ok(message)) => event_of(message),
            Some(Err(status)) => {
                warn!(%status, "the source's stream broke");
                None
            }
            None => None,
        };
        let lost = event.is_none();
        let sent = events.send(event.unwrap_or(DestinationEvent::SourceLost));
        if lost || sent.is_err() {
            return;
        }
    }
}

/// What a message means; `None` for one that has no business here, which ends the stream.
pub fn event_of(message: FromSource) -> Option<DestinationEvent> {
    match message.message? {
        Message::Prepare(_) | Message::Joined(_) => None,
        Message::GiveUp(it) => Some(DestinationEvent::SourceGaveUp { generation: Generation(it.generation) }),
        Message::LineEmpty(_) => Some(DestinationEvent::LineEmpty),
        Message::Abort(it) => {
            let failure = it.failure.map_or_else(|| Failure::new("ABORTED", "the source gave no reason"), Into::into);
            Some(DestinationEvent::SourceAborted(failure))
        }
    }
}

/// Sends one answer to the source; whether it still listens shows on its stream.
pub fn answer(to_source: Option<&ToSource>, message: throughline_wire::v1::from_destination::Message) {
    if let Some(to_source) = to_source {
        let _ = to_source.send(Ok(FromDestination { message: Some(message) }));
    }
}
