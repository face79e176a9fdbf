//! The controller's one mind: the record, the connected agents and what is under way. Only the driver's task touches it,
//! one job at a time, and no job waits for anything.
//!
//! A job changes the record in memory; [`Core::flush`] hands the changes to the writer. Whatever may be told only once
//! the changes are durable (answers, orders to agents) is deferred until the writer says so. `Rebind` alone is not: the
//! destination has recorded its commit by itself, and its gate waits for the peers.

mod agents;
mod command;
mod migrations;
mod replica_tests;
mod replicas;
mod resources;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    time::{Duration, SystemTime},
};

pub(crate) use agents::{ObservedGuest, Uplink};
pub(crate) use command::Standing;
use command::{Stranger, UnknownGuest};
pub(crate) use migrations::Chapter;
pub(crate) use replica_tests::{ObservedTest, Test};
use replicas::Seen;
pub(crate) use replicas::{ObservedReplica, ReplicaView, Sent};
use throughline_cutover::{GuestName, HostName, ReplicaName};
use tokio::{sync::watch, time::Instant};
pub(crate) use view::{GuestState, GuestView, HostView, Observation};

use crate::{
    audit::Audit,
    desired::desired,
    links::Links,
    record::Record,
    store::{Batch, Writer},
};

/// Something to be done once everything before it is durable.
type Deferred = Box<dyn FnOnce(&mut Core) + Send>;

/// What the operator decided about what may be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// May hosts nobody announced join?
    pub(crate) open_enrolment: bool,
    /// The record was restored from a copy: hosts that have guests at newer generations are believed.
    pub(crate) restored: bool,
    /// Migrations that are over and kept with all that happened; the oldest go first.
    pub(crate) keep_migrations: usize,
    /// Migrations that one operator asked for and that have not ended.
    pub(crate) migrations_per_operator: u32,
}

/// The controller's state. See the module.
pub(crate) struct Core {
    record: Record,
    links: Links,
    observed: BTreeMap<GuestName, Observation>,
    /// What hosts last said of replicas.
    replicas: BTreeMap<ReplicaName, Seen>,
    /// The last test of each that was tested in this life.
    tests: BTreeMap<ReplicaName, Test>,
    /// Guests that hosts have and the record does not know.
    unknown: BTreeMap<GuestName, UnknownGuest>,
    /// Hosts that belong to another fabric.
    strangers: BTreeMap<HostName, Stranger>,
    /// The record is an older copy: what hosts say of guests is newer.
    is_old: bool,
    /// Hosts commanded in this life.
    commanded: BTreeSet<HostName>,
    standing: watch::Sender<Standing>,
    /// Live migrations, with the number of the last thing that happened to each.
    live: BTreeMap<String, watch::Sender<u64>>,
    policy: Policy,
    audit: Audit,
    clock: Clock,
    writer: Writer,
    /// Number of the last batch handed to the writer, and of the last that is durable.
    written: u64,
    durable: u64,
    deferred: Vec<Deferred>,
    waiting: VecDeque<(u64, Deferred)>,
    push_desired: bool,
}

impl Core {
    /// A mind with what the record holds. Live migrations go on when their agents report.
    pub(crate) fn new(
        record: Record,
        writer: Writer,
        standing: watch::Sender<Standing>,
        heartbeat: Duration,
        policy: Policy,
        audit: Audit,
    ) -> Self {
        let mut core = Self {
            record,
            links: Links::new(heartbeat),
            observed: BTreeMap::new(),
            replicas: BTreeMap::new(),
            tests: BTreeMap::new(),
            unknown: BTreeMap::new(),
            strangers: BTreeMap::new(),
            is_old: policy.restored,
            commanded: BTreeSet::new(),
            standing,
            live: BTreeMap::new(),
            policy,
            audit,
            clock: Clock::start(),
            writer,
            written: 0,
            durable: 0,
            deferred: Vec::new(),
            waiting: VecDeque::new(),
            push_desired: false,
        };
        core.record.outline_oldest(policy.keep_migrations);
        core.resume_migrations();
        core
    }

    /// Does something once all changes made so far are durable.
    pub(crate) fn when_durable(&mut self, action: impl FnOnce(&mut Self) + Send + 'static) {
        self.deferred.push(Box::new(action));
    }

    /// The writer says that everything up to this batch is durable.
    pub(crate) fn became_durable(&mut self, number: u64) {
        self.durable = self.durable.max(number);
    }

    /// Time has passed: looks after silent agents, overdue migrations and tests.
    pub(crate) fn tick(&mut self) {
        if self.has_stood_down() {
            return;
        }
        let now = self.clock.now();
        let due = |id: &&String| {
            let migration = self.record.migrations().get(*id);
            migration.and_then(|it| it.coordinator.next_deadline()).is_some_and(|at| at <= now)
        };
        let due: Vec<String> = self.live.keys().filter(due).cloned().collect();
        for id in due {
            self.tick_migration(&id);
        }
        self.end_tests_in_time();
    }

    /// When to tick next.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        if self.has_stood_down() {
            return None;
        }
        let migrations = self.live.keys().filter_map(|id| self.record.migrations().get(id));
        let deadline = migrations.filter_map(|it| it.coordinator.next_deadline()).min();
        let deadlines = [deadline, self.next_end_of_a_test()].map(|at| at.map(|at| self.clock.instant(at)));
        deadlines.into_iter().chain([self.links.next_check()]).flatten().min()
    }

    /// Brings to an end what jobs have begun: changes go to the writer, what is durable is acted on, agents that stopped
    /// reading are cut off, and each agent is sent the desired state it does not have yet.
    pub(crate) fn flush(&mut self) {
        loop {
            self.submit_changes();
            self.act_on_durable();
            let silent = self.links.silent();
            for (host, session) in &silent {
                self.detach(host, *session, None);
            }
            if silent.is_empty() && self.deferred.is_empty() && !self.push_desired {
                return;
            }
            if mem::take(&mut self.push_desired) {
                self.send_desired_states();
            }
        }
    }

    fn submit_changes(&mut self) {
        let changes = self.record.take_changes();
        if !changes.is_empty() {
            self.written += 1;
            self.writer.submit(Batch { number: self.written, changes });
            self.want_desired_states();
        }
        let number = self.written;
        self.waiting.extend(mem::take(&mut self.deferred).into_iter().map(|action| (number, action)));
    }

    fn act_on_durable(&mut self) {
        while self.waiting.front().is_some_and(|(number, _)| *number <= self.durable) {
            if let Some((_, action)) = self.waiting.pop_front() {
                action(self);
            }
        }
    }

    /// Desired states are sent after what was deferred before them, many changes in one.
    fn want_desired_states(&mut self) {
        self.when_durable(|core| core.push_desired = true);
    }

    fn send_desired_states(&mut self) {
        let revision = self.record.revision();
        let unknown = self.unknown_bindings();
        for host in self.links.hosts() {
            let mut state = desired(&self.record, &unknown, &host);
            for keeping in state.replicas.iter_mut().filter(|keeping| keeping.source.is_some()) {
                let name = ReplicaName { guest: keeping.spec.name.clone(), host: host.clone() };
                keeping.test = self.wanted_test(&name);
            }
            self.links.send_desired(&host, revision, state);
        }
    }

    /// Every host, with whether its agent is connected.
    fn connections(&self) -> Vec<(HostName, bool)> {
        self.record.hosts().keys().map(|host| (host.clone(), self.links.is_connected(host))).collect()
    }
}

/// Time since 1970 that does not jump while the process runs.
#[derive(Debug, Clone, Copy)]
struct Clock {
    started: Instant,
    since_1970: Duration,
}

impl Clock {
    fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), since_1970 }
    }

    fn now(&self) -> Duration {
        self.since_1970 + self.started.elapsed()
    }

    /// The moment that is `at`; one that has passed is now.
    fn instant(&self, at: Duration) -> Instant {
        Instant::now() + at.saturating_sub(self.now())
    }
}
