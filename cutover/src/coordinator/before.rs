//! Before commit: introduce the ends, watch the time, undo.

use std::{collections::BTreeMap, time::Duration};

use super::{Coordinator, CoordinatorEffect, Phase, Role, Stage};
use crate::{Failure, HostName};

/// For the destination to take the plan.
const EXPECT_DEADLINE: Duration = Duration::from_secs(10);
/// For the source to call the destination and begin to copy.
const PREPARE_DEADLINE: Duration = Duration::from_secs(30);
/// For the time frames are held or the guest is paused, beyond the pause the caller allows. The source's own watchdog is shorter.
const CUTOVER_GRACE: Duration = Duration::from_secs(10);
/// How long an end whose word is no longer needed may take to undo its part.
const ABORT_PATIENCE: Duration = Duration::from_secs(10);
/// Most stalls that are told: no policy has as many steps.
const MOST_STALLS: usize = 64;
/// How often an end is told again.
const ABORT_AGAIN: Duration = Duration::from_secs(5);

impl Coordinator {
    pub(super) fn begin(&mut self, hosts: BTreeMap<HostName, bool>, now: Duration) -> Vec<CoordinatorEffect> {
        self.hosts = hosts;
        self.began = now;
        self.since = now;
        let message = format!("accepted: from {} to {}", self.plan.source.host, self.plan.destination.host);
        if self.stage == Stage::Stopping {
            return vec![self.event(format!("{message}, once it is stopped: the guest is asked to shut down"))];
        }
        vec![self.event(message), CoordinatorEffect::Expect]
    }

    /// The destination has taken the plan; from one that was not told it yet that is no answer.
    pub(super) fn expecting(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        if self.stage != Stage::Expecting || self.expect_on_return {
            return Vec::new();
        }
        self.stage = Stage::Started;
        self.since = now;
        vec![CoordinatorEffect::Start, self.event("the destination expects the guest".to_owned())]
    }

    /// The source got on to a later phase; repeated and late reports change nothing.
    pub(super) fn advance(&mut self, phase: Phase, message: &str, now: Duration) -> Vec<CoordinatorEffect> {
        if self.phase >= phase || self.stage != Stage::Started {
            return Vec::new();
        }
        self.phase = phase;
        self.since = now;
        vec![self.event(message.to_owned())]
    }

    /// Memory does not converge, and the source takes the next step of the caller's policy.
    pub(super) fn stalled(&mut self, figures: Option<Failure>, now: Duration) -> Vec<CoordinatorEffect> {
        // Of a reconnected agent it may be the first that is heard.
        let mut effects = self.advance(Phase::Precopy, "memory is being copied", now);
        let figures = figures.filter(|_| self.stage == Stage::Started && self.stalls.len() < MOST_STALLS);
        // A repeated report is the last one again.
        if let Some(Failure { message, .. }) = figures.filter(|it| self.stalls.last() != Some(&it.message)) {
            self.stalls.push(message.clone());
            effects.push(self.event(message));
        }
        effects
    }

    /// Orders both ends to undo; the source only if it knows of the migration.
    pub(super) fn abort(&mut self, failure: Failure, now: Duration) -> Vec<CoordinatorEffect> {
        let failure = self.and_is_started_again(failure);
        let mut effects = vec![self.event(format!("undoing: {}", failure.message))];
        if self.stage == Stage::Expecting && !self.may_have_begun {
            self.answered.insert(Role::Source);
        }
        self.stage = Stage::Aborting;
        self.since = now;
        self.resend_at = Some(now + ABORT_AGAIN);
        self.failure = Some(failure);
        effects.extend(self.abort_again(Role::Destination));
        effects.extend(self.abort_again(Role::Source));
        effects.extend(self.end_abort(now));
        effects
    }

    /// An operator's word ends what the destination cannot. What is recorded fences the destination, should it return: the
    /// guest stays at a generation above the one that it can have committed.
    pub(super) fn resolve(&mut self, guest_stays: bool, now: Duration) -> Vec<CoordinatorEffect> {
        if !self.is_unresolved() {
            return Vec::new();
        }
        self.resolved = Some(guest_stays);
        let committed = self.plan.generation.next();
        let (source, destination) = (self.end_name(Role::Source), self.end_name(Role::Destination));
        if !guest_stays {
            let mut effects = vec![self.event(format!("by an operator's word the guest runs at {destination}"))];
            effects.push(CoordinatorEffect::Resolve { guest_stays });
            effects.extend(self.committed(committed, now));
            return effects;
        }
        self.answered.insert(Role::Destination);
        let mut effects = vec![
            CoordinatorEffect::FenceDestination { generation: committed.next(), ended: committed },
            self.event(format!("by an operator's word the guest stays at {source}")),
        ];
        effects.extend(self.abort_again(Role::Source));
        effects.extend(self.end_abort(now));
        effects
    }

    /// `Abort` to an end that has not answered it, or the operator's word if there is one.
    pub(super) fn abort_again(&self, role: Role) -> Vec<CoordinatorEffect> {
        if self.answered.contains(&role) || !self.connected(self.host_of(role)) {
            return Vec::new();
        }
        if let (Role::Source, Some(guest_stays)) = (role, self.resolved) {
            return vec![CoordinatorEffect::Resolve { guest_stays }];
        }
        vec![CoordinatorEffect::Abort { role, failure: self.reason_or_unknown() }]
    }

    /// An end says it undid its part.
    pub(super) fn undone(&mut self, role: Role, failure: Option<Failure>, now: Duration) -> Vec<CoordinatorEffect> {
        let end = self.end_name(role);
        if matches!(self.stage, Stage::Telling | Stage::Settling) {
            return vec![self.event(format!("{end} says it undid its part after commit; the record stands"))];
        }
        if !self.answered.insert(role) {
            return Vec::new();
        }
        if self.stage == Stage::Aborting {
            let mut effects = vec![self.event(format!("{end} has undone its part"))];
            effects.extend(self.end_abort(now));
            return effects;
        }
        let unexplained = || Failure::new("END_ABORTED", format!("{end} undid its part without a reason; see its log"));
        self.abort(failure.unwrap_or_else(unexplained), now)
    }

    /// Before commit an end that is silent proves nothing, unless nothing can have happened yet. In other stages its silence is
    /// another's to judge.
    pub(super) fn end_lost(&mut self, role: Role, now: Duration) -> Vec<CoordinatorEffect> {
        let (host, other) = (self.host_of(role), self.host_of(role.other()));
        match self.stage {
            Stage::Expecting => {
                let words = format!("the agent of {host} is gone; nothing was moved, try again when it is back");
                self.abort(Failure::new("HOST_LOST", words), now)
            }
            Stage::Aborting => {
                let mut effects = vec![self.event(format!("the agent of {host} is gone while undoing"))];
                effects.extend(self.end_abort(now));
                effects
            }
            Stage::Started => {
                let words = format!("the agent of {host} is gone; waiting for its return or the word of {other}");
                vec![self.event(words)]
            }
            Stage::Stopping | Stage::Telling | Stage::Settling | Stage::Ended => Vec::new(),
        }
    }

    pub(super) fn deadline_before_commit(&self) -> Option<Duration> {
        match self.stage {
            Stage::Stopping => Some(self.stop_deadline()),
            Stage::Expecting => Some((self.since + EXPECT_DEADLINE).min(self.whole_deadline())),
            Stage::Aborting if self.late => self.resend_at,
            Stage::Aborting => self.resend_at.map(|at| at.min(self.since + ABORT_PATIENCE)),
            Stage::Started => Some(self.started_deadline().0),
            Stage::Telling | Stage::Settling | Stage::Ended => None,
        }
    }

    /// Aborts by name if the present phase took too long.
    pub(super) fn overdue(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        let (at, reason, what) = match self.stage {
            Stage::Expecting if now < self.whole_deadline() => {
                (self.since + EXPECT_DEADLINE, "PREPARE_TIMED_OUT", "the destination did not take the plan")
            }
            _ => self.started_deadline(),
        };
        if now < at {
            return Vec::new();
        }
        let mut words = format!(
            "{what} within {} s; undone, unless the destination has committed",
            (at - self.since.min(at)).as_secs()
        );
        if let (Phase::Precopy, Some(progress)) = (self.phase, &self.progress) {
            words += &format!("; {progress}, {} ms are allowed", self.plan.limits.pause_at_most_ms());
        }
        self.abort(Failure::new(reason, words), now)
    }

    fn whole_deadline(&self) -> Duration {
        self.began + Duration::from_millis(self.plan.limits.deadline_ms.into())
    }

    /// Whichever comes first: the phase's own deadline or the whole migration's.
    fn started_deadline(&self) -> (Duration, &'static str, &'static str) {
        let pause = Duration::from_millis(self.plan.limits.pause_at_most_ms().into());
        let whole = (self.whole_deadline(), "DEADLINE_EXCEEDED", "the migration did not commit");
        let phase = match self.phase {
            Phase::Preparing => {
                (self.since + PREPARE_DEADLINE, "PREPARE_TIMED_OUT", "the source did not begin to copy")
            }
            Phase::Armed | Phase::Paused => {
                (self.since + pause + CUTOVER_GRACE, "CUTOVER_TIMED_OUT", "the pause did not lead to a commit")
            }
            Phase::Stopping | Phase::Precopy | Phase::Committed | Phase::Settling | Phase::Done | Phase::Aborted => {
                whole
            }
        };
        if phase.0 <= whole.0 { phase } else { whole }
    }

    pub(super) fn tick_aborting(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        let mut effects = self.end_abort(now);
        if self.stage == Stage::Ended {
            return effects;
        }
        if !self.late && now >= self.since + ABORT_PATIENCE {
            self.late = true;
            let (source, destination) = (self.end_name(Role::Source), self.end_name(Role::Destination));
            effects.push(self.event(format!(
                "neither {source} nor {destination} has said that it undid its part; waiting for the word of one of them"
            )));
        }
        if self.resend_at.is_some_and(|at| now >= at) {
            self.resend_at = Some(now + ABORT_AGAIN);
            effects.extend(self.abort_again(Role::Destination));
            effects.extend(self.abort_again(Role::Source));
        }
        effects
    }

    /// Over when one end's word has decided it and the other has answered, is gone, or has had its time.
    fn end_abort(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        let late = now >= self.since + ABORT_PATIENCE;
        // The source waits for the operator's word as it would for the destination's: it is not left alone before it has it.
        if self.resolved.is_some() && !self.answered.contains(&Role::Source) {
            return Vec::new();
        }
        let ready = |role: Role| self.answered.contains(&role) || late || !self.connected(self.host_of(role));
        if self.answered.is_empty() || !ready(Role::Source) || !ready(Role::Destination) {
            return Vec::new();
        }
        self.stage = Stage::Ended;
        self.phase = Phase::Aborted;
        let failure = self.reason_or_unknown();
        let message = format!("undone, the guest stays at {}", self.plan.source.host);
        vec![CoordinatorEffect::Refresh, self.event(message), CoordinatorEffect::Aborted { failure }]
    }
}
