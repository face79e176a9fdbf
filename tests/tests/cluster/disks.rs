//! Disks move with their guest: nothing on them is lost or wrong, whatever breaks off a move, and a next try goes on from there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{GUEST, Lab, wait_for};
use crate::probe::Probe;

/// A raw disk that the guest writes all the time, and a qcow2 one.
pub(crate) const WRITTEN: [&str; 4] =
    ["--disk", "name=root,size=4MiB", "--disk", "name=data,size=4MiB,format=qcow2,bus=virtio-scsi"];
pub(crate) const WRITER: &str = "tl.disk=root tl.disk=data tl.disk-rate=128";
/// Bytes of a large disk that has something on it, and how fast they go: copying takes some 6 s.
const FILLED: u64 = 48 << 20;
const SLOW: &str = "8MiB";
/// A move of it that nothing disturbs.
const LONG: Duration = Duration::from_secs(60);

impl Lab {
    pub(crate) fn disk_dir(&self, host: &str) -> PathBuf {
        self.state().join(host).join("state/disks").join(GUEST)
    }

    /// Names of the files of the guest's disks on a host.
    pub(crate) fn disk_files(&self, host: &str) -> Vec<String> {
        let entries = fs::read_dir(self.disk_dir(host)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Sums of the files of the guest's disks on a host, by name.
    pub(crate) fn disk_sums(&self, host: &str) -> Vec<(String, u64)> {
        let names = self.disk_files(host).into_iter();
        names.map(|name| (name.clone(), content(&self.disk_dir(host).join(name)))).collect()
    }

    /// A guest with a large raw disk, of which the first 48 MiB are filled. What is written behind its back it has not read.
    pub(crate) fn boot_guest_with_large_disk(&self) {
        self.boot_guest_with(
            "tl.disk=root tl.disk-rate=128",
            &["--disk", "name=root,size=4MiB", "--disk", "name=big,size=1GiB"],
        );
        self.fill_disk("h1", "big.raw");
    }

    /// Writes 48 MiB to a disk behind its guest's back.
    pub(crate) fn fill_disk(&self, host: &str, file: &str) {
        wait_for("the guest's disks are there", LONG, || {
            let path = self.disk_dir(host).join(file);
            path.exists().then(|| fill(&path))
        });
    }

    /// Begins to move it and returns the migration's id when so many bytes of its disks are over.
    pub(crate) fn begin_disk_move(&self, to: &str, over: u64) -> String {
        let begun = self.throughline(&["migrate", GUEST, "--to", to, "--bandwidth", SLOW, "--detach"]).done();
        let id = begun["id"].as_str().unwrap().to_owned();
        wait_for("disks are being copied", LONG, || {
            let now = self.migration(&id);
            assert_ne!(now["phase"], "ABORTED", "{now:#}");
            (now["progress"]["disk_copied"].as_u64().unwrap_or_default() >= over).then_some(())
        });
        id
    }

    /// Moves it at full speed; gives what its disks had to be copied, bytes.
    fn disks_moved(&self, to: &str) -> u64 {
        let migration = self.migrate(to);
        migration["progress"]["disk_total"].as_u64().unwrap_or_default()
    }
}

/// Not from the guest: it has a disk of its own to write.
fn fill(path: &PathBuf) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().write(true).open(path).unwrap();
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (0..FILLED).step_by(1 << 16) {
        let block: Vec<u8> = (0..1 << 13)
            .flat_map(|_| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word.to_le_bytes()
            })
            .collect();
        file.write_all_at(&block, at).unwrap();
    }
}

fn content(path: &PathBuf) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    fs::read(path).unwrap().hash(&mut hasher);
    hasher.finish()
}

#[test]
fn disks_move_there_and_back_and_leave_nothing() {
    let lab = Lab::up("disks");
    lab.boot_guest_with(WRITER, &WRITTEN);
    let mut probe = Probe::start(&lab);
    for (from, to) in [("h1", "h2"), ("h2", "h1")] {
        lab.migrate(to);
        probe.assert_unnoticed(&lab, &format!("a guest with disks moved to {to}"));
        assert_eq!(lab.disk_files(to), ["data.qcow2", "root.raw"]);
        assert_eq!(lab.disk_files(from), [""; 0], "left behind on {from}");
    }
    probe.assert_disks_read_back();

    let delete = ["guest", "delete", GUEST];
    lab.throughline(&delete).refused(3, "DISK_FATE_NEEDED");
    lab.throughline(&[&delete[..], &["--delete-disks"]].concat()).done();
    wait_for("the guest's disks are gone", LONG, || lab.disk_files("h1").is_empty().then_some(()));
}

#[test]
fn kept_disks_are_found_by_the_next_guest_of_that_name() {
    let lab = Lab::up("kept");
    let flags = ["--disk", "name=big,size=64MiB"];
    lab.boot_guest_with("tl.probe=off", &flags);
    let path = lab.disk_dir("h1").join("big.raw");
    wait_for("the disk is there", LONG, || path.exists().then_some(()));
    fill(&path);
    let before = content(&path);
    lab.throughline(&["guest", "delete", GUEST, "--keep-disks"]).done();
    lab.assert_no_qemu("h1");
    assert_eq!(content(&path), before);
    lab.boot_guest_with("tl.probe=off", &flags);
    lab.assert_runs_on("h1");
    assert_eq!(content(&path), before);
}

#[test]
fn a_broken_copy_costs_nothing_and_the_next_try_goes_on_from_there() {
    let mut lab = Lab::up("diskcut");
    lab.boot_guest_with_large_disk();
    let mut probe = Probe::start(&lab);
    let before = content(&lab.disk_dir("h1").join("big.raw"));

    // The destination's agent.
    let id = lab.begin_disk_move("h2", FILLED / 3);
    let agent = lab.kill_agent("h2");
    lab.wait_until_aborted(&id);
    probe.assert_unnoticed(&lab, "the destination's agent was killed while disks were copied");
    lab.start_again(&agent);
    lab.assert_no_qemu("h2");
    assert!(lab.disk_files("h2").iter().all(|file| file.ends_with(".part")), "{:?}", lab.disk_files("h2"));

    // The destination's QEMU, when more is over.
    let id = lab.begin_disk_move("h2", FILLED / 4);
    lab.kill_qemu("h2");
    lab.wait_until_aborted(&id);
    lab.assert_no_qemu("h2");
    probe.assert_unnoticed(&lab, "the destination's QEMU was killed while disks were copied");

    // The source's agent.
    let id = lab.begin_disk_move("h2", FILLED / 8);
    let agent = lab.kill_agent("h1");
    wait_for("the agent is gone", LONG, || (!lab.is_connected("h1")).then_some(()));
    lab.start_again(&agent);
    lab.wait_until_aborted(&id);
    lab.assert_no_qemu("h2");
    lab.assert_runs_on("h1");
    probe.assert_unnoticed(&lab, "the source's agent was killed while disks were copied");

    let rest = lab.disks_moved("h2");
    println!("{rest} of {FILLED} bytes were left to the fourth try");
    // The other disk, which is being written, has its part in what is counted.
    assert!(rest < FILLED / 4 * 3, "{rest} bytes were copied again");
    probe.assert_unnoticed(&lab, "the guest moved with its disks at last");
    let there = lab.disk_dir("h2").join("big.raw");
    assert_eq!(content(&there), before);
    assert!(there.metadata().unwrap().blocks() * 512 < FILLED + FILLED / 4, "sparse stays sparse");
    assert_eq!(lab.disk_files("h1"), [""; 0]);
    probe.assert_disks_read_back();
}

#[test]
fn a_cancelled_copy_leaves_nothing() {
    let lab = Lab::up("diskoff");
    lab.boot_guest_with_large_disk();
    let mut probe = Probe::start(&lab);
    let id = lab.begin_disk_move("h2", FILLED / 4);
    lab.throughline(&["migration", "cancel", &id]).done();
    assert_eq!(lab.wait_until_aborted(&id), "CANCELLED");
    lab.assert_no_qemu("h2");
    wait_for("what came is gone", LONG, || lab.disk_files("h2").is_empty().then_some(()));
    probe.assert_unnoticed(&lab, "a copy of disks was cancelled");
    let report: Value = lab.migration(&id);
    assert_eq!(report["phase"], "ABORTED", "{report:#}");
}
