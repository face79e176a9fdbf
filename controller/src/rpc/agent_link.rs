//! `AgentLink`: one stream an agent.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use throughline_cutover::{Failure, HostName, admission::Greeting};
use throughline_wire::{
    InvalidField, Problem, Refusal, nested,
    v1::{AgentMessage, ControllerMessage, agent_link_server::AgentLink, agent_message::Message},
};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    core::Uplink,
    driver::Handle,
    links::{Line, QUEUE},
};

/// How long an agent may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Serves the agents.
#[derive(Clone)]
pub(crate) struct AgentLinkService {
    driver: Handle,
}

impl AgentLinkService {
    pub(crate) fn new(driver: Handle) -> Self {
        Self { driver }
    }
}

#[tonic::async_trait]
impl AgentLink for AgentLinkService {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut from_agent = request.into_inner();
        let greeting = hello(&mut from_agent).await?;
        let host = greeting.enrolment.host.clone();
        let (messages, queue) = mpsc::channel(QUEUE);
        let (open, closed) = oneshot::channel();
        let session = self.driver.call(move |core| core.attach(greeting, Line { messages, open })).await?;
        tokio::spawn(listen(from_agent, self.driver.clone(), host, session, closed));
        let to_agent = ReceiverStream::new(queue).map(|message| message.map(Into::into).map_err(Into::into));
        Ok(Response::new(Box::pin(to_agent)))
    }
}

/// The greeting, which must come first and soon.
async fn hello(from_agent: &mut Streaming<AgentMessage>) -> Result<Greeting, Status> {
    let late = || Refusal::Unavailable(Failure::new("HELLO_LATE", "no hello within 5 s; send it first"));
    let first = time::timeout(HELLO_DEADLINE, from_agent.message()).await.map_err(|_| late())??;
    match first.and_then(|first| first.message) {
        Some(Message::Hello(hello)) => Ok(nested("hello", Some(hello)).map_err(Refusal::from)?),
        Some(_) | None => Err(Refusal::from(InvalidField::new("hello", Problem::Missing)).into()),
    }
}

/// Hands the agent's messages to the driver until either end of the stream is gone.
async fn listen(
    mut from_agent: Streaming<AgentMessage>,
    driver: Handle,
    host: HostName,
    session: u64,
    mut closed: oneshot::Receiver<()>,
) {
    let why = loop {
        let message = tokio::select! {
            message = from_agent.message() => message,
            _ = &mut closed => return,
        };
        let Ok(Some(message)) = message else { break None };
        match Uplink::try_from(message) {
            Ok(message) => {
                let host = host.clone();
                if driver.post(move |core| core.hear(&host, session, message)).await.is_err() {
                    return;
                }
            }
            Err(invalid) => {
                tracing::warn!(%host, %invalid, "agent sent a message that cannot be; ending its stream");
                break Some(Refusal::from(invalid));
            }
        }
    };
    // A driver that has stopped has dropped the stream already.
    let _ = driver.post(move |core| core.detach(&host, session, why)).await;
}
