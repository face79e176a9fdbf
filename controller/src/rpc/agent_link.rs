//! `AgentLink`: one stream an agent.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use prost::Message as _;
use throughline_cutover::{Failure, HostName, admission::Greeting};
use throughline_identity::{Caller, Identity};
use throughline_wire::{
    InvalidField, Problem, Refusal, nested, status,
    v1::{AgentMessage, ControllerMessage, agent_link_server::AgentLink, agent_message::Message},
};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    audit::Object,
    core::Uplink,
    driver::Handle,
    guard::Deed,
    links::{Line, QUEUE},
};

/// How long an agent may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Largest message after the greeting, bytes.
const LARGEST_MESSAGE: usize = 1 << 20;
/// Messages heard from one agent in a second: 64 guests on the move tell of their progress ten times a second each.
const MESSAGES_A_SECOND: u32 = 1000;

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
        let (caller, deed) = (Caller::of(&request)?, Deed::of(&request));
        let mut from_agent = request.into_inner();
        let greeting = hello(&mut from_agent).await?;
        let host = greeting.enrolment.host.clone();
        deed.concerns(Object::host(&host));
        speaks_for(&caller, &host)?;
        let (messages, queue) = mpsc::channel(QUEUE);
        let (open, closed) = oneshot::channel();
        let session = self.driver.call(move |core| core.attach(greeting, Line { messages, open })).await?;
        tokio::spawn(listen(from_agent, self.driver.clone(), host, session, closed));
        let to_agent = ReceiverStream::new(queue).map(|message| message.map(Into::into).map_err(Into::into));
        Ok(Response::new(Box::pin(to_agent)))
    }
}

/// An agent speaks for the host that its certificate names, and for no other. All it says later is taken as that host's word.
fn speaks_for(caller: &Caller, host: &HostName) -> Result<(), Status> {
    match caller {
        Caller::Known(Identity::Agent(own)) if own == host => Ok(()),
        Caller::Known(who) => {
            let words = format!(
                "{who} says that it is the agent of host {host}; an agent attaches for the host that its certificate \
                 names: give it the certificate of {host}, or correct its --host"
            );
            Err(status(Code::PermissionDenied, "NOT_YOUR_HOST", Some("hello.host"), words))
        }
        Caller::Unproven => Ok(()),
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

/// Reads no faster than any agent has to say something: one that says more is heard later, and nobody else is.
struct Pace {
    since: time::Instant,
    heard: u32,
}

impl Pace {
    fn new() -> Self {
        Self { since: time::Instant::now(), heard: 0 }
    }

    /// Cancel-safe: what has been counted is a message that is still to be read.
    async fn wait(&mut self) {
        if self.heard >= MESSAGES_A_SECOND {
            time::sleep_until(self.since + Duration::from_secs(1)).await;
        }
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self::new();
        }
        self.heard += 1;
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
    let mut pace = Pace::new();
    let why = loop {
        let message = tokio::select! {
            message = async {
                pace.wait().await;
                from_agent.message().await
            } => message,
            _ = &mut closed => return,
        };
        let Ok(Some(message)) = message else { break None };
        if message.encoded_len() > LARGEST_MESSAGE {
            tracing::warn!(%host, bytes = message.encoded_len(), "agent sent too large a message; ending its stream");
            let words = format!("is a message of more than {LARGEST_MESSAGE} bytes");
            break Some(Refusal::from(InvalidField::new("message", Problem::Other(words))));
        }
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
