//! The `Peer` service: what a source may ask of this host as a destination.

mod entry;
mod visitors;

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

pub use entry::Proof;
use entry::{Refused, may_ask, may_call, may_send};
use futures::Stream;
use throughline_cutover::{DestinationEvent, Failure, Generation, MigrationPlan};
use throughline_identity::Caller;
use throughline_wire::{
    limits::LONGEST_ID,
    v1::{
        BeginPoint, CopyDisk, DiskFromDestination, DiskFromSource, FromDestination, FromSource, PointFromKeeper,
        PointFromSource, Prepare, ResolveRequest, ResolveResponse, disk_from_source, from_source::Message,
        peer_server::Peer, point_from_source,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{
    StreamExt as _,
    wrappers::{ReceiverStream, UnboundedReceiverStream},
};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};
use visitors::{Permit, Visitors};

use crate::{
    cold,
    host::Host,
    journal::Promise,
    memberships,
    moves::{Move, Moves, SourceCall, ToSource},
    replica,
};

/// How long a source must say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a question waits for a decision that is being written.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);
/// Most that a source says after its first message: it has five things to say.
const LONGEST_CALL: u32 = 16;

/// Serves sources.
#[derive(Debug, Clone)]
pub struct PeerService {
    host: Arc<Host>,
    proof: Proof,
    visitors: Arc<Visitors>,
}

impl PeerService {
    /// For this host.
    pub fn new(host: Arc<Host>, proof: Proof) -> Self {
        Self { host, proof, visitors: Arc::default() }
    }

    /// A refusal, noted.
    fn refuse(&self, caller: &Caller, id: &str, refused: &Refused) -> Status {
        self.visitors.refused(caller, id, refused);
        refused.into()
    }

    /// A call that counts while its permit lives.
    fn admit(&self, caller: &Caller) -> Result<Permit, Status> {
        self.visitors.admit(caller).map_err(|refused| self.refuse(caller, "", &refused))
    }
}

/// Takes the source's one call for an announced migration.
fn take_call(moves: &Moves, caller: &Caller, proof: Proof, prepare: Prepare) -> Result<Called, Refused> {
    let Some(Move::Destination { plan, events, caller: slot, called, .. }) = moves.get(&prepare.migration_id) else {
        return Err(Refused::NotAnnounced);
    };
    let offered = Generation(prepare.generation);
    may_call(caller, proof, &plan, &prepare.token, offered, called.load(Ordering::Acquire))?;
    // Of two calls at one time one is the first.
    if called.swap(true, Ordering::AcqRel) {
        return Err(Refused::CalledBefore);
    }
    let (to_source, answers) = mpsc::unbounded_channel();
    slot.put(SourceCall { answers: to_source, disks: prepare.disks });
    Ok(Called { plan, events, answers })
}

/// A call that was taken.
struct Called {
    plan: Arc<MigrationPlan>,
    events: mpsc::UnboundedSender<DestinationEvent>,
    answers: mpsc::UnboundedReceiver<Result<FromDestination, Status>>,
}

#[tonic::async_trait]
impl Peer for PeerService {
    type CutoverStream = Pin<Box<dyn Stream<Item = Result<FromDestination, Status>> + Send>>;

    async fn cutover(&self, request: Request<Streaming<FromSource>>) -> Result<Response<Self::CutoverStream>, Status> {
        let caller = Caller::of(&request)?;
        let permit = self.admit(&caller)?;
        let mut from_source = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, from_source.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("no prepare message within 5 s"))??;
        let Some(Message::Prepare(prepare)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("prepare must be the first message of a cutover"));
        };
        check_id("migration_id", &prepare.migration_id)?;
        let id = prepare.migration_id.clone();
        let called = take_call(&self.host.moves, &caller, self.proof, prepare);
        let Called { plan, events, answers } = called.map_err(|refused| self.refuse(&caller, &id, &refused))?;
        let gone = || Status::aborted("the migration has ended here");
        events.send(DestinationEvent::SourceCalled).map_err(|_| gone())?;
        info!(migration = plan.id, guest = %plan.guest.name, source = %plan.source.host, "source called");
        tokio::spawn(listen(from_source, events, self.host.clone(), plan, permit));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }

    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveResponse>, Status> {
        let caller = Caller::of(&request)?;
        let _permit = self.admit(&caller)?;
        let ResolveRequest { migration_id, token } = request.into_inner();
        check_id("migration_id", &migration_id)?;
        let refuse = |refused: Refused| self.refuse(&caller, &migration_id, &refused);
        match self.host.moves.get(&migration_id) {
            Some(Move::Destination { plan, events, .. }) => {
                may_ask(&caller, self.proof, &plan, &token).map_err(refuse)?;
                let _ = events.send(DestinationEvent::Asked);
            }
            Some(Move::Source { .. }) => return Err(refuse(Refused::NotAnnounced)),
            // One that never reached this host's journal was never expected here, and its controller has the last word.
            None => {
                let record = self.host.journal.find_move(&migration_id);
                let record = record.map_err(|error| Status::unavailable(error.to_string()))?;
                let plan = record.and_then(|record| record.plan).ok_or(Refused::NotAnnounced).map_err(refuse)?;
                may_ask(&caller, self.proof, &plan, &token).map_err(refuse)?;
            }
        }
        self.decision(&migration_id).await.map(Response::new)
    }

    type CopyDiskStream = Pin<Box<dyn Stream<Item = Result<DiskFromDestination, Status>> + Send>>;

    async fn copy_disk(
        &self,
        request: Request<Streaming<DiskFromSource>>,
    ) -> Result<Response<Self::CopyDiskStream>, Status> {
        let caller = Caller::of(&request)?;
        let permit = self.admit(&caller)?;
        let mut from_source = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, from_source.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("no begin message within 5 s"))??;
        let Some(disk_from_source::Message::Begin(begin)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("begin must be the first message of a disk"));
        };
        let CopyDisk { migration_id, token, disk, length } = begin;
        check_id("migration_id", &migration_id)?;
        let refuse = |refused: Refused| self.refuse(&caller, &migration_id, &refused);
        let Some(Move::Destination { plan, events, incoming, .. }) = self.host.moves.get(&migration_id) else {
            return Err(refuse(Refused::NotAnnounced));
        };
        may_ask(&caller, self.proof, &plan, &token).map_err(refuse)?;
        let answers = cold::copy(self.host.clone(), plan, incoming, events, from_source, (disk, length))?;
        Ok(Response::new(answering(answers, permit)))
    }

    type KeepPointStream = Pin<Box<dyn Stream<Item = Result<PointFromKeeper, Status>> + Send>>;

    async fn keep_point(
        &self,
        request: Request<Streaming<PointFromSource>>,
    ) -> Result<Response<Self::KeepPointStream>, Status> {
        let caller = Caller::of(&request)?;
        let permit = self.admit(&caller)?;
        let mut from_source = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, from_source.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("no begin message within 5 s"))??;
        let Some(point_from_source::Message::Begin(begin)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("begin must be the first message of a point"));
        };
        let BeginPoint { replica_id, token, generation } = begin;
        check_id("replica_id", &replica_id)?;
        let refuse = |refused: Refused| self.refuse(&caller, &replica_id, &refused);
        let kept = replica_id.parse().ok().and_then(|id| self.host.keepers.get(&id));
        let kept = kept.ok_or_else(|| refuse(Refused::NotKept))?;
        may_send(&caller, self.proof, &kept.wanted(), &token, Generation(generation)).map_err(refuse)?;
        let sender = kept.wanted().source.ok_or_else(|| refuse(Refused::BeingPromoted))?.host;
        let answers = replica::take(self.host.clone(), kept, sender, from_source);
        Ok(Response::new(answering(answers, permit)))
    }
}

/// What comes out of a channel, with a permit that counts until it has ended.
fn answering<T: Send + 'static>(
    answers: mpsc::Receiver<Result<T, Status>>,
    permit: Permit,
) -> Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>> {
    let answers = ReceiverStream::new(answers).map(move |answer| {
        let _counts = &permit;
        answer
    });
    Box::pin(answers)
}

fn check_id(field: &str, id: &str) -> Result<(), Status> {
    if id.is_empty() || id.len() > LONGEST_ID {
        return Err(Status::invalid_argument(format!("{field} must have 1 to {LONGEST_ID} bytes")));
    }
    Ok(())
}

impl PeerService {
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

/// Turns the source's messages into events until its stream ends. The permit goes with it.
async fn listen(
    mut from_source: Streaming<FromSource>,
    events: mpsc::UnboundedSender<DestinationEvent>,
    host: Arc<Host>,
    plan: Arc<MigrationPlan>,
    _permit: Permit,
) {
    for said in 0.. {
        if said == LONGEST_CALL {
            warn!(source = %plan.source.host, "the source says more than a source has to say; its stream is ended");
            let _ = events.send(DestinationEvent::SourceLost);
            return;
        }
        let event = match from_source.next().await {
            Some(Ok(FromSource { message: Some(Message::Joined(joined)) })) => {
                let _ = events.send(DestinationEvent::SourceArmed);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use throughline_wire::v1::Role;

    use super::*;
    use crate::{
        slot::Slot,
        uplink::{MigrationNews, Uplink},
    };

    /// A host that expects the guest of a plan.
    fn expecting(plan: &Arc<MigrationPlan>) -> (Moves, mpsc::UnboundedReceiver<DestinationEvent>) {
        let (events, queue) = mpsc::unbounded_channel();
        let moves = Moves::default();
        let (caller, called) = (Slot::empty(), Arc::new(AtomicBool::new(false)));
        let incoming = Arc::default();
        let news = MigrationNews::new(Uplink::new().0, plan.id.clone(), Role::Destination);
        assert!(moves.enter(Move::Destination { plan: plan.clone(), events, caller, called, incoming, news }));
        (moves, queue)
    }

    fn call(moves: &Moves, who: &str, prepare: &Prepare) -> Result<(), &'static str> {
        let caller = Caller::Known(who.parse().unwrap());
        take_call(moves, &caller, Proof::Required, prepare.clone()).map(|_| ()).map_err(|refused| refused.reason())
    }

    #[test]
    fn a_token_is_good_for_one_call_and_dies_with_the_move() {
        let plan = Arc::new(entry::tests::plan());
        let (moves, _queue) = expecting(&plan);
        let prepare =
            Prepare { migration_id: plan.id.clone(), token: plan.token.clone(), generation: 3, disks: vec![] };
        let wrong = Prepare { token: "cd".repeat(32), ..prepare.clone() };
        assert_eq!(call(&moves, "agent/h3", &prepare), Err("NOT_THE_SOURCE"), "the right token of the wrong host");
        assert_eq!(call(&moves, "agent/h1", &wrong), Err("NOT_ANNOUNCED"), "the right host with the wrong token");
        let stale = Prepare { generation: 2, ..prepare.clone() };
        assert_eq!(call(&moves, "agent/h1", &stale), Err("STALE_GENERATION"));
        assert_eq!(call(&moves, "agent/h1", &prepare), Ok(()), "what was refused has used nothing up");
        assert_eq!(call(&moves, "agent/h1", &prepare), Err("CALLED_BEFORE"));
        moves.leave(&plan.id);
        assert_eq!(call(&moves, "agent/h1", &prepare), Err("NOT_ANNOUNCED"), "after the end");
    }

    #[test]
    fn a_source_is_not_called() {
        let plan = Arc::new(entry::tests::plan());
        let (events, _queue) = mpsc::unbounded_channel();
        let news = MigrationNews::new(Uplink::new().0, plan.id.clone(), Role::Source);
        let moves = Moves::default();
        assert!(moves.enter(Move::Source { plan: plan.clone(), events, news }));
        let prepare =
            Prepare { migration_id: plan.id.clone(), token: plan.token.clone(), generation: 3, disks: vec![] };
        assert_eq!(call(&moves, "agent/h1", &prepare), Err("NOT_ANNOUNCED"));
    }
}
