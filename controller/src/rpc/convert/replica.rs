//! Replicas: what callers are told of them, and what hosts say.

use throughline_wire::{
    InvalidField, Problem, limits::MOST_REPLICAS, observed_test, parsed, points, rhythm_fields, v1,
};

use super::{told, words};
use crate::core::{ObservedReplica, ObservedTest, ReplicaView, Sent, Test};

impl From<ReplicaView> for v1::Replica {
    fn from(view: ReplicaView) -> Self {
        let ReplicaView { record, points, lag_ms, sent, test } = view;
        let (every_ms, target_lag_ms) = rhythm_fields(record.terms.rhythm);
        Self {
            guest: record.name.guest.into(),
            host: record.name.host.into(),
            every_ms,
            keep: record.terms.keep,
            bandwidth: record.terms.bandwidth,
            points: points.into_iter().map(Into::into).collect(),
            lag_ms,
            copied: sent.copied,
            total: sent.total,
            failure: sent.failure.map(Into::into),
            late_ms: record.terms.late_ms(),
            target_lag_ms,
            test: test.map(Into::into),
        }
    }
}

impl From<Test> for v1::ReplicaTest {
    fn from(test: Test) -> Self {
        Self {
            point: test.point(),
            since_ms: test.since_ms,
            ends_ms: test.ends_ms,
            state: v1::TestState::from(test.state).into(),
            failure: test.failure.map(Into::into),
            console: test.console,
        }
    }
}

impl TryFrom<v1::ObservedTest> for ObservedTest {
    type Error = InvalidField;
    fn try_from(test: v1::ObservedTest) -> Result<Self, InvalidField> {
        let (id, state) = observed_test(&test)?;
        let failure = test.failure.map(|failure| told(failure).into());
        Ok(Self { id, state, failure, console: words(&test.console) })
    }
}

impl TryFrom<v1::ObservedReplica> for ObservedReplica {
    type Error = InvalidField;
    fn try_from(replica: v1::ObservedReplica) -> Result<Self, InvalidField> {
        let v1::ObservedReplica { copied, total, at_rest, .. } = replica;
        let failure = replica.failure.map(|failure| told(failure).into());
        let (id, points) = (parsed("id", &replica.id)?, points(replica.points)?);
        let test = replica.test.map(TryInto::try_into).transpose().map_err(|e: InvalidField| e.within("test"))?;
        Ok(Self { id, points, sent: Sent { copied, total, failure, at_rest }, test })
    }
}

/// Checks all that a host says of replicas.
pub(super) fn observed(replicas: Vec<v1::ObservedReplica>) -> Result<Vec<ObservedReplica>, InvalidField> {
    if replicas.len() > MOST_REPLICAS {
        let (value, most) = (replicas.len() as u64, MOST_REPLICAS as u64);
        let range = Problem::Range { value, least: 0, most, unit: "replicas a host" };
        return Err(InvalidField::new("observed.replicas", range));
    }
    let replicas = replicas.into_iter().enumerate();
    let read = replicas.map(|(at, replica)| {
        ObservedReplica::try_from(replica).map_err(|e| e.within(format_args!("observed.replicas[{at}]")))
    });
    read.collect()
}
