//! What agents say.

use throughline_cutover::{
    CoordinatorEvent, Failure, Generation, GuestName, HostName, News, RebindId, Role,
    admission::{self, Denial, Greeting},
};
use throughline_wire::Refusal;

use super::{Core, GuestState, Observation, ObservedReplica};
use crate::{
    links::Line,
    record::{HostRecord, Report},
};

/// A message up from an agent, after its greeting.
#[derive(Debug, Clone)]
pub(crate) enum Uplink {
    /// Sign of life.
    Heartbeat,
    /// What is there.
    Observed {
        /// The desired state it answers.
        revision: u64,
        /// Guests there.
        guests: Vec<ObservedGuest>,
        /// Replicas sent from there and kept there.
        replicas: Vec<ObservedReplica>,
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
    /// It does not obey.
    Refused(Failure),
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
    /// `STALE_TERM`, `OTHER_FABRIC`, and see [`admission::enrol`].
    pub(crate) fn attach(&mut self, greeting: Greeting, line: Line) -> Result<u64, Denial> {
        self.commands()?;
        let Greeting { enrolment, obeyed, guests } = greeting;
        admission::enrol(self, &enrolment, self.policy.open_enrolment)?;
        self.claim(&enrolment, obeyed.as_ref())?;
        let host = enrolment.host.clone();
        tracing::info!(%host, vtep = %enrolment.vtep, version = enrolment.agent_version, "agent connected");
        self.record.put_host(HostRecord { name: host.clone(), enrolment: Some(enrolment) });
        self.learn(&host, guests);
        self.ask_for_points_again(&host);
        self.lose_tests(&host);
        let session = self.links.attach(host.clone(), line);
        let (mandate, welcomed) = (self.record.mandate().clone(), host.clone());
        self.when_durable(move |core| core.links.welcome(&welcomed, session, &mandate));
        self.tell_migrations(|| CoordinatorEvent::HostBack(host.clone()));
        self.want_desired_states();
        Ok(session)
    }

    /// An agent's stream has ended or is to end.
    pub(crate) fn detach(&mut self, host: &HostName, session: u64, why: Option<Refusal>) {
        if self.links.detach(host, session, why) {
            tracing::warn!(%host, "agent gone");
            self.lose_tests(host);
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
            Uplink::Observed { revision, guests, replicas, problems } => {
                self.confirm(host, revision, &guests, &replicas, &problems);
                self.observe(host, guests);
                self.observe_replicas(host, replicas);
            }
            Uplink::Refused(failure) => self.refused(host, session, failure),
            Uplink::RebindAck { id, outcome } => {
                let RebindId { migration, port } = id;
                let host = host.clone();
                self.step_migration(&migration, CoordinatorEvent::RebindAck { host, port, outcome });
            }
            Uplink::News { migration, news } => self.hear_news(host, &migration, news),
        }
    }

    /// What was to go from the host may have gone.
    fn confirm(
        &mut self,
        host: &HostName,
        revision: u64,
        guests: &[ObservedGuest],
        replicas: &[ObservedReplica],
        problems: &[String],
    ) {
        for problem in problems {
            tracing::warn!(%host, problem, "agent could not reconcile");
        }
        let guests: Vec<_> = guests.iter().map(|guest| (guest.name.clone(), guest.generation)).collect();
        let replicas: Vec<_> = replicas.iter().map(|replica| replica.id.clone()).collect();
        let report = Report { guests: &guests, replicas: &replicas, revision, all_done: problems.is_empty() };
        self.record.confirm_removals(host, report);
    }

    /// Only the owner's word on a guest counts, and only at the generation it owns it at.
    fn observe(&mut self, host: &HostName, guests: Vec<ObservedGuest>) {
        for guest in guests {
            let ObservedGuest { name, generation, state, detail } = guest;
            let recorded = self.record.guests().get(&name);
            if recorded.is_some_and(|it| it.host == *host && it.generation == generation) {
                if matches!(state, GuestState::Running | GuestState::Paused | GuestState::Stopped) {
                    self.started(host, &name);
                }
                self.observed.insert(name.clone(), Observation { state, detail });
                if state == GuestState::Stopped {
                    self.begin_what_waited_for(&name, host, generation);
                }
            } else if let Some(unknown) = self.unknown.get_mut(&name).filter(|it| it.host == *host) {
                unknown.observation.state = state;
            }
        }
    }

    /// The guest may have been stopped to be moved: by the plan's source, at the plan's generation. The migration of an older copy of the
    /// record may be over, and the guest another's.
    fn begin_what_waited_for(&mut self, stopped: &GuestName, host: &HostName, generation: Generation) {
        let migration = self.record.guests().get(stopped).and_then(|guest| guest.migration.clone());
        if let Some(migration) = migration.filter(|id| self.is_the_guests_owner(id, host, generation)) {
            self.step_migration(&migration, CoordinatorEvent::GuestStopped);
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
