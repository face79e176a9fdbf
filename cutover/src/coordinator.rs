//! The controller's part in one migration: it introduces the two ends, records who owns the guest, tells the peers, and
//! sees both ends clean up. It is not on the path whose length the guest feels, but for telling the peers.
//!
//! ```text
//!  (Stopping ─ the guest has shut down ─►)
//!  Expecting ─ destination expects ─► Started ─ destination committed ─► Telling ─ all peers acked ─► Settling ─ both settled ─► Ended
//!      │                                 │                                  ▲       (or down, or late)                            ▲
//!      └── cancel, deadline, an end ─────┴──► Aborting ─ it had committed ──┘                                                     │
//!          undid its part, lost                  └─ an end says it undid, the other too (or is lost, or late) ────────────────────┘
//! ```
//!
//! Before commit only the ends know who owns the guest. *Aborting* therefore ends by an end's word, never by a deadline: a
//! destination that says it undid its part has declined for ever, a source that says so runs the guest.
//!
//! The source is told of the move last of all: what a peer that has not flipped yet sends arrives at the source through
//! its tunnel, and a bridge does not send a frame back out of the port it came in on.

mod after;
mod before;
mod events;
mod news;
mod plan;
mod stopping;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

pub use events::{CoordinatorEffect, CoordinatorEvent, InvalidRebindId, RebindId};
pub use news::{CutoverReport, News, Phase, Role, Step};
pub use plan::{UNCOUNTED_MARKER, marker_peers};

use serde::{Deserialize, Serialize};

use crate::{Failure, Generation, HostName, MigrationPlan, Progress, StopFirst};
use after::Told;

/// How far the coordinator's own work is; the ends' work shows in [`Phase`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// The guest is being stopped, to be moved then; neither end knows anything.
    Stopping,
    /// The destination has been told; the source knows nothing yet.
    Expecting,
    /// The ends are at it.
    Started,
    /// The ends were told to undo.
    Aborting,
    /// The peers are being told.
    Telling,
    /// The ends were told to settle.
    Settling,
    /// Over.
    Ended,
}

/// One migration at the controller.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Coordinator {
    plan: MigrationPlan,
    phase: Phase,
    stage: Stage,
    /// When the migration began.
    began: Duration,
    /// When the present stage or phase began; deadlines count from here.
    since: Duration,
    /// When what was not answered is sent again.
    resend_at: Option<Duration>,
    /// Hosts that are down count as told from here on.
    excuse_from: Duration,
    /// Every host that has the guest's networks: is its agent connected?
    hosts: BTreeMap<HostName, bool>,
    /// After commit: what each peer has still to acknowledge.
    told: BTreeMap<HostName, Told>,
    /// Ends that have undone their part, or settled.
    answered: BTreeSet<Role>,
    /// Steps that are in the history; a reconnected agent may repeat them.
    noted: BTreeSet<Step>,
    /// A lateness has been reported once.
    late: bool,
    failure: Option<Failure>,
    /// What an end that settled could not keep.
    #[serde(default)]
    lost: Option<Failure>,
    progress: Option<Progress>,
    /// What was done about a guest that does not converge, in order.
    #[serde(default)]
    stalls: Vec<String>,
    source_report: CutoverReport,
    destination_report: CutoverReport,
    settled_at: Option<Duration>,
    /// How the guest is stopped, if it is stopped to be moved.
    #[serde(default)]
    stop_first: Option<StopFirst>,
    /// The controller was restarted while the guest was being stopped. Its record may be an older copy, and the ends further than that.
    #[serde(default)]
    may_have_begun: bool,
    /// The guest has stopped while the destination's agent was away: that is told of the migration when it is back.
    #[serde(default)]
    expect_on_return: bool,
    /// What an operator said became of the guest: it stays.
    #[serde(default)]
    resolved: Option<bool>,
}

impl Coordinator {
    /// The coordinator of an admitted migration; it does nothing before `Begin`.
    pub fn new(plan: MigrationPlan, now: Duration) -> Self {
        Self {
            plan,
            phase: Phase::Preparing,
            stage: Stage::Expecting,
            began: now,
            since: now,
            resend_at: None,
            excuse_from: now,
            hosts: BTreeMap::new(),
            told: BTreeMap::new(),
            answered: BTreeSet::new(),
            noted: BTreeSet::new(),
            late: false,
            failure: None,
            lost: None,
            progress: None,
            stalls: Vec::new(),
            source_report: CutoverReport::default(),
            destination_report: CutoverReport::default(),
            settled_at: None,
            stop_first: None,
            may_have_begun: false,
            expect_on_return: false,
            resolved: None,
        }
    }

    /// That of a guest that is being stopped to be moved: it begins when the guest has stopped.
    #[must_use]
    pub fn after_its_stop(self, stop: StopFirst) -> Self {
        Self { phase: Phase::Stopping, stage: Stage::Stopping, stop_first: Some(stop), ..self }
    }

    /// Who has the guest by what has come of this migration so far, and at which generation.
    pub fn owner(&self) -> (&HostName, Generation) {
        let before = self.plan.generation;
        match (self.phase, self.resolved) {
            (Phase::Committed | Phase::Settling | Phase::Done, _) => (self.host_of(Role::Destination), before.next()),
            (_, Some(true)) => (self.host_of(Role::Source), before.next().next()),
            (_, _) => (self.host_of(Role::Source), before),
        }
    }

    /// The plan both ends were told.
    pub fn plan(&self) -> &MigrationPlan {
        &self.plan
    }

    /// Where the migration is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// It is being undone, and no end has said so far that it undid its part, nor an operator what became of it.
    pub fn is_unresolved(&self) -> bool {
        self.stage == Stage::Aborting && !self.answered.contains(&Role::Destination) && self.resolved.is_none()
    }

    /// Latest progress of memory.
    pub fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }

    /// How often memory was found not to converge, with the figures, and what was done about it each time.
    pub fn stalls(&self) -> &[String] {
        &self.stalls
    }

    /// Why it was or is being aborted, why settling is late, or what was lost though the guest has moved.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What both ends have counted so far.
    pub fn report(&self) -> CutoverReport {
        let mut report = self.source_report.joined(&self.destination_report);
        report.settled_at_ns = self.settled_at.map(nanoseconds).unwrap_or_default();
        report
    }

    /// Takes an event, returns what to do about it, in order. `now`: time since 1970.
    pub fn step(&mut self, event: CoordinatorEvent, now: Duration) -> Vec<CoordinatorEffect> {
        if self.stage == Stage::Ended {
            return self.repeat_the_end(&event);
        }
        match event {
            CoordinatorEvent::Begin { hosts } => self.begin(hosts, now),
            CoordinatorEvent::News(news) => self.news(*news, now),
            CoordinatorEvent::RebindAck { host, port, outcome } => self.rebind_ack(&host, port, outcome, now),
            CoordinatorEvent::HostLost(host) => self.host_lost(&host, now),
            CoordinatorEvent::HostBack(host) => self.host_back(host, now),
            CoordinatorEvent::GuestStopped => self.guest_stopped(now),
            CoordinatorEvent::Cancel(failure) => match self.stage {
                Stage::Stopping => self.cancel_stopping(failure, now),
                Stage::Expecting | Stage::Started => self.abort(failure, now),
                Stage::Aborting | Stage::Telling | Stage::Settling | Stage::Ended => Vec::new(),
            },
            CoordinatorEvent::Resolve { guest_stays } => self.resolve(guest_stays, now),
            CoordinatorEvent::Restarted => self.restarted(now),
            CoordinatorEvent::Tick => self.tick(now),
        }
    }

    /// When to `Tick` next, time since 1970; `None`: only an event can bring it on.
    pub fn next_deadline(&self) -> Option<Duration> {
        match self.stage {
            Stage::Stopping | Stage::Expecting | Stage::Started | Stage::Aborting => self.deadline_before_commit(),
            Stage::Telling | Stage::Settling => self.deadline_after_commit(),
            Stage::Ended => None,
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        match self.stage {
            Stage::Stopping => self.tick_stopping(now),
            Stage::Expecting | Stage::Started => self.overdue(now),
            Stage::Aborting => self.tick_aborting(now),
            Stage::Telling => self.tick_telling(now),
            Stage::Settling => self.tick_settling(now),
            Stage::Ended => Vec::new(),
        }
    }

    fn news(&mut self, news: News, now: Duration) -> Vec<CoordinatorEffect> {
        let mut effects = Vec::new();
        if self.stage == Stage::Stopping {
            effects = self.is_further(&news, now);
            if self.stage == Stage::Stopping {
                return effects;
            }
        }
        effects.extend(self.news_of_a_move(news, now));
        effects
    }

    fn news_of_a_move(&mut self, news: News, now: Duration) -> Vec<CoordinatorEffect> {
        let report = match news.role {
            Role::Source => &mut self.source_report,
            Role::Destination => &mut self.destination_report,
        };
        report.advance(&news.report);
        match (news.role, news.step) {
            (Role::Destination, Step::Expecting) => self.expecting(now),
            (Role::Source, Step::Progress) => {
                self.progress = news.progress.or(self.progress.take());
                vec![CoordinatorEffect::Progressed]
            }
            (Role::Source, Step::Stalled) => self.stalled(news.failure, now),
            (Role::Source, Step::Precopy) => {
                let what = if self.plan.cold { "disks are being copied" } else { "memory is being copied" };
                self.advance(Phase::Precopy, what, now)
            }
            (Role::Source, Step::Armed) => self.advance(Phase::Armed, "frames for the guest are held", now),
            (Role::Source, Step::Paused) => self.advance(Phase::Paused, "the guest is paused", now),
            (Role::Source, Step::LineEmpty) => self.note(Step::LineEmpty, "the source's line is empty"),
            (Role::Destination, Step::Committed) => {
                self.committed(news.generation.unwrap_or(self.plan.generation.next()), now)
            }
            (Role::Destination, Step::Running) => {
                let mut effects = self.committed(self.plan.generation.next(), now);
                if self.resolved != Some(true) {
                    effects.push(CoordinatorEffect::GuestRuns);
                }
                effects.extend(self.note(Step::Running, "the guest runs at the destination"));
                effects
            }
            (Role::Destination, Step::GateOpen) => {
                let mut effects = self.committed(self.plan.generation.next(), now);
                effects.extend(self.note(Step::GateOpen, "the gate is open: nothing older can follow"));
                effects
            }
            (role, Step::Settled) => {
                let mut effects = news.failure.map(|lost| self.lost_with(role, lost)).unwrap_or_default();
                effects.extend(self.settled(role, now));
                effects
            }
            (role, Step::Aborted) => self.undone(role, news.failure, now),
            (Role::Source, Step::Expecting | Step::Committed | Step::Running | Step::GateOpen)
            | (
                Role::Destination,
                Step::Precopy | Step::Progress | Step::Stalled | Step::Armed | Step::Paused | Step::LineEmpty,
            ) => {
                let (role, step) = (self.end_name(news.role), news.step);
                vec![self.event(format!("{role} reported {step:?}, which is not its to report; ignored"))]
            }
        }
    }

    fn host_lost(&mut self, host: &HostName, now: Duration) -> Vec<CoordinatorEffect> {
        if self.hosts.insert(host.clone(), false) == Some(false) {
            return Vec::new();
        }
        match (self.stage, self.role_of(host)) {
            (Stage::Expecting | Stage::Started | Stage::Aborting, Some(role)) => self.end_lost(role, now),
            (Stage::Expecting | Stage::Started | Stage::Aborting, None) | (Stage::Stopping | Stage::Ended, _) => {
                Vec::new()
            }
            (Stage::Telling, _) => self.peer_lost(host, now),
            (Stage::Settling, Some(_)) => {
                vec![self.event(format!("the agent of {host} is gone; waiting for it to return and settle"))]
            }
            (Stage::Settling, None) => Vec::new(),
        }
    }

    fn host_back(&mut self, host: HostName, now: Duration) -> Vec<CoordinatorEffect> {
        self.hosts.insert(host.clone(), true);
        match (self.stage, self.role_of(&host)) {
            (Stage::Aborting, Some(role)) => self.abort_again(role),
            (Stage::Expecting, Some(Role::Destination)) if mem::take(&mut self.expect_on_return) => {
                vec![CoordinatorEffect::Expect]
            }
            (Stage::Stopping | Stage::Expecting | Stage::Started | Stage::Aborting | Stage::Ended, _) => Vec::new(),
            (Stage::Telling, _) => self.tell_returned(&host, now),
            (Stage::Settling, Some(role)) => self.settle_again(role, now),
            (Stage::Settling, None) => self.tell_returned(&host, now),
        }
    }

    /// Deadlines begin anew: the controller cannot hold its own absence against anyone.
    fn restarted(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        self.hosts.values_mut().for_each(|connected| *connected = false);
        self.may_have_begun |= self.stage == Stage::Stopping;
        // Wall time may have been set meanwhile: what was read off it before says nothing now.
        self.began = now.saturating_sub(self.since.saturating_sub(self.began));
        self.resend_at = self.resend_at.map(|_| now);
        self.since = now;
        self.excuse_from = now + after::RETURN_GRACE;
        vec![self.event("the controller was restarted; waiting for the agents to report".to_owned())]
    }

    /// An end that speaks of a migration that is over missed its end: tell it again. One that has ended its part by now has ignored
    /// until then what was wanted of the guest.
    fn repeat_the_end(&self, event: &CoordinatorEvent) -> Vec<CoordinatorEffect> {
        let CoordinatorEvent::News(news) = event else { return Vec::new() };
        let role = news.role;
        match (self.phase, news.step) {
            (_, Step::Settled | Step::Aborted) => vec![CoordinatorEffect::RefreshEnd { role }],
            (Phase::Done, _) => vec![CoordinatorEffect::Settle { role }],
            // It had committed all the same. It ends its part, and then, by the record's order, the guest.
            (Phase::Aborted, _) if self.resolved == Some(true) && role == Role::Destination => {
                vec![CoordinatorEffect::Settle { role }]
            }
            (_, _) => vec![CoordinatorEffect::Abort { role, failure: self.reason_or_unknown() }],
        }
    }

    fn reason_or_unknown(&self) -> Failure {
        self.failure
            .clone()
            .unwrap_or_else(|| Failure::new("MIGRATION_ENDED", "the migration has ended; undo your part"))
    }

    fn role_of(&self, host: &HostName) -> Option<Role> {
        [Role::Source, Role::Destination].into_iter().find(|role| self.host_of(*role) == host)
    }

    /// The host that plays a role.
    pub fn host_of(&self, role: Role) -> &HostName {
        match role {
            Role::Source => &self.plan.source.host,
            Role::Destination => &self.plan.destination.host,
        }
    }

    fn end_name(&self, role: Role) -> String {
        match role {
            Role::Source => format!("the source {}", self.plan.source.host),
            Role::Destination => format!("the destination {}", self.plan.destination.host),
        }
    }

    fn connected(&self, host: &HostName) -> bool {
        self.hosts.get(host).copied().unwrap_or(false)
    }

    fn event(&self, message: String) -> CoordinatorEffect {
        CoordinatorEffect::Event { phase: self.phase, message }
    }

    /// A line in the history, once.
    fn note(&mut self, step: Step, message: &str) -> Vec<CoordinatorEffect> {
        if self.noted.insert(step) { vec![self.event(message.to_owned())] } else { Vec::new() }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
