//! What agents say.

use throughline_cutover::{
    CoordinatorEvent, Failure, Generation, GuestName, HostName, News, RebindId, Role,
    admission::{self, Denial, Enrolment},
};
use throughline_wire::Refusal;

use super::{Core, GuestState, Observation};
use crate::{links::Line, record::HostRecord};

/// A message up from an agent, after its greeting.
#[derive(Debug, Clone)]
pub(crate) enum Uplink {
    /// Sign of life.
    Heartbeat,
    /// What is there.
    Observed {
        /// Guests there.
        guests: Vec<ObservedGuest>,
        /// What could not be reconciled, for people.
        problems: Vec<String>,
    },
    /// Answer to a rebind.
    RebindAck {
        /// Which.
        id: RebindId,
        /// Applied, or why not.
        outcome: Result<(), Failure>,
    },
    /// One end's report of a migration.
    News {
        /// Which.
        migration: String,
        /// What.
        news: Box<News>,
    },
}

/// A guest as an agent sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedGuest {
    /// Its name.
    pub(crate) name: GuestName,
    /// Generation at which the host holds it.
    pub(crate) generation: Generation,
    /// Whether it runs.
    pub(crate) state: GuestState,
    /// For people.
    pub(crate) detail: String,
}

impl Core {
    /// An agent connects. Returns its stream's number.
    ///
    /// # Errors
    /// See [`admission::enrol`].
    pub(crate) fn attach(&mut self, enrolment: Enrolment, line: Line) -> Result<u64, Denial> {
        admission::enrol(self, &enrolment, self.open)?;
        let host = enrolment.host.clone();
        tracing::info!(%host, vtep = %enrolment.vtep, version = enrolment.agent_version, "agent connected");
        self.record.put_host(HostRecord { name: host.clone(), enrolment: Some(enrolment) });
        let session = self.links.attach(host.clone(), line);
        self.tell_migrations(|| CoordinatorEvent::HostBack(host.clone()));
        self.want_desired_states();
        Ok(session)
    }

    /// An agent's stream has ended or is to end.
    pub(crate) fn detach(&mut self, host: &HostName, session: u64, why: Option<Refusal>) {
        if self.links.detach(host, session, why) {
            tracing::warn!(%host, "agent gone");
            self.tell_migrations(|| CoordinatorEvent::HostLost(host.clone()));
        }
    }

    /// An agent speaks.
    pub(crate) fn hear(&mut self, host: &HostName, session: u64, message: Uplink) {
        if !self.links.heard(host, session) {
            return;
        }
        match message {
            Uplink::Heartbeat => {}
            Uplink::Observed { guests, problems } => self.observe(host, guests, &problems),
            Uplink::RebindAck { id, outcome } => {
                let RebindId { migration, port } = id;
                let host = host.clone();
                self.step_migration(&migration, CoordinatorEvent::RebindAck { host, port, outcome });
            }
            Uplink::News { migration, news } => self.hear_news(host, &migration, news),
        }
    }

    /// Only the owner's word on a guest counts, and only at the generation it owns it at.
    fn observe(&mut self, host: &HostName, guests: Vec<ObservedGuest>, problems: &[String]) {
        for problem in problems {
            tracing::warn!(%host, problem, "agent could not reconcile");
        }
        for guest in guests {
            let recorded = self.record.guests().get(&guest.name);
            if recorded.is_some_and(|it| it.host == *host && it.generation == guest.generation) {
                let ObservedGuest { name, state, detail, .. } = guest;
                self.observed.insert(name, Observation { state, detail });
            }
        }
    }

    /// Only a host that plays a role may speak for it.
    fn hear_news(&mut self, host: &HostName, migration: &str, news: Box<News>) {
        let Some(known) = self.record.migrations().get(migration) else {
            tracing::warn!(%host, migration, "agent speaks of a migration that is not in the record");
            self.forbid_unknown(host, migration, &news);
            return;
        };
        if known.coordinator.host_of(news.role) != host {
            let role: Role = news.role;
            tracing::warn!(%host, migration, ?role, "agent speaks for an end it is not; ignored");
            return;
        }
        self.step_migration(migration, CoordinatorEvent::News(news));
    }
}
