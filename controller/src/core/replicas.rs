//! Replicas: admitted, recorded, listed, promoted, and what their hosts say of them.

use std::collections::BTreeMap;

use throughline_cutover::{
    DiskFate, Failure, GuestName, HostName, Point, Power, ReplicaId, ReplicaName, ReplicaToken,
    admission::{self, Denial, NewReplica, PromotionRequest},
};
use uuid::Uuid;

use super::{
    Core, GuestState, GuestView, Observation, ObservedTest, Test,
    resources::{entries_after, page_of},
};
use crate::{
    planner,
    record::{ReplicaRecord, milliseconds},
};

/// A replica as one of its hosts sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedReplica {
    /// Which.
    pub(crate) id: ReplicaId,
    /// Points that are kept there, oldest first.
    pub(crate) points: Vec<Point>,
    /// How sending gets on.
    pub(crate) sent: Sent,
    /// The test that was ordered last.
    pub(crate) test: Option<ObservedTest>,
}

/// How a guest's host gets on with its next point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes that are over.
    pub(crate) copied: u64,
    /// Bytes in all; 0: none is under way.
    pub(crate) total: u64,
    /// Why the last try failed.
    pub(crate) failure: Option<Failure>,
    /// The guest is stopped, and the newest point has all of it.
    pub(crate) at_rest: bool,
}

/// What a replica's two hosts last said of it: of points the one that keeps them, of the next one the guest's.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    points: Vec<Heard>,
    /// The host has said so since it is connected.
    is_certain: bool,
    /// Why its host could not take one.
    not_kept: Option<Failure>,
    sent: Sent,
}

/// A point, and when it was first heard of, milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Heard {
    point: Point,
    heard_ms: u64,
}

impl Seen {
    /// Numbers of the points that can be relied on.
    pub(super) fn certain_points(&self) -> Vec<u64> {
        self.points.iter().filter(|_| self.is_certain).map(|heard| heard.point.number).collect()
    }

    /// How far the newest point is behind. Hosts' clocks differ: a point is no younger than word of it.
    fn lag_ms(&self, power: Power, now_ms: u64) -> Option<u64> {
        let Heard { point, heard_ms } = self.points.last()?;
        let lag = now_ms.saturating_sub(point.at_ms.min(*heard_ms));
        Some(if power != Power::On && self.sent.at_rest { 0 } else { lag })
    }

    /// The host that keeps it speaks; `None`: it has nothing of it.
    fn is_kept(&mut self, said: Option<&ObservedReplica>, now_ms: u64) {
        let known = std::mem::take(&mut self.points);
        let points = said.into_iter().flat_map(|said| &said.points);
        let heard = |point: &Point| {
            let before = known.iter().find(|heard| heard.point == *point).copied();
            before.unwrap_or(Heard { point: *point, heard_ms: now_ms })
        };
        self.points = points.map(heard).collect();
        self.not_kept = said.and_then(|said| said.sent.failure.clone());
        self.is_certain = true;
    }
}

/// A replica as callers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaView {
    /// As recorded.
    pub(crate) record: ReplicaRecord,
    /// Points that are there, oldest first.
    pub(crate) points: Vec<Point>,
    /// How far the newest is behind; `None`: there is none.
    pub(crate) lag_ms: Option<u64>,
    /// How the next one gets on.
    pub(crate) sent: Sent,
    /// Its last test.
    pub(crate) test: Option<Test>,
}

impl Core {
    /// Has a replica kept.
    ///
    /// # Errors
    /// See [`admission::create_replica`].
    pub(crate) fn create_replica(&mut self, wish: NewReplica) -> Result<ReplicaView, Denial> {
        let NewReplica { name, terms } = wish;
        admission::create_replica(self, &name)?;
        let id = Uuid::new_v4().to_string().parse().expect("a UUID is a name");
        let token = ReplicaToken::new(planner::token(&mut rand::rng()));
        let replica = ReplicaRecord { id, name, token, terms };
        self.record.put_replica(replica.clone());
        Ok(self.replica_view(&replica))
    }

    /// One replica.
    ///
    /// # Errors
    /// `UNKNOWN_REPLICA`.
    pub(crate) fn replica(&self, name: &ReplicaName) -> Result<ReplicaView, Denial> {
        self.recorded_replica(name).map(|replica| self.replica_view(replica))
    }

    /// Replicas after a name, of one guest or of all, and whether there are more.
    pub(crate) fn replicas(
        &self,
        after: Option<&ReplicaName>,
        guest: Option<&GuestName>,
        size: usize,
    ) -> (Vec<ReplicaView>, bool) {
        let all = entries_after(self.record.replicas(), after).map(|(_, replica)| replica);
        let wanted = all.filter(|it| guest.is_none_or(|guest| it.name.guest == *guest));
        page_of(wanted.map(|replica| self.replica_view(replica)), size)
    }

    /// Has a replica kept no longer.
    ///
    /// # Errors
    /// See [`admission::delete_replica`].
    pub(crate) fn delete_replica(&mut self, name: &ReplicaName) -> Result<(), Denial> {
        admission::delete_replica(self, name)?;
        self.end_replica(name);
        Ok(())
    }

    /// Fails a guest over to its replica's host.
    ///
    /// # Errors
    /// See [`admission::promote_replica`].
    pub(crate) fn promote_replica(&mut self, request: &PromotionRequest) -> Result<GuestView, Denial> {
        let failover = admission::promote_replica(self, request)?;
        let replica = self.recorded_replica(&request.replica)?.clone();
        let ReplicaName { guest, host } = &replica.name;
        let (point, after) =
            (failover.point, failover.after.iter().map(HostName::as_str).collect::<Vec<_>>().join(", "));
        tracing::warn!(%guest, %host, point, after, "an operator fails the guest over to its replica");
        let detail = match after.as_str() {
            "" => String::new(),
            hosts => format!(
                "waits until its copy has ended on {hosts}; once that is not connected, it can be promoted again"
            ),
        };
        self.want_no_test(&replica.name);
        self.record.promote(&replica, failover);
        let is_on = self.record.guests().get(guest).is_some_and(|it| it.power == Power::On);
        let state = if is_on { GuestState::Starting } else { GuestState::Stopping };
        self.observed.insert(guest.clone(), Observation { state, detail });
        // What was said of the next point was said by the host that it is no longer on.
        for (_, seen) in self.replicas.iter_mut().filter(|(name, _)| name.guest == *guest) {
            seen.sent = Sent::default();
        }
        self.guest(guest)
    }

    /// A replica is no more.
    pub(super) fn end_replica(&mut self, name: &ReplicaName) {
        self.record.end_replica(name);
        self.replicas.remove(name);
        self.tests.remove(name);
    }

    /// Its guest ends while the replica is becoming its disks: it goes as they do.
    pub(super) fn end_replica_as_disks(&mut self, name: &ReplicaName, fate: DiskFate) {
        if fate == DiskFate::Keep {
            self.record.forget_replica(name);
        }
        self.end_replica(name);
    }

    /// A host connects: what it has kept it may have lost meanwhile, and what it was sending it is sending no more.
    pub(super) fn ask_for_points_again(&mut self, host: &HostName) {
        let guests = self.record.guests();
        for (name, seen) in &mut self.replicas {
            if name.host == *host {
                seen.is_certain = false;
            } else if guests.get(&name.guest).is_some_and(|guest| guest.host == *host) {
                seen.sent = Sent::default();
            }
        }
    }

    /// Only the host that keeps a replica is believed on its points, and only its guest's host on how the next one gets on.
    pub(super) fn observe_replicas(&mut self, host: &HostName, said: Vec<ObservedReplica>) {
        let now_ms = milliseconds(self.clock.now());
        let said: BTreeMap<_, _> = said.into_iter().map(|it| (it.id.clone(), it)).collect();
        for (name, replica) in self.record.replicas() {
            let is_source = self.record.guests().get(&name.guest).is_some_and(|guest| guest.host == *host);
            let said = said.get(&replica.id);
            if name.host == *host {
                self.replicas.entry(name.clone()).or_default().is_kept(said, now_ms);
            } else if is_source {
                let sent = said.map(|said| said.sent.clone()).unwrap_or_default();
                self.replicas.entry(name.clone()).or_default().sent = sent;
            }
        }
        self.observe_tests(host, &said, now_ms);
    }

    fn recorded_replica(&self, name: &ReplicaName) -> Result<&ReplicaRecord, Denial> {
        self.record.replicas().get(name).ok_or_else(|| Denial::UnknownReplica { replica: name.clone() })
    }

    fn replica_view(&self, record: &ReplicaRecord) -> ReplicaView {
        let seen = self.replicas.get(&record.name).cloned().unwrap_or_default();
        let power = self.record.guests().get(&record.name.guest).map(|guest| guest.power).unwrap_or_default();
        let lag_ms = seen.lag_ms(power, milliseconds(self.clock.now()));
        let failure = seen.sent.failure.clone().or(seen.not_kept);
        ReplicaView {
            record: record.clone(),
            points: seen.points.iter().map(|heard| heard.point).collect(),
            lag_ms,
            sent: Sent { failure, ..seen.sent },
            test: self.tests.get(&record.name).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use throughline_cutover::Stop;

    use super::*;

    fn kept(points: &[Point]) -> ObservedReplica {
        ObservedReplica { id: "r-1".parse().unwrap(), points: points.to_vec(), sent: Sent::default(), test: None }
    }

    #[test]
    fn a_point_is_no_younger_than_word_of_it() {
        let mut seen = Seen::default();
        assert_eq!(seen.lag_ms(Power::On, 9), None);
        let slow = Point { number: 1, at_ms: 1_000, quiesced: false };
        seen.is_kept(Some(&kept(&[slow])), 1_500);
        assert_eq!(seen.lag_ms(Power::On, 1_800), Some(800));
        let ahead = Point { number: 2, at_ms: 99_000, quiesced: false };
        seen.is_kept(Some(&kept(&[slow, ahead])), 2_000);
        seen.is_kept(Some(&kept(&[ahead])), 3_000);
        assert_eq!(seen.lag_ms(Power::On, 3_500), Some(1_500), "since it was first heard of");
        assert_eq!(seen.certain_points(), [2]);
        seen.is_certain = false;
        assert_eq!((seen.certain_points(), seen.lag_ms(Power::On, 3_500)), (vec![], Some(1_500)));
    }

    #[test]
    fn a_stopped_guest_needs_no_new_points() {
        let mut seen = Seen::default();
        seen.is_kept(Some(&kept(&[Point { number: 1, at_ms: 1_000, quiesced: true }])), 1_000);
        let off = Power::Off(Stop::default());
        assert_eq!(seen.lag_ms(off, 5_000), Some(4_000), "its host has not said that this is all of it");
        seen.sent.at_rest = true;
        assert_eq!(seen.lag_ms(off, 5_000), Some(0));
        assert_eq!(seen.lag_ms(Power::On, 5_000), Some(4_000), "it is started again");
    }
}
