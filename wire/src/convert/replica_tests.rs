//! Tests of replicas: what is asked for, what the host is told, and how it gets on.

use throughline_cutover::{ReplicaTest, TestId, TestState, admission::TestRequest};

use super::{
    field::{InvalidField, parse, within},
    replicas::replica_name,
};
use crate::v1;

/// How long a test lasts if nobody says, milliseconds.
const USUAL_FOR_MS: u32 = 300_000;

impl TryFrom<v1::TestReplicaRequest> for TestRequest {
    type Error = InvalidField;
    fn try_from(request: v1::TestReplicaRequest) -> Result<Self, InvalidField> {
        let v1::TestReplicaRequest { guest, host, point, for_ms } = request;
        let for_ms = lasting(if for_ms == 0 { USUAL_FOR_MS } else { for_ms })?;
        Ok(Self { replica: replica_name(&guest, &host)?, point: (point != 0).then_some(point), for_ms })
    }
}

fn lasting(for_ms: u32) -> Result<u32, InvalidField> {
    within("for_ms", for_ms.into(), 1_000..=86_400_000, "milliseconds")?;
    Ok(for_ms)
}

impl TryFrom<v1::DesiredTest> for ReplicaTest {
    type Error = InvalidField;
    fn try_from(desired: v1::DesiredTest) -> Result<Self, InvalidField> {
        let v1::DesiredTest { id, point, for_ms } = desired;
        within("point", point, 1..=u64::MAX, "points")?;
        Ok(Self { id: parse("id", &id)?, point, for_ms: lasting(for_ms)? })
    }
}

impl From<ReplicaTest> for v1::DesiredTest {
    fn from(test: ReplicaTest) -> Self {
        Self { id: test.id.into(), point: test.point, for_ms: test.for_ms }
    }
}

impl From<TestState> for v1::TestState {
    fn from(state: TestState) -> Self {
        match state {
            TestState::Starting => Self::Starting,
            TestState::Running => Self::Running,
            TestState::Ending => Self::Ending,
            TestState::Ended => Self::Ended,
            TestState::Failed => Self::Failed,
        }
    }
}

impl From<v1::TestState> for TestState {
    fn from(state: v1::TestState) -> Self {
        match state {
            // One that a newer agent has a name for is under way.
            v1::TestState::Unspecified | v1::TestState::Starting => Self::Starting,
            v1::TestState::Running => Self::Running,
            v1::TestState::Ending => Self::Ending,
            v1::TestState::Ended => Self::Ended,
            v1::TestState::Failed => Self::Failed,
        }
    }
}

/// Which test an agent speaks of, and how it says that it gets on. Its words are the caller's to cut.
///
/// # Errors
/// The id is none.
pub fn observed_test(test: &v1::ObservedTest) -> Result<(TestId, TestState), InvalidField> {
    Ok((parse("id", &test.id)?, test.state().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_of_a_point_and_for_a_time() {
        let test = |point, for_ms| v1::TestReplicaRequest { guest: "db-1".into(), host: "h2".into(), point, for_ms };
        let read = |point, for_ms| TestRequest::try_from(test(point, for_ms)).expect("good");
        assert_eq!((read(0, 0).point, read(0, 0).for_ms), (None, 300_000));
        assert_eq!((read(7, 1_000).point, read(7, 86_400_000).for_ms), (Some(7), 86_400_000));
        let field =
            |request: v1::TestReplicaRequest| TestRequest::try_from(request).expect_err("must be refused").field;
        assert_eq!(field(test(0, 999)), "for_ms");
        assert_eq!(field(test(0, 86_400_001)), "for_ms");
        assert_eq!(field(v1::TestReplicaRequest { guest: String::new(), ..test(0, 0) }), "guest");
        assert_eq!(field(v1::TestReplicaRequest { host: "h2;".into(), ..test(0, 0) }), "host");
    }

    #[test]
    fn what_an_agent_says_of_a_test_is_read() {
        let said = v1::ObservedTest { id: "t-1".into(), state: v1::TestState::Running.into(), ..Default::default() };
        let read = observed_test(&said).expect("good");
        assert_eq!((read.0.as_str(), read.1), ("t-1", TestState::Running));
        assert_eq!(
            observed_test(&v1::ObservedTest { state: 99, ..said.clone() }).expect("good").1,
            TestState::Starting
        );
        let nameless = v1::ObservedTest { id: "../t".into(), ..said };
        assert_eq!(observed_test(&nameless).expect_err("must be refused").field, "id");
    }
}
