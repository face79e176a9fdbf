//! What the tests of the datapath share.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod crafted;
pub(crate) mod frames;
pub(crate) mod netns;
pub(crate) mod queues;
pub(crate) mod second_port;
pub(crate) mod tap;
pub(crate) mod topology;
pub(crate) mod underlay;
pub(crate) mod whole_way;

use std::time::{Duration, Instant};

/// Waits until `condition` holds, at most five seconds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
