//! A replica as text.

use std::time::Duration;

use throughline_wire::v1::{Point, Replica, ReplicaTest, TestState};

use crate::{output::Show, units};

fn span(ms: u64) -> String {
    units::span(Duration::from_millis(ms))
}

/// How far it is behind, and whether that is too far.
fn lag(replica: &Replica) -> String {
    match replica.lag_ms {
        None => "LATE, no point".to_owned(),
        Some(lag) if lag > replica.late_ms => format!("{} LATE", span(lag)),
        Some(lag) => span(lag),
    }
}

/// How the next point gets on, if one is under way.
fn under_way(replica: &Replica) -> String {
    match replica.total {
        0 => String::new(),
        total => format!("{} of {}", units::bytes(replica.copied), units::bytes(total)),
    }
}

/// When points are begun.
fn rhythm(replica: &Replica) -> (&'static str, String) {
    match replica.target_lag_ms {
        0 => ("every", span(replica.every_ms.into())),
        target => ("target lag", span(target.into())),
    }
}

fn point(point: &Point) -> String {
    let how = if point.quiesced { "quiesced" } else { "as after a power cut" };
    format!("{} {} {how}", point.number, units::utc(point.at_ms))
}

/// How a test gets on, in a word.
fn state(test: &ReplicaTest) -> &'static str {
    match test.state() {
        TestState::Unspecified | TestState::Starting => "starting",
        TestState::Running => "running",
        TestState::Ending => "ending",
        TestState::Ended => "ended",
        TestState::Failed => "failed",
    }
}

fn is_over(test: &ReplicaTest) -> bool {
    matches!(test.state(), TestState::Ended | TestState::Failed)
}

/// A test under way, for a list.
fn under_test(replica: &Replica) -> String {
    let test = replica.test.as_ref().filter(|test| !is_over(test));
    test.map(|test| format!("{} {}", test.point, state(test))).unwrap_or_default()
}

fn test(test: &ReplicaTest) -> Vec<(&'static str, String)> {
    let (since, ends) = (units::utc(test.since_ms), units::utc(test.ends_ms));
    let until = if is_over(test) { "until" } else { "ends at" };
    let failure = test.failure.as_ref();
    vec![
        ("test", format!("{} of point {}, since {since}, {until} {ends}", state(test), test.point)),
        ("test failure", failure.map(|it| format!("{} ({})", it.message, it.reason)).unwrap_or_default()),
        ("test console", test.console.clone()),
    ]
}

impl Show<9> for Replica {
    const HEADING: [&'static str; 9] =
        ["GUEST", "HOST", "RHYTHM", "POINTS", "NEWEST", "LAG", "UNDER WAY", "TEST", "FAILURE"];

    fn row(&self) -> [String; 9] {
        let (kind, time) = rhythm(self);
        [
            self.guest.clone(),
            self.host.clone(),
            format!("{kind} {time}"),
            format!("{} of {}", self.points.len(), self.keep),
            self.points.last().map(|newest| units::utc(newest.at_ms)).unwrap_or_default(),
            lag(self),
            under_way(self),
            under_test(self),
            self.failure.as_ref().map(|failure| failure.reason.clone()).unwrap_or_default(),
        ]
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        let failure = self.failure.as_ref();
        let bandwidth = if self.bandwidth == 0 { "no limit".to_owned() } else { units::per_second(self.bandwidth) };
        let mut all = vec![
            ("guest", self.guest.clone()),
            ("host", self.host.clone()),
            rhythm(self),
            ("keep", self.keep.to_string()),
            ("bandwidth", bandwidth),
            ("lag", lag(self)),
            ("late beyond", span(self.late_ms)),
            ("under way", under_way(self)),
            ("failure", failure.map(|failure| format!("{} ({})", failure.message, failure.reason)).unwrap_or_default()),
        ];
        all.extend(self.test.iter().flat_map(test));
        all.extend(self.points.iter().map(|it| ("point", point(it))));
        all
    }
}
