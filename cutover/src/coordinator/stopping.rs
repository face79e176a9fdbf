//! Before a move that its guest is stopped for: wait until it has, or leave it where it is.

use std::time::Duration;

use super::{Coordinator, CoordinatorEffect, News, Phase, Role, Stage, Step};
use crate::{Failure, RunsOn, StopFirst};

impl Coordinator {
    /// Only now does the move begin, and its deadline with it.
    pub(super) fn guest_stopped(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        if self.stage != Stage::Stopping {
            return Vec::new();
        }
        (self.stage, self.phase) = (Stage::Expecting, Phase::Preparing);
        (self.began, self.since) = (now, now);
        // One that is away, as all are when the controller has just started, has its time to return.
        self.expect_on_return = !self.connected(self.host_of(Role::Destination));
        let mut effects = vec![self.event("the guest has stopped; it moves".to_owned())];
        effects.extend((!self.expect_on_return).then_some(CoordinatorEffect::Expect));
        effects
    }

    /// Neither end has been told anything, so that nothing it says counts or is worth a word. Unless this record is an older copy: then
    /// what only an end of a move under way can say is believed.
    pub(super) fn is_further(&mut self, news: &News, now: Duration) -> Vec<CoordinatorEffect> {
        let is_a_movers = match news.role {
            Role::Source => !matches!(news.step, Step::Expecting | Step::Committed | Step::Running | Step::GateOpen),
            Role::Destination => {
                matches!(news.step, Step::Committed | Step::Running | Step::GateOpen | Step::Settled | Step::Aborted)
            }
        };
        if !self.may_have_begun || !is_a_movers {
            return Vec::new();
        }
        (self.stage, self.phase) = (Stage::Started, Phase::Preparing);
        (self.began, self.since) = (now, now);
        vec![self.event(format!("{} is at the move already: this record is an older copy", self.end_name(news.role)))]
    }

    /// Ends it while the guest is being stopped. If nobody has been told anything there is nothing to undo; an older copy of the record
    /// does not know whether somebody has.
    pub(super) fn give_up_stopping(&mut self, failure: Failure, now: Duration) -> Vec<CoordinatorEffect> {
        if self.may_have_begun {
            return self.abort(failure, now);
        }
        (self.stage, self.phase) = (Stage::Ended, Phase::Aborted);
        self.failure = Some(failure.clone());
        vec![self.event(format!("undone: {}", failure.message)), CoordinatorEffect::Aborted { failure }]
    }

    /// Somebody wants it undone while the guest is being stopped.
    pub(super) fn cancel_stopping(&mut self, failure: Failure, now: Duration) -> Vec<CoordinatorEffect> {
        let words = format!("{}; {}", failure.message, self.runs_on());
        self.give_up_stopping(Failure::new(&failure.reason, words), now)
    }

    pub(super) fn stop_deadline(&self) -> Duration {
        self.since + self.stop_first.map(StopFirst::patience).unwrap_or_default()
    }

    pub(super) fn tick_stopping(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        if now < self.stop_deadline() {
            return Vec::new();
        }
        let source = &self.plan.source.host;
        let next = match self.stop_first.map(|stop| stop.otherwise) {
            Some(RunsOn::Cut) => format!(
                "its power should have been cut: see that the agent of {source} is connected, and its log, then migrate again"
            ),
            Some(RunsOn::Stay) | None => format!(
                "see that it heeds ACPI's power button and that the agent of {source} is connected, then migrate again, with more \
                 time for it, or with its power cut after that"
            ),
        };
        let within = self.stop_first.map(StopFirst::patience).unwrap_or_default();
        let words = format!(
            "{} was not reported as stopped within {within:?}; {}; {next}",
            self.plan.guest.name,
            self.runs_on()
        );
        self.give_up_stopping(Failure::new("GUEST_DID_NOT_STOP", words), now)
    }

    /// What becomes of a guest that has been asked to shut down, and is not to any more.
    fn runs_on(&self) -> String {
        format!("it runs on at {}, and boots there again if it shuts down after all", self.plan.source.host)
    }

    /// What becomes, when a move is undone, of a guest that had been stopped for it: whoever gave the reason may not know that.
    pub(super) fn and_is_started_again(&self, mut failure: Failure) -> Failure {
        if self.stop_first.is_some() && matches!(self.stage, Stage::Expecting | Stage::Started) {
            failure.message +=
                &format!("; the guest, stopped for this move, is started at {} again", self.plan.source.host);
        }
        failure
    }
}
