//! An agent may die: its guests run on, and the next agent finds them.

use std::thread;
use std::time::Duration;

use crate::lab::{GUEST, Lab, wait_for};
use crate::probe::Probe;

/// What the guest's init writes once a boot.
const BOOTED: &str = "init: eth0 has";

#[test]
fn a_guest_outlives_its_agent() {
    let mut lab = Lab::up("restart");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    assert_eq!(lab.console("h1").matches(BOOTED).count(), 1, "the guest's console: {}", lab.console("h1"));

    let agent = lab.kill_agent("h1");
    wait_for("the controller notices that the agent is gone", Duration::from_secs(15), || {
        (!lab.is_connected("h1")).then_some(())
    });
    thread::sleep(Duration::from_secs(1));
    probe.assert_unnoticed(&lab, "the agent of its host was killed");

    lab.start_again(&agent);
    wait_for("the guest is reported running again", Duration::from_secs(15), || {
        let guest = lab.throughline(&["guest", "get", GUEST]).done();
        (guest["state"] == "RUNNING" && guest["host"] == "h1").then_some(())
    });
    assert_eq!(lab.console("h1").matches(BOOTED).count(), 1, "the guest was started again: {}", lab.console("h1"));
    probe.assert_unnoticed(&lab, "the agent of its host came back");

    lab.migrate("h2");
    lab.assert_no_qemu("h1");
    assert_eq!(lab.console("h2").matches(BOOTED).count(), 0, "the guest was started again: {}", lab.console("h2"));
    probe.assert_unnoticed(&lab, "the guest moved, run by an agent that had not started it");
}
