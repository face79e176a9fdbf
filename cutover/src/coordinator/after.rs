//! After commit: record the owner, tell the peers at once, the source last, then settle.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Coordinator, CoordinatorEffect, Phase, Role, Stage, UNCOUNTED_MARKER};
use crate::{Failure, Generation, HostName};

/// How often a peer that has not acknowledged is told again.
const REBIND_AGAIN: Duration = Duration::from_secs(1);
/// How long a connected peer may take to acknowledge before the ends settle without it.
const REBIND_DEADLINE: Duration = Duration::from_secs(10);
/// How long agents have to reconnect after the controller's own restart before they count as down.
pub(super) const RETURN_GRACE: Duration = Duration::from_secs(5);
/// How often an end is told again to settle.
const SETTLE_AGAIN: Duration = Duration::from_secs(5);
/// When settling counts as late.
const SETTLE_LATE: Duration = Duration::from_secs(30);
/// How long an end that is down is waited for.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// What a peer has still to acknowledge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    /// Ports, by their place in the plan.
    waiting: BTreeSet<usize>,
    /// Why it could not last time.
    refused: Option<Failure>,
}

impl Coordinator {
    /// The destination's word that it owns the guest: the one point of no return.
    pub(super) fn committed(&mut self, generation: Generation, now: Duration) -> Vec<CoordinatorEffect> {
        if matches!(self.stage, Stage::Telling | Stage::Settling | Stage::Ended) {
            return Vec::new();
        }
        if self.resolved == Some(true) {
            let words =
                format!("{} committed all the same; the guest stays, its copy ends", self.end_name(Role::Destination));
            return vec![self.event(words), CoordinatorEffect::Settle { role: Role::Destination }];
        }
        if generation != self.plan.generation.next() {
            let (end, ours) = (self.end_name(Role::Destination), self.plan.generation.next());
            return vec![self.event(format!("{end} committed generation {generation}, not {ours}; ignored"))];
        }
        self.phase = Phase::Committed;
        self.stage = Stage::Telling;
        self.since = now;
        self.excuse_from = now;
        self.resend_at = Some(now + REBIND_AGAIN);
        self.failure = None;
        self.late = false;
        self.answered.clear();
        let mut effects = vec![CoordinatorEffect::RecordOwner { generation }];
        let peers: Vec<_> = self.hosts.keys().filter(|host| self.role_of(host).is_none()).cloned().collect();
        for host in &peers {
            effects.extend(self.tell(host));
        }
        effects.push(self.event(format!("{} owns the guest", self.plan.destination.host)));
        effects.extend(self.get_on_telling(now));
        effects
    }

    /// `Rebind` for what this peer has not acknowledged; all of it, if it was never told.
    fn tell(&mut self, host: &HostName) -> Vec<CoordinatorEffect> {
        let all = || Told { waiting: (0..self.plan.ports.len()).collect(), refused: None };
        let told = self.told.entry(host.clone()).or_insert_with(all);
        if !self.hosts.get(host).copied().unwrap_or(false) {
            return Vec::new();
        }
        let ports = told.waiting.iter().copied();
        ports
            .map(|port| CoordinatorEffect::Rebind {
                host: host.clone(),
                port,
                marker_index: self.plan.ports[port]
                    .markers
                    .iter()
                    .find(|peer| peer.host == *host)
                    .map_or(UNCOUNTED_MARKER, |peer| peer.index),
            })
            .collect()
    }

    pub(super) fn rebind_ack(
        &mut self,
        host: &HostName,
        port: usize,
        outcome: Result<(), Failure>,
        now: Duration,
    ) -> Vec<CoordinatorEffect> {
        let Some(told) = self.told.get_mut(host) else { return Vec::new() };
        match outcome {
            Ok(()) if told.waiting.remove(&port) => self.get_on_telling(now),
            Ok(()) => Vec::new(),
            Err(failure) => {
                let message = format!("{host} could not rebind yet: {failure}");
                let first = told.refused.replace(failure).is_none();
                if first { vec![self.event(message)] } else { Vec::new() }
            }
        }
    }

    pub(super) fn peer_lost(&mut self, host: &HostName, now: Duration) -> Vec<CoordinatorEffect> {
        let mut effects = vec![self.event(format!("the agent of {host} is gone; it is told when it returns"))];
        effects.extend(self.get_on_telling(now));
        effects
    }

    /// A host came (back) after commit: it is told, but for the destination, which knows, and the source before its turn.
    pub(super) fn tell_returned(&mut self, host: &HostName, now: Duration) -> Vec<CoordinatorEffect> {
        match self.role_of(host) {
            Some(Role::Destination) => Vec::new(),
            Some(Role::Source) if !self.told.contains_key(host) => self.get_on_telling(now),
            Some(Role::Source) | None => self.tell(host),
        }
    }

    /// Nothing is waited for from this host: it acknowledged, or it is down and that is no news.
    fn is_told(&self, host: &HostName, now: Duration) -> bool {
        let acked = self.told.get(host).is_none_or(|told| told.waiting.is_empty());
        acked || (!self.connected(host) && now >= self.excuse_from)
    }

    /// Tells the source when its turn has come, and settles when all is told. The source's turn comes only when every
    /// other peer has *acknowledged*: what a peer that has not flipped sends comes in by the source's VXLAN port, and a
    /// bridge that leads back to that port drops it. While one is down the source settles unflipped: it carries until
    /// nothing comes, and its own entry follows with its desired state.
    fn get_on_telling(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        if self.stage != Stage::Telling {
            return Vec::new();
        }
        let source = self.plan.source.host.clone();
        let mut effects = Vec::new();
        let others = || self.told.iter().filter(|(host, _)| **host != source);
        let others_told = others().all(|(host, _)| self.is_told(host, now));
        let others_acked = others().all(|(_, told)| told.waiting.is_empty());
        if !self.told.contains_key(&source) && others_acked {
            effects.extend(self.tell(&source));
        }
        let source_done = self.told.contains_key(&source) && self.is_told(&source, now);
        if others_told && (source_done || !others_acked) {
            effects.extend(self.settle(now));
        }
        effects
    }

    pub(super) fn tick_telling(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        if now >= self.since + REBIND_DEADLINE {
            return self.settle(now);
        }
        let mut effects = Vec::new();
        if self.resend_at.is_some_and(|at| now >= at) {
            self.resend_at = Some(now + REBIND_AGAIN);
            let told: Vec<_> = self.told.keys().cloned().collect();
            told.iter().for_each(|host| effects.extend(self.tell(host)));
        }
        effects.extend(self.get_on_telling(now));
        effects
    }

    fn settle(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        let missing: Vec<_> = self.told.iter().filter(|(_, told)| !told.waiting.is_empty()).collect();
        let message = if missing.is_empty() {
            "every peer was told".to_owned()
        } else {
            let hosts: Vec<_> = missing.iter().map(|(host, _)| host.as_str()).collect();
            format!("settling without {}: their desired state tells them", hosts.join(", "))
        };
        self.stage = Stage::Settling;
        self.phase = Phase::Settling;
        self.since = now;
        self.resend_at = Some(now + SETTLE_AGAIN);
        let mut effects = vec![self.event(message)];
        effects.extend(self.settle_again(Role::Source, now));
        effects.extend(self.settle_again(Role::Destination, now));
        effects.extend(self.end_settled(now));
        effects
    }

    /// `Settle` to an end that has not settled. The destination's turn comes when the source has settled, or has been gone
    /// for so long that nothing it carries is waited for: until then its frames must land.
    pub(super) fn settle_again(&self, role: Role, now: Duration) -> Vec<CoordinatorEffect> {
        if self.answered.contains(&role) || !self.connected(self.host_of(role)) {
            return Vec::new();
        }
        let source_may_carry = !self.answered.contains(&Role::Source)
            && (self.connected(self.host_of(Role::Source)) || now < self.since + SETTLE_DEADLINE);
        if role == Role::Destination && source_may_carry {
            return Vec::new();
        }
        let mut effects = Vec::new();
        if let (Role::Source, Some(guest_stays)) = (role, self.resolved) {
            effects.push(CoordinatorEffect::Resolve { guest_stays });
        }
        effects.push(CoordinatorEffect::Settle { role });
        effects
    }

    /// An end says nothing of the move is left there.
    pub(super) fn settled(&mut self, role: Role, now: Duration) -> Vec<CoordinatorEffect> {
        let mut effects = match role {
            Role::Destination => self.committed(self.plan.generation.next(), now),
            Role::Source => Vec::new(),
        };
        if !matches!(self.stage, Stage::Telling | Stage::Settling) || !self.answered.insert(role) {
            return effects;
        }
        effects.push(self.event(format!("{} has settled", self.end_name(role))));
        if self.stage == Stage::Settling && role == Role::Source {
            effects.extend(self.settle_again(Role::Destination, now));
        }
        effects.extend(self.end_settled(now));
        effects
    }

    /// An end that settled says what went with it.
    pub(super) fn lost_with(&mut self, role: Role, lost: Failure) -> Vec<CoordinatorEffect> {
        if self.lost.is_some() || !matches!(self.stage, Stage::Telling | Stage::Settling) {
            return Vec::new();
        }
        let message = format!("{}: {}", self.end_name(role), lost.message);
        self.lost = Some(lost);
        vec![self.event(message)]
    }

    fn end_settled(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        if self.stage != Stage::Settling || self.answered.len() < 2 {
            return Vec::new();
        }
        self.failure = self.lost.clone();
        self.finish(now, "moved".to_owned())
    }

    fn finish(&mut self, now: Duration, message: String) -> Vec<CoordinatorEffect> {
        self.settled_at = Some(now);
        self.stage = Stage::Ended;
        self.phase = Phase::Done;
        vec![CoordinatorEffect::Refresh, self.event(message), CoordinatorEffect::Done]
    }

    pub(super) fn tick_settling(&mut self, now: Duration) -> Vec<CoordinatorEffect> {
        let missing = [Role::Source, Role::Destination].into_iter().filter(|role| !self.answered.contains(role));
        let missing: Vec<_> = missing.map(|role| self.host_of(role).clone()).collect();
        let names = missing.iter().map(HostName::as_str).collect::<Vec<_>>().join(" and ");
        if now >= self.since + SETTLE_DEADLINE && missing.iter().all(|host| !self.connected(host)) {
            let words = format!("{names} did not settle before its agent was gone; it cleans up when it returns");
            self.failure = Some(Failure::new("SETTLE_UNCONFIRMED", words.clone()));
            return self.finish(now, words);
        }
        let mut effects = Vec::new();
        if !self.late && now >= self.since + SETTLE_LATE {
            self.late = true;
            let words = format!("{names} has not settled after {} s; see its agent's log", SETTLE_LATE.as_secs());
            self.failure = Some(Failure::new("SETTLE_LATE", words.clone()));
            effects.push(self.event(words));
        }
        if self.resend_at.is_some_and(|at| now >= at) {
            self.resend_at = Some(now + SETTLE_AGAIN);
            effects.extend(self.settle_again(Role::Source, now));
            effects.extend(self.settle_again(Role::Destination, now));
        }
        effects
    }

    pub(super) fn deadline_after_commit(&self) -> Option<Duration> {
        if self.stage == Stage::Settling {
            return self.resend_at;
        }
        let give_up = Some(self.since + REBIND_DEADLINE);
        [self.resend_at, give_up].into_iter().flatten().min()
    }
}
