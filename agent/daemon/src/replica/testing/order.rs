//! What is ordered of the tests of a replica, and how it gets on.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use throughline_cutover::{Failure, ReplicaTest, TestState};
use throughline_wire::v1;
use tokio::{sync::watch, time::Instant};

use crate::lock::lock;

/// A test that was ordered.
#[derive(Debug)]
pub(super) struct Test {
    wanted: ReplicaTest,
    deadline: Instant,
    is_to_end: watch::Sender<bool>,
    seen: watch::Sender<Seen>,
}

/// How it gets on.
#[derive(Debug, Clone)]
struct Seen {
    state: TestState,
    failure: Option<Failure>,
    console: String,
}

impl Test {
    fn new(wanted: ReplicaTest) -> Self {
        let deadline = Instant::now() + Duration::from_millis(wanted.for_ms.into());
        let seen = Seen { state: TestState::Starting, failure: None, console: String::new() };
        Self { wanted, deadline, is_to_end: watch::Sender::new(false), seen: watch::Sender::new(seen) }
    }

    /// Which point it boots.
    pub(super) fn point(&self) -> u64 {
        self.wanted.point
    }

    /// When its time is over.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_over(&self) -> bool {
        self.seen.borrow().state.is_over()
    }

    /// It is to end. Can be repeated.
    pub(super) fn end(&self) {
        self.is_to_end.send_replace(true);
    }

    /// Returns when it is to end.
    pub(super) async fn end_is_wanted(&self) {
        let mut told = self.is_to_end.subscribe();
        drop(told.wait_for(|is_to_end| *is_to_end).await);
    }

    /// Returns when nothing of it is left.
    pub(super) async fn ends(&self) {
        let mut seen = self.seen.subscribe();
        drop(seen.wait_for(|seen| seen.state.is_over()).await);
    }

    /// Its guest runs, and writes to that console.
    pub(super) fn runs(&self, console: String) {
        self.seen.send_replace(Seen { state: TestState::Running, failure: None, console });
    }

    /// Nothing is left of it.
    pub(super) fn ended(&self, failure: Option<Failure>) {
        let state = if failure.is_some() { TestState::Failed } else { TestState::Ended };
        self.seen.send_replace(Seen { state, failure, console: String::new() });
    }

    fn observed(&self) -> v1::ObservedTest {
        let Seen { state, failure, console } = self.seen.borrow().clone();
        let state = if *self.is_to_end.borrow() && !state.is_over() { TestState::Ending } else { state };
        let (id, failure) = (self.wanted.id.to_string(), failure.map(Into::into));
        v1::ObservedTest { id, state: v1::TestState::from(state).into(), failure, console }
    }
}

/// The test of one replica.
#[derive(Debug, Default)]
pub(in crate::replica) struct Testing(Mutex<Option<Arc<Test>>>);

impl Testing {
    /// The one there is.
    pub(super) fn now(&self) -> Option<Arc<Test>> {
        lock(&self.0).clone()
    }

    /// Has the one that is wanted and no other: gives it if it is to begin, and what is to be over before. One that is over is known for as
    /// long as it is wanted, so that it is not begun again.
    pub(super) fn want(&self, wanted: Option<ReplicaTest>) -> Option<(Arc<Test>, Option<Arc<Test>>)> {
        let mut now = lock(&self.0);
        if let Some(test) = &*now
            && wanted.as_ref().is_none_or(|wanted| wanted.id != test.wanted.id)
        {
            test.end();
        }
        match (wanted, &*now) {
            (Some(wanted), Some(test)) if test.wanted.id == wanted.id => None,
            (Some(wanted), _) => {
                let test = Arc::new(Test::new(wanted));
                Some((test.clone(), now.replace(test)))
            }
            (None, Some(test)) if test.is_over() => {
                *now = None;
                None
            }
            (None, _) => None,
        }
    }

    /// The point that is not to go.
    pub(in crate::replica) fn point(&self) -> Option<u64> {
        self.now().filter(|test| !test.is_over()).map(|test| test.wanted.point)
    }

    /// What is told of it.
    pub(in crate::replica) fn observed(&self) -> Option<v1::ObservedTest> {
        self.now().map(|test| test.observed())
    }

    /// Ends it, if there is one; nothing of it is left when this returns.
    pub(in crate::replica) async fn end(&self) {
        if let Some(test) = self.now() {
            test.end();
            test.ends().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(id: &str) -> Option<ReplicaTest> {
        Some(ReplicaTest { id: id.parse().unwrap(), point: 7, for_ms: 60_000 })
    }

    #[test]
    fn there_is_one_test_and_it_is_begun_once() {
        let testing = Testing::default();
        assert!(testing.want(None).is_none() && testing.point().is_none());
        let (first, before) = testing.want(wish("t-1")).expect("it begins");
        assert!(before.is_none() && testing.want(wish("t-1")).is_none(), "it has begun");
        assert_eq!((testing.point(), *first.is_to_end.borrow()), (Some(7), false));

        let (second, before) = testing.want(wish("t-2")).expect("another one begins");
        assert!(*first.is_to_end.borrow() && before.is_some_and(|it| Arc::ptr_eq(&it, &first)), "after the first");
        second.ended(Some(Failure::new("HYPERVISOR", "no")));
        assert!(testing.want(wish("t-2")).is_none(), "what is over is not begun again while it is wanted");
        assert_eq!(testing.point(), None, "and its point may go");
        let told = testing.observed().expect("it is told of");
        assert_eq!(
            (told.state(), told.failure.map(|it| it.reason)),
            (v1::TestState::Failed, Some("HYPERVISOR".into()))
        );
        assert!(testing.want(None).is_none() && testing.observed().is_none(), "then it is forgotten");
    }

    #[test]
    fn one_that_is_wanted_no_more_is_told_of_until_nothing_is_left() {
        let testing = Testing::default();
        let (test, _) = testing.want(wish("t-1")).expect("it begins");
        assert!(testing.want(None).is_none());
        assert_eq!(testing.observed().map(|it| it.state()), Some(v1::TestState::Ending));
        assert_eq!(testing.point(), Some(7));
        test.ended(None);
        assert_eq!(testing.observed().map(|it| it.state()), Some(v1::TestState::Ended));
        testing.want(None);
        assert_eq!(testing.observed(), None);
    }
}
