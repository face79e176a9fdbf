//! Guests are stopped and started where they are; one that is stopped keeps all that is its own.

use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::disks::{WRITER, WRITTEN};
use crate::lab::{GUEST, Lab, wait_for};
use crate::operator::Answer;
use crate::probe::Probe;

/// What the guest's init writes once a boot.
pub(crate) const BOOTED: &str = "init: eth0 has";
/// A guest that answers no question of ours takes as long as it takes.
const SOON: Duration = Duration::from_secs(30);

impl Lab {
    pub(crate) fn stop_guest(&self, flags: &[&str]) -> Answer {
        self.throughline(&[&["guest", "stop", GUEST], flags].concat())
    }

    pub(crate) fn start_guest(&self) -> Answer {
        self.throughline(&["guest", "start", GUEST])
    }

    fn guest_state(&self) -> Value {
        self.throughline(&["guest", "get", GUEST]).done()["state"].take()
    }

    pub(crate) fn wait_for_state(&self, state: &str) {
        wait_for(&format!("the guest is {state}"), SOON, || (self.guest_state() == state).then_some(()));
    }

    /// Waits until the guest answers, and probes it for a second.
    #[track_caller]
    pub(crate) fn assert_answers(&self, what: &str) {
        let mut probe = Probe::start(self);
        thread::sleep(Duration::from_secs(1));
        probe.assert_unnoticed(self, what);
    }

    /// Checks what a stopped guest left on its disks: nothing is wrong, nothing that was flushed is missing.
    pub(crate) fn assert_disks_are_whole(&self, host: &str) {
        let directory = self.disk_dir(host);
        let copy = directory.with_extension("data");
        let (source, target) = (directory.join("data.qcow2"), copy.as_path());
        let converted = Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&source, target]).status();
        assert!(converted.unwrap().success(), "{} is no image", source.display());
        for (disk, path) in [("root", directory.join("root.raw")), ("data", copy.clone())] {
            let check = ["throughline-probe", "disk-check", path.to_str().unwrap(), "--name", disk];
            let output = self.on(host, &check).output().unwrap();
            let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            assert!(output.status.success(), "{disk}: {found:#} {}", String::from_utf8_lossy(&output.stderr));
            assert!(found["acknowledged"].as_u64() > Some(0), "the guest wrote nothing to {disk}: {found:#}");
        }
        std::fs::remove_file(copy).unwrap();
    }
}

#[test]
fn a_stopped_guest_keeps_its_place_and_its_disks() {
    let mut lab = Lab::up("power");
    lab.boot_guest_with(WRITER, &WRITTEN);
    drop(Probe::start(&lab));
    thread::sleep(Duration::from_secs(3));
    let before = lab.throughline(&["guest", "get", GUEST]).done();

    let stopped = lab.stop_guest(&[]).done();
    assert_eq!(stopped["state"], "STOPPED");
    assert!(stopped["generation"].as_u64() > before["generation"].as_u64(), "{stopped}");
    assert_eq!((&stopped["spec"], &stopped["host"]), (&before["spec"], &before["host"]));
    lab.assert_no_qemu("h1");
    lab.assert_disks_are_whole("h1");

    // Whatever restarts, it is nobody's to start but an operator's.
    let agent = lab.kill_agent("h1");
    lab.start_again(&agent);
    thread::sleep(Duration::from_secs(2));
    lab.wait_for_state("STOPPED");
    lab.assert_no_qemu("h1");

    lab.start_guest().done();
    let mut probe = Probe::start(&lab);
    assert_eq!(lab.console("h1").matches(BOOTED).count(), 1);
    lab.migrate("h2");
    probe.assert_unnoticed(&lab, "a guest moved that had been stopped and started");
    probe.assert_disks_read_back();
    drop(probe);

    lab.stop_guest(&["--cut-after", "30s"]).done();
    lab.assert_no_qemu("h2");
    lab.assert_disks_are_whole("h2");
    lab.start_guest().done();
    lab.assert_answers("it started where it had moved to");
    lab.throughline(&["guest", "delete", GUEST, "--delete-disks"]).done();
}

#[test]
fn a_guest_that_does_not_listen_is_cut_off_when_that_is_ordered() {
    let mut lab = Lab::up("deaf");
    lab.boot_guest_with("tl.probe=off tl.button=no", &[]);
    wait_for("the guest is up", SOON, || lab.console("h1").contains(BOOTED).then_some(()));
    let stopping = lab.stop_guest(&["--no-wait"]).done();
    assert_eq!(stopping["state"], "STOPPING");
    lab.stop_guest(&["--wait-timeout", "2s"]).refused(6, "WAIT_TIMEOUT");

    lab.start_guest().done();
    assert_eq!(lab.console("h1").matches(BOOTED).count(), 1, "it ran all along");

    // The next agent goes on with what the last was told.
    lab.stop_guest(&["--no-wait"]).done();
    let agent = lab.kill_agent("h1");
    lab.start_again(&agent);
    lab.wait_for_state("STOPPING");
    let stopped = lab.stop_guest(&["--cut-after", "500ms"]).done();
    assert_eq!(stopped["state"], "STOPPED");
    lab.assert_no_qemu("h1");
    lab.throughline(&["guest", "delete", GUEST]).done();
}

#[test]
fn a_guest_whose_qemu_died_is_stopped_and_started() {
    let lab = Lab::up("lost");
    lab.boot_guest_with("tl.probe=off", &[]);
    lab.kill_qemu("h1");
    lab.wait_for_state("FAILED");
    lab.start_guest().refused(3, "GUEST_FAILED");
    lab.stop_guest(&[]).done();
    lab.start_guest().done();
    wait_for("the guest is up", SOON, || lab.console("h1").contains(BOOTED).then_some(()));
    lab.assert_runs_on("h1");

    // Whoever changes their mind while it is just being stopped.
    for after in [0, 5, 20, 60] {
        lab.stop_guest(&["--cut-after", "0", "--no-wait"]).done();
        thread::sleep(Duration::from_millis(after));
        lab.start_guest().done();
        lab.assert_runs_on("h1");
    }
}
