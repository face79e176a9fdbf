//! A guest that dirties its memory faster than it can be sent: recognised early, and dealt with as the caller said.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{GUEST, Lab};
use crate::probe::Probe;

/// 16 MiB, rewritten as fast as a translated guest can, some 20 MB a second: more than the wire takes, and sending them once
/// takes longer than the pause that is allowed.
const BUSY: &str = "tl.memory=16 tl.dirty=32768";
const NARROW: [&str; 2] = ["--bandwidth", "12MiB"];
/// Far longer than the verdict may take.
const VERDICT: Duration = Duration::from_secs(60);

fn stalls(migration: &Value) -> Vec<&str> {
    migration["stalls"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Moves the busy guest over the narrow wire with more flags; the answer, and the migration as it ended.
fn moved(lab: &Lab, to: &str, flags: &[&str]) -> (i32, Value) {
    let begun = Instant::now();
    let answer = lab.throughline(&[&["migrate", GUEST, "--to", to][..], &NARROW, flags].concat());
    let code = answer.code;
    let mut list = lab.throughline(&["migration", "list", "--guest", GUEST]).done();
    let migration = list["migrations"][0].take();
    println!("{flags:?}: {} after {:?}, {}", migration["phase"], begun.elapsed(), migration["progress"]);
    stalls(&migration).iter().for_each(|stall| println!("  {stall}"));
    println!("  {}", migration["failure"]);
    let report = &migration["report"];
    if let (Some(stopped), Some(ran)) = (report["stopped_at_ns"].as_u64(), report["running_at_ns"].as_u64()) {
        println!("  pause {} ms", ran.saturating_sub(stopped) / 1_000_000);
    }
    (code, migration)
}

#[test]
fn a_guest_too_busy_for_the_wire_is_dealt_with_as_asked() {
    let lab = Lab::up("stall");
    lab.boot_guest_with(BUSY, &[]);
    let mut probe = Probe::start(&lab);

    let begun = Instant::now();
    let (code, given_up) = moved(&lab, "h2", &[]);
    assert!(begun.elapsed() < VERDICT, "the deadline is 300 s, the verdict took {:?}", begun.elapsed());
    assert_eq!((code, given_up["failure"]["reason"].as_str()), (7, Some("NOT_CONVERGING")), "{given_up:#}");
    let why = given_up["failure"]["message"].as_str().unwrap();
    for number in ["bytes/s of memory", "bytes/s are sent", "the pause to expect is", "300 ms are allowed", "passes"] {
        assert!(why.contains(number), "{number}: {why}");
    }
    lab.assert_runs_on("h1");
    lab.assert_no_qemu("h2");
    probe.assert_unnoticed(&lab, "a move that did not converge was given up");

    let (code, longer) = moved(&lab, "h2", &["--on-stall", "longer-pause", "--longest-pause-at-most", "3000"]);
    assert_eq!((code, &longer["phase"]), (0, &"DONE".into()), "{longer:#}");
    assert!(stalls(&longer).iter().all(|it| it.contains("ms are allowed from now on")), "{longer:#}");
    assert!(!stalls(&longer).is_empty(), "it cannot have converged: {longer:#}");
    lab.assert_runs_on("h2");
    probe.assert_unnoticed(&lab, "a busy guest moved with a longer pause");

    let (code, throttled) = moved(&lab, "h1", &["--on-stall", "throttle"]);
    assert_eq!((code, &throttled["phase"]), (0, &"DONE".into()), "{throttled:#}");
    assert!(stalls(&throttled).iter().all(|it| it.contains("its processors are slowed by")), "{throttled:#}");
    assert!(throttled["progress"]["throttle_percent"].as_u64() >= Some(20), "QEMU was told to: {throttled:#}");
    lab.assert_runs_on("h1");
    probe.assert_unnoticed(&lab, "a busy guest moved slowed");
}
