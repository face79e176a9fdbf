//! The connected agents: where to send, and when each was last heard.

use std::{collections::BTreeMap, time::Duration};

use throughline_cutover::{
    Binding, CarryId, Failure, HostName, MacAddr, Mandate, MarkerSecret, MigrationPlan, RebindId,
};
use throughline_wire::Refusal;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::desired::Desired;

/// Heartbeats that may be missed before an agent counts as gone.
const MISSED_HEARTBEATS: u32 = 3;
/// Messages that may wait for an agent that reads slowly; past it the stream is ended and the agent begins anew.
pub(crate) const QUEUE: usize = 256;

/// A message down to an agent.
#[derive(Debug, Clone)]
pub(crate) enum Downlink {
    /// Greeting, and by what right the rest is ordered.
    Welcome { heartbeat: Duration, mandate: Mandate },
    /// All that should be there.
    Desired { revision: u64, desired: Desired },
    /// To a destination.
    Expect(Box<MigrationPlan>),
    /// To a source.
    Start(Box<MigrationPlan>),
    /// To either end.
    Abort { migration: String, failure: Failure },
    /// To a peer.
    Rebind(Box<Rebind>),
    /// To both ends.
    Settle { migration: String },
    /// To a source.
    Resolve { migration: String, guest_stays: bool },
}

/// A port has moved.
#[derive(Debug, Clone)]
pub(crate) struct Rebind {
    pub(crate) id: RebindId,
    pub(crate) binding: Binding,
    pub(crate) old_vtep: std::net::Ipv4Addr,
    pub(crate) marker_mac: MacAddr,
    pub(crate) marker_index: u32,
    pub(crate) marker_secret: Option<MarkerSecret>,
    pub(crate) carry_id: CarryId,
}

/// One end of an agent's stream, as the driver holds it. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct Line {
    /// Messages, or why the stream ends.
    pub(crate) messages: mpsc::Sender<Result<Downlink, Refusal>>,
    /// Dropped with the line: tells whoever reads from the agent to stop.
    pub(crate) open: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Link {
    session: u64,
    line: Line,
    heard: Instant,
    /// What waits for the greeting, which comes first; `None`: it has been greeted.
    early: Option<Vec<Downlink>>,
    /// The desired state it has; `None`: none, or it is to have it once more.
    has: Option<Desired>,
    /// Its queue was full: it is to be cut off.
    stuck: bool,
}

impl Link {
    /// Nobody reads at one of its ends.
    fn is_over(&self) -> bool {
        self.stuck || self.line.open.is_closed()
    }
}

/// Every connected agent.
#[derive(Debug)]
pub(crate) struct Links {
    by_host: BTreeMap<HostName, Link>,
    sessions: u64,
    heartbeat: Duration,
}

impl Links {
    pub(crate) fn new(heartbeat: Duration) -> Self {
        Self { by_host: BTreeMap::new(), sessions: 0, heartbeat }
    }

    /// Takes a new stream; an older one of the same host is ended. Returns the stream's number.
    pub(crate) fn attach(&mut self, host: HostName, line: Line) -> u64 {
        self.sessions += 1;
        let session = self.sessions;
        if let Some(older) = self.by_host.remove(&host) {
            let words = format!("another stream of host {host} took over; run one agent a host");
            let _ = older.line.messages.try_send(Err(Refusal::Unavailable(Failure::new("TAKEN_OVER", words))));
        }
        let early = Some(Vec::new());
        self.by_host.insert(host, Link { session, line, heard: Instant::now(), early, has: None, stuck: false });
        session
    }

    /// Greets an agent, once its mandate is durable. What was to be sent before follows.
    pub(crate) fn welcome(&mut self, host: &HostName, session: u64, mandate: &Mandate) {
        if !self.is_current(host, session) {
            return;
        }
        let early = self.by_host.get_mut(host).and_then(|link| link.early.take());
        self.send(host, Downlink::Welcome { heartbeat: self.heartbeat, mandate: mandate.clone() });
        early.into_iter().flatten().for_each(|message| self.send(host, message));
    }

    /// Tells everybody who has been greeted of a new mandate.
    pub(crate) fn welcome_all(&mut self, mandate: &Mandate) {
        for (host, session) in self.by_host.iter().map(|(host, link)| (host.clone(), link.session)).collect::<Vec<_>>()
        {
            if self.by_host.get(&host).is_some_and(|link| link.early.is_none()) {
                self.welcome(&host, session, mandate);
            }
        }
    }

    /// Ends every stream.
    pub(crate) fn end_all(&mut self, why: &Refusal) {
        for (_, link) in std::mem::take(&mut self.by_host) {
            let _ = link.line.messages.try_send(Err(why.clone()));
        }
    }

    /// Ends a stream, if it is still the host's; `true`: the host is now gone.
    pub(crate) fn detach(&mut self, host: &HostName, session: u64, why: Option<Refusal>) -> bool {
        if !self.is_current(host, session) {
            return false;
        }
        if let (Some(link), Some(why)) = (self.by_host.remove(host), why) {
            let _ = link.line.messages.try_send(Err(why));
        }
        true
    }

    /// Notes a sign of life; `false`: the stream is not the host's any more.
    pub(crate) fn heard(&mut self, host: &HostName, session: u64) -> bool {
        match self.by_host.get_mut(host) {
            Some(link) if link.session == session => {
                link.heard = Instant::now();
                true
            }
            Some(_) | None => false,
        }
    }

    fn is_current(&self, host: &HostName, session: u64) -> bool {
        self.by_host.get(host).is_some_and(|link| link.session == session)
    }

    pub(crate) fn is_connected(&self, host: &HostName) -> bool {
        self.by_host.get(host).is_some_and(|link| !link.is_over())
    }

    /// Sends if the host is there and keeps up. One that does not is cut off: see [`Links::silent`].
    pub(crate) fn send(&mut self, host: &HostName, message: Downlink) {
        let Some(link) = self.by_host.get_mut(host) else { return };
        if let Some(early) = &mut link.early {
            early.push(message);
        } else if !link.stuck && link.line.messages.try_send(Ok(message)).is_err() {
            tracing::warn!(%host, "the agent does not read its stream; ending it");
            link.stuck = true;
        }
    }

    /// Sends the desired state if it is not what the host has.
    pub(crate) fn send_desired(&mut self, host: &HostName, revision: u64, desired: Desired) {
        let Some(link) = self.by_host.get_mut(host) else { return };
        if link.has.as_ref() != Some(&desired) {
            link.has = Some(desired.clone());
            self.send(host, Downlink::Desired { revision, desired });
        }
    }

    /// The host is to have its desired state once more, changed or not.
    pub(crate) fn forget_desired(&mut self, host: &HostName) {
        if let Some(link) = self.by_host.get_mut(host) {
            link.has = None;
        }
    }

    /// Hosts with a stream.
    pub(crate) fn hosts(&self) -> Vec<HostName> {
        self.by_host.keys().cloned().collect()
    }

    /// Streams that have ended or have been silent too long.
    pub(crate) fn silent(&self) -> Vec<(HostName, u64)> {
        let patience = self.patience();
        let gone = self.by_host.iter().filter(|(_, link)| link.is_over() || link.heard.elapsed() > patience);
        gone.map(|(host, link)| (host.clone(), link.session)).collect()
    }

    /// When the next stream may have been silent too long.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let patience = self.patience();
        self.by_host.values().map(|link| link.heard + patience + Duration::from_millis(1)).min()
    }

    /// A heartbeat may be a little late without being missed.
    fn patience(&self) -> Duration {
        self.heartbeat * MISSED_HEARTBEATS + self.heartbeat / 2
    }
}
