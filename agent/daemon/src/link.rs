//! The stream to the controller: kept up, its orders carried out.

use std::{sync::Arc, time::Duration};

use throughline_cutover::{Failure, MigrationPlan};
use throughline_identity::Identity;
use throughline_wire::{
    limits::LARGEST_ORDER,
    v1::{
        self, AgentMessage, ControllerMessage, agent_link_client::AgentLinkClient, agent_message::Message,
        controller_message::Message as Order,
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Streaming, transport::Endpoint};
use tracing::{info, warn};

use crate::{
    destination, fencing, flip, host::Host, journal::JournalError, memory, moves::Move, reconcile::Desired, source,
    uplink::UplinkQueue,
};

/// First wait before another try, doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between tries.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Heartbeat until the controller has said how often.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Keeps the stream up for the agent's life.
pub async fn run(host: Arc<Host>, mut news: UplinkQueue, desired: watch::Sender<Option<Desired>>) {
    let mut wait = FIRST_WAIT;
    let controller = host.config.controller();
    loop {
        match attach(&host).await {
            Ok((up, down)) => {
                info!(controller, "attached");
                wait = FIRST_WAIT;
                let ended = serve(&host, &mut news, &desired, up, down).await;
                warn!(%ended, "the stream to the controller ended; guests run on, moves go on");
            }
            Err(status) => {
                warn!(controller, %status, "the controller cannot be reached; trying again")
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

type Up = mpsc::UnboundedSender<AgentMessage>;

async fn attach(host: &Host) -> Result<(Up, Streaming<ControllerMessage>), tonic::Status> {
    let endpoint = Endpoint::from_shared(host.config.controller())
        .map_err(|error| tonic::Status::invalid_argument(format!("--controller: {error}")))?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true);
    let channel = host.security.dial(endpoint, &Identity::Controller).await;
    let channel = channel.map_err(|error| tonic::Status::unavailable(error.told()))?;
    let (up, queue) = mpsc::unbounded_channel();
    let hello = hello(host).map_err(|error| tonic::Status::internal(error.to_string()))?;
    let _ = up.send(AgentMessage { message: Some(Message::Hello(hello)) });
    let mut client = AgentLinkClient::new(channel).max_decoding_message_size(LARGEST_ORDER);
    let down = client.attach(UnboundedReceiverStream::new(queue)).await?.into_inner();
    Ok((up, down))
}

fn hello(host: &Host) -> Result<v1::Hello, JournalError> {
    Ok(v1::Hello {
        host: host.name().to_string(),
        vtep: host.config.vtep.to_string(),
        peer_endpoint: host.config.peer_listen.to_string(),
        memory_kib: host.config.memory_kib(),
        accelerator: host.accelerator().to_string(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        peer_only: host.config.peer_only,
        obeyed: host.journal.mandate()?.map(Into::into),
        guests: host.journal.guests()?.into_iter().map(Into::into).collect(),
    })
}

/// Serves one stream until it ends; returns why it did. Nothing is said or done on it before the controller has said by what
/// right it commands.
async fn serve(
    host: &Arc<Host>,
    news: &mut UplinkQueue,
    desired: &watch::Sender<Option<Desired>>,
    up: Up,
    mut down: Streaming<ControllerMessage>,
) -> String {
    let mut greeted = false;
    let mut sequence = 0;
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            order = down.message() => match order {
                Ok(Some(ControllerMessage { message: Some(Order::Welcome(welcome)) })) => {
                    let every = u64::from(welcome.heartbeat_ms).clamp(100, 60_000);
                    heartbeat = tokio::time::interval(Duration::from_millis(every));
                    if let Err(failure) = fencing::heed(host, welcome.mandate).await {
                        return fencing::refuse(failure, &up, down).await;
                    }
                    if !std::mem::replace(&mut greeted, true) {
                        // What an earlier stream ordered counts no more.
                        desired.send_replace(None);
                        host.moves.repeat_news();
                    }
                }
                Ok(Some(order)) if greeted => obey(host, desired, order, &up),
                Ok(Some(_)) => return "an order came before the right to give it".to_owned(),
                Ok(None) => return "closed by the controller".to_owned(),
                Err(status) => return status.to_string(),
            },
            Some(message) = news.recv(), if greeted => {
                if up.send(AgentMessage { message: Some(message) }).is_err() {
                    return "no longer read by the controller".to_owned();
                }
            }
            _ = heartbeat.tick() => {
                sequence += 1;
                let beat = Message::Heartbeat(v1::Heartbeat { sequence });
                if up.send(AgentMessage { message: Some(beat) }).is_err() {
                    return "no longer read by the controller".to_owned();
                }
            }
        }
    }
}

/// Carries out one order. Nothing here waits: what takes time goes its own way.
fn obey(host: &Arc<Host>, desired: &watch::Sender<Option<Desired>>, order: ControllerMessage, up: &Up) {
    match order.message {
        Some(Order::Desired(state)) => {
            desired.send_replace(Some(Desired { state, moves_ended: host.moves.ended() }));
        }
        Some(Order::Expect(expect)) => match plan(expect.plan) {
            Ok(plan) if memory::answer_beginning(host, &plan.id) => {}
            Ok(plan) => destination::expect(host, plan),
            Err(problem) => warn!(problem, "a plan that cannot be read"),
        },
        Some(Order::Start(start)) => match plan(start.plan) {
            Ok(plan) if memory::answer_beginning(host, &plan.id) => {}
            Ok(plan) => drop(tokio::spawn(source::start(host.clone(), plan))),
            Err(problem) => warn!(problem, "a plan that cannot be read"),
        },
        Some(Order::Abort(abort)) => match host.moves.get(&abort.migration_id) {
            Some(one) => one.abort(abort.failure.map_or_else(|| Failure::new("ABORTED", "ordered"), Into::into)),
            None => memory::answer_abort(host, &abort.migration_id),
        },
        Some(Order::Settle(settle)) => settle_one(host, &settle.migration_id),
        Some(Order::Resolve(resolve)) => match host.moves.get(&resolve.migration_id) {
            Some(one) => one.resolve(resolve.guest_stays),
            None => memory::answer_abort(host, &resolve.migration_id),
        },
        Some(Order::Rebind(rebind)) => {
            let (host, up) = (host.clone(), up.clone());
            tokio::spawn(async move {
                let ack = flip::rebind(&host, rebind).await;
                let _ = up.send(AgentMessage { message: Some(Message::RebindAck(ack)) });
            });
        }
        Some(Order::Welcome(_)) | None => {}
    }
}

fn settle_one(host: &Host, id: &str) {
    match host.moves.get(id) {
        Some(one) => {
            if let Move::Source { plan, .. } = &one {
                info!(migration = id, guest = %plan.guest.name, "every peer has been told");
            }
            one.settle();
        }
        None => memory::answer_settle(host, id),
    }
}

fn plan(plan: Option<v1::MigrationPlan>) -> Result<MigrationPlan, String> {
    let plan = plan.ok_or("plan is missing")?;
    MigrationPlan::try_from(plan).map_err(|error| error.to_string())
}
