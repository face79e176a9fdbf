//! An agent may die: its guests run on, and the next agent finds them.

use std::fs;
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
    assert_eq!(console(&lab, "h1").matches(BOOTED).count(), 1, "the guest's console: {}", console(&lab, "h1"));

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
    assert_eq!(console(&lab, "h1").matches(BOOTED).count(), 1, "the guest was started again: {}", console(&lab, "h1"));
    probe.assert_unnoticed(&lab, "the agent of its host came back");

    lab.migrate("h2");
    lab.assert_no_qemu("h1");
    assert_eq!(console(&lab, "h2").matches(BOOTED).count(), 0, "the guest was started again: {}", console(&lab, "h2"));
    probe.assert_unnoticed(&lab, "the guest moved, run by an agent that had not started it");
}

/// What the guest wrote to its console since it came to a host.
fn console(lab: &Lab, host: &str) -> String {
    let path = lab.state().join(host).join("state/guests").join(GUEST).join("serial.log");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
