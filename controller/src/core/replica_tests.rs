//! Tests of replicas. They are in memory alone: a controller that is restarted wants none, so that those under way end, and so does one
//! whose host is lost sight of, for nobody could say any more what there is of it.

use std::{collections::BTreeMap, time::Duration};

use throughline_cutover::{
    Failure, HostName, ReplicaId, ReplicaName, ReplicaTest, TestId, TestState,
    admission::{self, Denial, TestRequest},
};
use uuid::Uuid;

use super::{Core, ObservedReplica, ReplicaView};
use crate::record::milliseconds;

/// A test as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedTest {
    /// Which.
    pub(crate) id: TestId,
    /// How it gets on.
    pub(crate) state: TestState,
    /// Why it failed.
    pub(crate) failure: Option<Failure>,
    /// Where its guest's console is written.
    pub(crate) console: String,
}

/// The last test of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Test {
    wish: ReplicaTest,
    is_wanted: bool,
    /// Its guest was seen to run, or somebody ended it before: else it has shown nothing.
    is_settled: bool,
    /// When it was asked for, milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// When it is to end, or has.
    pub(crate) ends_ms: u64,
    /// How it gets on.
    pub(crate) state: TestState,
    /// Why it fails or has failed.
    pub(crate) failure: Option<Failure>,
    /// Where its guest's console is written.
    pub(crate) console: String,
}

impl Test {
    fn new(wish: ReplicaTest, now_ms: u64) -> Self {
        let (ends_ms, state) = (now_ms + u64::from(wish.for_ms), TestState::Starting);
        let (is_wanted, is_settled, failure, console) = (true, false, None, String::new());
        Self { wish, is_wanted, is_settled, since_ms: now_ms, ends_ms, state, failure, console }
    }

    /// Number of the point.
    pub(crate) fn point(&self) -> u64 {
        self.wish.point
    }

    /// It is wanted no more.
    fn end(&mut self) {
        self.is_wanted = false;
        if !self.state.is_over() {
            self.state = TestState::Ending;
        }
    }

    /// Nobody hears of it for now.
    fn is_lost(&mut self, host: &HostName) {
        if !self.state.is_over() {
            self.end();
            let message = format!("the agent of host {host} was lost sight of, and ends the test; begin another one");
            self.failure = Some(Failure::new("HOST_DOWN", message));
        }
    }

    /// Its host speaks; `None`: it has nothing of it. True: it has ended, and was not to.
    fn hear(&mut self, said: Option<&ObservedTest>, now_ms: u64) -> bool {
        if self.state.is_over() {
            return false;
        }
        let said = said.filter(|it| it.id == self.wish.id);
        // What it was not told yet it has not begun.
        let is_over = said.map_or(!self.is_wanted, |it| it.state.is_over());
        if let Some(said) = said {
            self.failure = self.failure.take().or_else(|| said.failure.clone());
            self.console.clone_from(&said.console);
            self.is_settled |= said.state == TestState::Running;
        }
        if is_over {
            if !self.is_settled && self.failure.is_none() {
                let message = "its guest was not seen to run; see the agent's log on the replica's host, and give it more time (--for)";
                self.failure = Some(Failure::new("TEST_NOT_BEGUN", message));
            }
            let fails = self.failure.is_some();
            (self.state, self.ends_ms) = (if fails { TestState::Failed } else { TestState::Ended }, now_ms);
            self.console.clear();
            return std::mem::take(&mut self.is_wanted);
        }
        if let Some(said) = said.filter(|_| self.is_wanted) {
            self.state = said.state;
        }
        false
    }
}

impl Core {
    /// Has a replica tested.
    ///
    /// # Errors
    /// See [`admission::test_replica`].
    pub(crate) fn test_replica(&mut self, request: &TestRequest) -> Result<ReplicaView, Denial> {
        let point = admission::test_replica(self, request)?;
        let id = Uuid::new_v4().to_string().parse().expect("a UUID is a name");
        let wish = ReplicaTest { id, point, for_ms: request.for_ms };
        let test = Test::new(wish, milliseconds(self.clock.now()));
        self.tests.insert(request.replica.clone(), test);
        self.want_desired_states();
        self.replica(&request.replica)
    }

    /// Ends a test.
    ///
    /// # Errors
    /// See [`admission::end_replica_test`].
    pub(crate) fn end_replica_test(&mut self, name: &ReplicaName) -> Result<ReplicaView, Denial> {
        admission::end_replica_test(self, name)?;
        self.want_no_test(name);
        self.replica(name)
    }

    /// A replica's test, if there is one, ends by somebody's word.
    pub(super) fn want_no_test(&mut self, name: &ReplicaName) {
        if let Some(test) = self.tests.get_mut(name) {
            test.is_settled = true;
            test.end();
            self.want_desired_states();
        }
    }

    /// A host connects, or is lost: whoever is there then begins no test that another was told of.
    pub(super) fn lose_tests(&mut self, host: &HostName) {
        let there = self.tests.iter_mut().filter(|(name, _)| name.host == *host);
        there.for_each(|(_, test)| test.is_lost(host));
    }

    /// Only the host that keeps a replica is believed on its test.
    pub(super) fn observe_tests(&mut self, host: &HostName, said: &BTreeMap<ReplicaId, ObservedReplica>, now_ms: u64) {
        let mut has_news = false;
        for (name, test) in self.tests.iter_mut().filter(|(name, _)| name.host == *host) {
            let said = self.record.replicas().get(name).and_then(|replica| said.get(&replica.id));
            has_news |= test.hear(said.and_then(|said| said.test.as_ref()), now_ms);
        }
        if has_news {
            self.want_desired_states();
        }
    }

    /// Tests whose time is over end.
    pub(super) fn end_tests_in_time(&mut self) {
        let now_ms = milliseconds(self.clock.now());
        let mut some_end = false;
        for test in self.tests.values_mut().filter(|it| it.is_wanted && it.ends_ms <= now_ms) {
            test.end();
            some_end = true;
        }
        if some_end {
            self.want_desired_states();
        }
    }

    /// When the next of them is over.
    pub(super) fn next_end_of_a_test(&self) -> Option<Duration> {
        self.tests.values().filter(|it| it.is_wanted).map(|it| Duration::from_millis(it.ends_ms)).min()
    }

    /// What the host is to test. One that is becoming its guest's disks is not tested.
    pub(super) fn wanted_test(&self, name: &ReplicaName) -> Option<ReplicaTest> {
        self.tests.get(name).filter(|it| it.is_wanted).map(|it| it.wish.clone())
    }

    /// Whether a replica's test is not over.
    pub(super) fn is_tested(&self, name: &ReplicaName) -> bool {
        self.tests.get(name).is_some_and(|it| !it.state.is_over())
    }

    /// Memory of the guests that a host runs for tests, KiB; a guest that has failed over to it has its own.
    pub(super) fn memory_of_tests_kib(&self, host: &HostName) -> u64 {
        let there = self.tests.keys().filter(|name| name.host == *host && self.is_tested(name));
        let guests = there.filter_map(|name| self.record.guests().get(&name.guest));
        guests.filter(|guest| guest.host != *host).map(|guest| guest.spec.memory_kib).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test() -> Test {
        Test::new(ReplicaTest { id: "t-1".parse().unwrap(), point: 7, for_ms: 60_000 }, 1_000)
    }

    fn said(id: &str, state: TestState) -> ObservedTest {
        let failure = (state == TestState::Failed).then(|| Failure::new("NO_ROOM", "no room"));
        ObservedTest { id: id.parse().unwrap(), state, failure, console: "/c".to_owned() }
    }

    #[test]
    fn a_test_is_as_its_host_says_and_over_when_nothing_is_left() {
        use TestState::{Ended, Ending, Failed, Running, Starting};
        let mut it = test();
        assert!(!it.hear(None, 1_100) && it.state == Starting, "its host has not begun it");
        assert!(!it.hear(Some(&said("t-0", Ended)), 1_100) && it.state == Starting, "another one's end");
        assert!(!it.hear(Some(&said("t-1", Running)), 2_000));
        assert_eq!((it.state, &*it.console, it.ends_ms), (Running, "/c", 61_000));
        it.end();
        assert!(!it.hear(Some(&said("t-1", Running)), 3_000) && it.state == Ending, "it has not heard yet");
        assert!(!it.hear(None, 4_000) && it.state == Ended);
        assert_eq!((&*it.console, it.ends_ms), ("", 4_000));
        it.is_lost(&"h2".parse().unwrap());
        assert_eq!((it.state, &it.failure), (Ended, &None), "it was over by then");

        let mut it = test();
        assert!(it.hear(Some(&said("t-1", Failed)), 2_000), "its host is to forget it");
        assert_eq!((it.state, it.failure.map(|it| it.reason), it.is_wanted), (Failed, Some("NO_ROOM".into()), false));
    }

    #[test]
    fn one_that_never_ran_has_shown_nothing() {
        let mut it = test();
        it.end();
        assert!(!it.hear(None, 61_000) && it.state == TestState::Failed);
        assert_eq!(it.failure.map(|it| it.reason), Some("TEST_NOT_BEGUN".into()));
    }

    #[test]
    fn one_that_was_lost_sight_of_ends_and_has_failed() {
        let mut it = test();
        it.is_lost(&"h2".parse().unwrap());
        assert_eq!((it.state, it.is_wanted), (TestState::Ending, false));
        assert!(!it.hear(Some(&said("t-1", TestState::Running)), 2_000) && it.state == TestState::Ending);
        assert!(!it.hear(None, 3_000) && it.state == TestState::Failed);
        assert_eq!(it.failure.map(|it| it.reason), Some("HOST_DOWN".into()));
    }
}
