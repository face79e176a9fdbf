//! A cancelled move is undone within a second, whenever before commit that comes; after it the answer is "too late".

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::lab::{GUEST, GUEST_ADDRESS, Lab, wait_for};
use crate::probe::Probe;

/// From the command to the end.
const SOON_MS: u64 = 1_000;
/// Moments of a move at which it is cancelled, and how far they lie apart: a whole move takes about as long as all of them.
const MOMENTS: u32 = 16;
const APART: Duration = Duration::from_millis(30);

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

impl Lab {
    /// Begins a move.
    fn begin(&self, to: &str, flags: &[&str]) -> String {
        let begun = self.throughline(&[&["migrate", GUEST, "--to", to, "--detach"], flags].concat()).done();
        begun["id"].as_str().unwrap().to_owned()
    }

    /// Cancels a move: the phase it was in, its end, and how long after the command that came.
    fn cancel(&self, id: &str) -> (String, Value, u64) {
        let asked = now_ms();
        let answer = self.throughline(&["migration", "cancel", id]);
        let end = wait_for("the migration ends", Duration::from_secs(60), || {
            let now = self.migration(id);
            matches!(now["phase"].as_str(), Some("DONE" | "ABORTED")).then_some(now)
        });
        let phase = match answer.code {
            0 => answer.result["phase"].as_str().unwrap().to_owned(),
            _ => {
                answer.refused(3, "TOO_LATE");
                "too late".to_owned()
            }
        };
        let took = end["ended_at_ms"].as_u64().unwrap().saturating_sub(asked);
        println!("cancelled in {phase}: {} after {took} ms", end["phase"]);
        (phase, end, took)
    }
}

#[test]
fn whenever_it_comes_a_cancel_is_done_within_a_second() {
    let lab = Lab::up("whenever");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let (mut from, mut to) = ("h1", "h2");
    let mut undone = 0;
    for moment in 0..MOMENTS {
        let id = lab.begin(to, &[]);
        thread::sleep(APART * moment);
        let (phase, end, took) = lab.cancel(&id);
        if end["phase"] == "ABORTED" {
            undone += 1;
            assert!(took <= SOON_MS, "a move cancelled in {phase} took {took} ms to be undone: {end:#}");
            assert_eq!(end["failure"]["reason"], "CANCELLED", "{end:#}");
            assert_ne!(phase, "too late", "{end:#}");
        } else {
            // It had committed, even if the controller may not have heard of it yet.
            (from, to) = (to, from);
        }
        lab.assert_runs_on(from);
        lab.assert_no_qemu(to);
    }
    assert!(undone >= 3, "only {undone} of {MOMENTS} moves were cancelled before they had committed");
    probe.assert_unnoticed(&lab, "moves were cancelled at all moments");
}

#[test]
fn a_long_copy_is_cancelled_within_a_second() {
    let lab = Lab::up("copying");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    for _ in 0..3 {
        let id = lab.begin_slow_move("h2");
        let (phase, end, took) = lab.cancel(&id);
        assert_eq!((phase.as_str(), &end["phase"]), ("PRECOPY", &"ABORTED".into()), "{end:#}");
        assert!(took <= SOON_MS, "it took {took} ms: {end:#}");
        lab.assert_no_qemu("h2");
    }
    probe.assert_unnoticed(&lab, "moves were cancelled");
}

/// It does not take what is in its tap's ring, which it is given time for: the cancel does not wait for that.
#[test]
fn a_guest_being_armed_is_cancelled_within_a_second() {
    let lab = Lab::up("arming");
    lab.boot_guest_with("tl.wedge=yes", &[]);
    wait_for("the guest wedges itself", Duration::from_secs(60), || {
        lab.console("h1").contains("init: wedged").then_some(())
    });
    let flood = lab.inside("peer", || UdpSocket::bind("0.0.0.0:0").unwrap());
    for _ in 0..3000 {
        flood.send_to(b"anybody?", (GUEST_ADDRESS, 9)).unwrap();
    }
    let log = || std::fs::read_to_string(lab.log("h1")).unwrap_or_default();
    let id = lab.begin("h2", &[]);
    wait_for("memory is being copied", Duration::from_secs(30), || {
        (lab.migration(&id)["phase"] == "PRECOPY").then_some(())
    });
    // An idle guest is armed within half a second, and has 1.6 s from then on.
    thread::sleep(Duration::from_secs(1));
    let (phase, end, took) = lab.cancel(&id);
    assert_eq!((phase.as_str(), &end["phase"]), ("PRECOPY", &"ABORTED".into()), "{end:#}");
    assert!(end["report"]["armed_at_ns"].as_u64() > Some(0), "frames were being held by then: {end:#}\n{}", log());
    assert!(took <= SOON_MS, "it took {took} ms: {end:#}");
    lab.assert_runs_on("h1");
    lab.assert_no_qemu("h2");
}
