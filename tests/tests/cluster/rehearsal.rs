//! Replicas are tested: a guest is booted from a point, on no network, and neither the guest, nor its replica, nor a failover notices.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::disks::{WRITER, WRITTEN};
use crate::failover::{EVERY_SECOND, SOON, Said, listen, now_ms};
use crate::lab::{GUEST, GUEST_MAC, Lab, wait_for};
use crate::probe::Probe;

/// A guest boots, translated, and its console says what it found.
const BOOTED: Duration = Duration::from_secs(90);

impl Lab {
    fn test_replica(&self, flags: &[&str]) -> Value {
        self.throughline(&[&["replica", "test", GUEST, "--host", "h2"], flags].concat()).done()["test"].take()
    }

    /// What the test's guest found on a disk when it had booted, as its console says.
    fn found_in_test(&self, console: &Path, disk: &str) -> Value {
        let said = format!("disk {disk} was found as ");
        wait_for(&format!("the test's guest has booted and read disk {disk}"), BOOTED, || {
            let text = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
            let line =
                text.lines().find_map(|line| line.split_once(&said).map(|(_, found)| found.trim().to_owned()))?;
            serde_json::from_str(&line).ok()
        })
    }

    /// Processes of that name which have a file of the host's open; the tools' are in no network namespace of the lab's.
    fn with_files_of(&self, host: &str, comm: &str) -> Vec<i32> {
        let state = self.state().join(host);
        let has = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let mut files = open.filter_map(|fd| fs::read_link(fd.path()).ok());
            name.trim() == comm && files.any(|file| file.starts_with(&state))
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has).collect()
    }

    /// Nothing of a test is there but what the replica's keeper is.
    fn assert_nothing_is_left(&self, host: &str) {
        wait_for("nothing is left of the test", SOON, || {
            let guests = fs::read_dir(self.state().join(host).join("state/guests")).into_iter().flatten().flatten();
            let of_tests = guests.filter(|it| it.file_name().to_string_lossy().starts_with(".test-")).count();
            let replicas = fs::read_dir(self.state().join(host).join("state/disks/.replicas"));
            let sockets = replicas.into_iter().flatten().flatten();
            let sockets = sockets.filter(|it| it.file_name().to_string_lossy().starts_with(".point-")).count();
            let servers = self.with_files_of(host, "qemu-nbd").len();
            (of_tests == 0 && sockets == 0 && servers == 0 && self.qemus(host).len() <= 1).then_some(())
        });
    }

    /// No frame of the test's guest gets anywhere: it has no device, and the bridge leads its address to the guest, and only there.
    fn assert_is_on_no_network(&self, host: &str) {
        assert_eq!(self.guest_devices(host), [""; 0], "a card of a test is plugged into nothing");
        let entries = self.on(host, &["bridge", "fdb", "show"]).output().unwrap();
        let text = String::from_utf8_lossy(&entries.stdout).into_owned();
        let of_guest: Vec<_> = text.lines().filter(|line| line.contains(GUEST_MAC)).collect();
        assert!(!of_guest.is_empty() && of_guest.iter().all(|line| line.contains("dev tlx")), "{of_guest:?}");
    }

    fn newest(&self) -> u64 {
        self.replica("h2")["points"].as_array().unwrap().last().unwrap()["number"].as_u64().unwrap()
    }

    fn has_point(&self, number: &Value) -> bool {
        self.replica("h2")["points"].as_array().unwrap().iter().any(|point| point["number"] == *number)
    }
}

fn point_of(replica: &Value, number: &Value) -> u64 {
    let points = replica["points"].as_array().unwrap();
    let point = points.iter().find(|point| point["number"] == *number).unwrap_or_else(|| panic!("{replica:#}"));
    point["at_ms"].as_u64().unwrap()
}

#[test]
fn a_test_finds_what_its_point_has_and_nobody_notices() {
    let mut lab = Lab::up("rehearsal");
    lab.boot_guest_with(WRITER, &WRITTEN);
    lab.create_replica("h2", &EVERY_SECOND);
    lab.wait_for_point("h2", now_ms());
    let mut probe = Probe::start(&lab);
    let mut heard = Vec::new();
    listen(&mut probe, now_ms() + 3_000, &mut heard);
    drop(probe);
    lab.wait_for_point("h2", now_ms());

    let mut probe = Probe::start(&lab);
    let test = lab.test_replica(&["--for", "5m"]);
    assert_eq!((&test["state"], &test["failure"]), (&"RUNNING".into(), &Value::Null), "{test:#}");
    let at_ms = point_of(&lab.replica("h2"), &test["point"]);
    let console = Path::new(test["console"].as_str().unwrap()).to_owned();
    lab.throughline(&["replica", "test", GUEST, "--host", "h2"]).refused(3, "TEST_UNDER_WAY");
    let said: &Said = heard.iter().rfind(|said| said.at_ms <= at_ms).expect("something was said before the point");
    for (disk, acknowledged) in &said.acknowledged {
        let found = lab.found_in_test(&console, disk);
        let none = (&found["wrong"], &found["missing"]);
        assert_eq!(none, (&0.into(), &0.into()), "disk {disk}: {found:#}");
        assert!(found["newest"].as_u64() >= Some(*acknowledged), "disk {disk} had {acknowledged} writes: {found:#}");
        println!("the test has all {acknowledged} writes of disk {disk}, and up to {}", found["newest"]);
    }
    assert_eq!(lab.with_files_of("h2", "qemu-nbd").len(), 2, "one serves each disk");
    lab.assert_is_on_no_network("h2");
    // As many points as are kept come and go meanwhile; the one that is tested stays.
    let before = lab.newest();
    wait_for("points keep coming", SOON, || (lab.newest() > before + 4).then_some(()));
    assert!(lab.has_point(&test["point"]), "point {} is being tested", test["point"]);
    assert_eq!(lab.replica("h2")["failure"], Value::Null);
    probe.assert_unnoticed(&lab, "a replica of it was tested");
    lab.assert_runs_on("h1");

    let ended = lab.test_replica(&["--end"]);
    assert_eq!((&ended["state"], &ended["console"]), (&"ENDED".into(), &"".into()), "{ended:#}");
    lab.assert_nothing_is_left("h2");
    wait_for("its point goes like any other", SOON, || (!lab.has_point(&test["point"])).then_some(()));

    // By its time.
    lab.test_replica(&["--for", "3s"]);
    wait_for("its time is over", SOON, || (lab.replica("h2")["test"]["state"] == "ENDED").then_some(()));
    lab.assert_nothing_is_left("h2");

    // An agent that is killed leaves its QEMU; the next one ends that, and begins no test anew.
    let test = lab.test_replica(&[]);
    let agent = lab.kill_agent("h2");
    wait_for("the controller misses it", SOON, || (!lab.is_connected("h2")).then_some(()));
    assert_eq!(lab.qemus("h2").len(), 2, "the keeper's and the test's");
    lab.start_again(&agent);
    lab.assert_nothing_is_left("h2");
    wait_for("it has failed", SOON, || (lab.replica("h2")["test"]["state"] == "FAILED").then_some(()));
    assert_eq!(lab.replica("h2")["test"]["failure"]["reason"], "HOST_DOWN");
    lab.wait_for_point("h2", now_ms());
    assert!(!Path::new(test["console"].as_str().unwrap()).exists());

    // So does one that ends in order, before it ends.
    lab.test_replica(&[]);
    kill(Pid::from_raw(lab.agent("h2")), Signal::SIGTERM).unwrap();
    wait_for("the controller misses it", SOON, || (!lab.is_connected("h2")).then_some(()));
    lab.assert_nothing_is_left("h2");
    lab.start_again(&agent);
    lab.wait_for_point("h2", now_ms());
    probe.assert_unnoticed(&lab, "tests of its replica were begun and ended, and broken off");

    // The guest fails over while its replica is tested: the test is in nobody's way.
    let mut heard = Vec::new();
    listen(&mut probe, now_ms() + 2_000, &mut heard);
    drop(probe);
    lab.wait_for_point("h2", now_ms());
    let test = lab.test_replica(&[]);
    lab.lose_host("h1");
    let began_ms = now_ms();
    let promoted = lab.promote("h2", &[]).done();
    println!("promoted during the test of point {} in {} ms", test["point"], now_ms() - began_ms);
    assert_eq!((&promoted["state"], &promoted["host"]), (&"RUNNING".into(), &"h2".into()), "{promoted:#}");
    lab.assert_nothing_is_left("h2");
    let mut probe = Probe::start(&lab);
    thread::sleep(Duration::from_secs(1));
    probe.assert_unnoticed(&lab, "the guest answers at its own address, where its replica was tested");
    probe.assert_disks_read_back();
}
