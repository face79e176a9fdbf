//! Guests fail over to their replicas: nothing on their disks is wrong, and nothing is missing that was acknowledged before the point
//! that was told of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::disks::{WRITER, WRITTEN};
use crate::lab::{GUEST, Lab, wait_for};
use crate::operator::Answer;
use crate::probe::Probe;

/// A point of the guest's small disks, or a host's return.
pub(crate) const SOON: Duration = Duration::from_secs(60);
const OTHER: [(&str, &str); 2] = [("h1", "h2"), ("h2", "h1")];
pub(crate) const EVERY_SECOND: [&str; 4] = ["--every", "1s", "--keep", "3"];
const TARGET_MS: u64 = 5_000;
const BY_LAG: [&str; 4] = ["--lag", "5s", "--keep", "3"];

/// Failovers in a row: `THROUGHLINE_FAILOVERS`, else 2.
fn failovers() -> usize {
    let asked = std::env::var("THROUGHLINE_FAILOVERS").ok();
    asked.map_or(2, |asked| asked.parse().expect("THROUGHLINE_FAILOVERS is a number"))
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// What the guest said that it had had flushed, by disk, and when that had been heard.
pub(crate) struct Said {
    pub(crate) at_ms: u64,
    pub(crate) acknowledged: Vec<(String, u64)>,
}

impl Lab {
    pub(crate) fn replica(&self, host: &str) -> Value {
        self.throughline(&["replica", "get", GUEST, "--host", host]).done()
    }

    pub(crate) fn create_replica(&self, host: &str, flags: &[&str]) -> Value {
        self.throughline(&[&["replica", "create", GUEST, "--host", host], flags].concat()).done()
    }

    pub(crate) fn promote(&self, host: &str, flags: &[&str]) -> Answer {
        self.throughline(&[&["replica", "promote", GUEST, "--host", host], flags].concat())
    }

    /// Waits until the replica's newest point is of that time or later.
    pub(crate) fn wait_for_point(&self, host: &str, since_ms: u64) -> Value {
        wait_for(&format!("a point at {host}"), SOON, || {
            let replica = self.replica(host);
            let newest = replica["points"].as_array().and_then(|points| points.last().cloned())?;
            (newest["at_ms"].as_u64() >= Some(since_ms)).then_some(newest)
        })
    }

    /// The guest's host is gone at once, and all that is on it.
    pub(crate) fn lose_host(&self, host: &str) -> crate::processes::Killed {
        let agent = self.kill_agent(host);
        self.kill_qemu(host);
        wait_for("the controller misses it", SOON, || (!self.is_connected(host)).then_some(()));
        agent
    }

    /// Checks the stopped guest's disks against what it had said.
    fn assert_disks_have(&self, host: &str, said: &Said) {
        for (disk, acknowledged) in &said.acknowledged {
            let image = self.disk_dir(host).join(format!("{disk}.qcow2"));
            let raw = raw_copy(&image);
            let acknowledged = acknowledged.to_string();
            let check = ["throughline-probe", "disk-check", raw.to_str().unwrap(), "--name", disk];
            let output = self.on(host, &[&check[..], &["--acknowledged", &acknowledged]].concat()).output().unwrap();
            let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            assert!(output.status.success(), "{disk}: {found:#} {}", String::from_utf8_lossy(&output.stderr));
            println!("{host}: disk {disk} has all {acknowledged} writes, and up to {}", found["newest"]);
            fs::remove_file(raw).unwrap();
        }
    }
}

pub(crate) fn raw_copy(image: &Path) -> PathBuf {
    let raw = image.with_extension("copy");
    let converted = Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).args([image, &raw]).status();
    assert!(converted.unwrap().success(), "{} is no image", image.display());
    raw
}

/// Listens to the guest for a while; gives the last it said by then.
pub(crate) fn listen(probe: &mut Probe, until_ms: u64, heard: &mut Vec<Said>) {
    while now_ms() < until_ms {
        let disks = probe.disks();
        let bad: Vec<_> = disks.iter().filter(|disk| disk.wrong + disk.missing + disk.failed > 0).collect();
        assert!(bad.is_empty(), "{bad:?}");
        let acknowledged = disks.iter().map(|disk| (disk.name.clone(), disk.acknowledged)).collect();
        heard.push(Said { at_ms: now_ms(), acknowledged });
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_fails_over_again_and_again_and_has_all_that_its_point_has() {
    let mut lab = Lab::up("failover");
    lab.boot_guest_with(WRITER, &WRITTEN);
    lab.create_replica("h2", &EVERY_SECOND);
    for (number, (from, to)) in (1..=failovers()).zip(OTHER.into_iter().cycle()) {
        let mut probe = Probe::start(&lab);
        let mut heard = Vec::new();
        listen(&mut probe, now_ms() + 2_000, &mut heard);
        lab.wait_for_point(to, now_ms());
        // A host is not lost at the end of a point.
        listen(&mut probe, now_ms() + 1_000 + 137 * number as u64, &mut heard);
        drop(probe);
        let agent = lab.lose_host(from);

        let replica = lab.replica(to);
        let newest = replica["points"].as_array().unwrap().last().unwrap().clone();
        let point_ms = newest["at_ms"].as_u64().unwrap();
        let said = heard.iter().rfind(|said| said.at_ms <= point_ms).expect("something was said before the point");
        println!(
            "failover {number}: point {newest}, {} ms behind",
            heard.last().unwrap().at_ms.saturating_sub(point_ms)
        );
        // Stopped first, so that its disks can be looked at before it writes on.
        lab.stop_guest(&["--no-wait"]).done();
        let promoted = lab.promote(to, &[]).done();
        assert_eq!((&promoted["state"], &promoted["host"]), (&"STOPPED".into(), &to.into()), "{promoted:#}");
        assert_eq!(promoted["promoted_from"], from);
        lab.assert_disks_have(to, said);
        lab.start_guest().done();
        lab.assert_runs_on(to);
        let mut probe = Probe::start(&lab);
        thread::sleep(Duration::from_secs(1));
        probe.assert_unnoticed(&lab, "the guest answers at its own address, where it has failed over to");
        probe.assert_disks_read_back();
        drop(probe);

        // Its old host has not heard of it.
        lab.start_again(&agent);
        lab.assert_runs_on(to);
        let old = lab.disk_files(from);
        assert!(old.iter().any(|file| file.starts_with("root.")), "its disks are kept where it was: {old:?}");
        lab.throughline(&[&["replica", "reverse", GUEST][..], &BY_LAG].concat()).done();
        // Enough points that the next ones' beginning follows from how long they took.
        lab.wait_for_point(from, now_ms() + 2 * TARGET_MS);
        let replica = lab.replica(from);
        assert!(replica["lag_ms"].as_u64().unwrap() <= TARGET_MS, "{replica:#}");
        let at: Vec<_> = replica["points"].as_array().unwrap().iter().map(|it| it["at_ms"].as_u64().unwrap()).collect();
        let apart: Vec<_> = at.windows(2).map(|two| two[1] - two[0]).collect();
        println!("a target of {TARGET_MS} ms: points are {apart:?} ms apart");
        assert!(apart.iter().all(|apart| (1_000..=TARGET_MS).contains(apart)), "{apart:?}");
    }
}

/// Enough that the first copy, at this rate, is still under way when something is killed.
const LARGE: [&str; 4] = ["--disk", "name=root,size=4MiB", "--disk", "name=big,size=64MiB"];
const SLOWLY: [&str; 6] = ["--every", "1s", "--keep", "3", "--bandwidth", "16MiB"];

impl Lab {
    /// Waits until so much of the point under way is over; gives what there is of it in all.
    fn wait_until_sent(&self, host: &str, least: u64) -> u64 {
        wait_for("a point is under way", SOON, || {
            let replica = self.replica(host);
            (replica["copied"].as_u64() >= Some(least)).then(|| replica["total"].as_u64().unwrap())
        })
    }

    fn replica_files(&self, host: &str) -> usize {
        let directory = self.state().join(host).join("state/disks/.replicas");
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().is_dir()).count()
    }
}

#[test]
fn a_replica_is_kept_whatever_breaks_on_the_way() {
    let mut lab = Lab::up("replicacut");
    lab.boot_guest_with("tl.disk=root tl.disk-rate=128", &LARGE);
    lab.fill_disk("h1", "big.raw");
    let mut probe = Probe::start(&lab);
    let began_ms = now_ms();
    lab.create_replica("h2", &SLOWLY);
    let mut left = lab.wait_until_sent("h2", 12 << 20);

    // The first copy is not begun anew for an agent's death, be it the keeper's or the guest's host's.
    for host in ["h2", "h1"] {
        let agent = lab.kill_agent(host);
        wait_for("the controller misses it", SOON, || (!lab.is_connected(host)).then_some(()));
        lab.start_again(&agent);
        let now = lab.wait_until_sent("h2", 8 << 20);
        assert!(now + (8 << 20) < left, "{host}'s agent was killed: {left} bytes were left, {now} are sent again");
        left = now;
    }
    let first = lab.wait_for_point("h2", began_ms);
    assert_eq!(first["number"], 1, "no point was made of a part");

    // The keeper: its points are whole, and only what was written since is sent again.
    lab.kill_qemu("h2");
    let killed_ms = now_ms();
    lab.wait_for_point("h2", killed_ms);
    assert!(now_ms() < killed_ms + 5_000, "64 MiB would have taken eight seconds");
    let agent = lab.kill_agent("h2");
    wait_for("it is told that no points get there", SOON, || {
        (lab.replica("h2")["failure"]["reason"] == "REPLICA_UNREACHABLE").then_some(())
    });
    lab.start_again(&agent);
    lab.wait_for_point("h2", now_ms());
    let replica = wait_for("nothing is wrong any more", SOON, || {
        let replica = lab.replica("h2");
        replica["failure"].is_null().then_some(replica)
    });
    assert!((1..=3).contains(&replica["points"].as_array().unwrap().len()), "{replica:#}");
    probe.assert_unnoticed(&lab, "a replica was sent, and what sent and kept it was killed");

    lab.promote("h2", &[]).refused(3, "SOURCE_CONNECTED");
    lab.throughline(&["replica", "delete", GUEST, "--host", "h2"]).done();
    lab.assert_no_qemu("h2");
    wait_for("what there was of the replica is gone", SOON, || (lab.replica_files("h2") == 0).then_some(()));
    lab.migrate("h2");
    probe.assert_unnoticed(&lab, "it moved to where its replica had been");
    probe.assert_disks_read_back();
}
