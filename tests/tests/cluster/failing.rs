//! A move that does not reach commit costs the guest nothing, and the next one succeeds.

use crate::lab::Lab;
use crate::probe::Probe;

#[test]
fn the_destination_agent_is_killed() {
    let mut lab = Lab::up("agent");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let id = lab.begin_slow_move("h2");
    let agent = lab.kill_agent("h2");
    lab.wait_until_aborted(&id);
    probe.assert_unnoticed(&lab, "the destination's agent was killed");

    lab.start_again(&agent);
    lab.assert_no_qemu("h2");
    lab.migrate("h2");
    lab.assert_no_qemu("h1");
    probe.assert_unnoticed(&lab, "the guest moved after the destination's agent was back");
}

#[test]
fn the_destination_qemu_is_killed() {
    let lab = Lab::up("qemu");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let id = lab.begin_slow_move("h2");
    lab.kill_qemu("h2");
    lab.wait_until_aborted(&id);
    lab.assert_no_qemu("h2");
    probe.assert_unnoticed(&lab, "the destination's QEMU was killed");

    lab.migrate("h2");
    lab.assert_no_qemu("h1");
    probe.assert_unnoticed(&lab, "the guest moved after the destination's QEMU had been killed");
}

#[test]
fn the_operator_cancels() {
    let lab = Lab::up("cancel");
    lab.boot_guest();
    let mut probe = Probe::start(&lab);
    let id = lab.begin_slow_move("h2");
    lab.throughline(&["migration", "cancel", &id]).done();
    assert_eq!(lab.wait_until_aborted(&id), "CANCELLED");
    lab.assert_no_qemu("h2");
    lab.throughline(&["migration", "cancel", &id]).refused(3, "TOO_LATE");
    probe.assert_unnoticed(&lab, "a move was cancelled");

    let migration = lab.migrate("h2");
    lab.throughline(&["migration", "cancel", migration["id"].as_str().unwrap()]).refused(3, "TOO_LATE");
    lab.assert_runs_on("h2");
    probe.assert_unnoticed(&lab, "the guest moved after a move was cancelled");
}
