//! A destination that has no room any more costs the guest no write.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use throughline_probe::disk::block::Label;
use throughline_probe::disk::check::check;

use crate::lab::{GUEST, Lab, wait_for};
use crate::probe::Probe;

/// One that it writes, and three that only take their part of the bandwidth: copying it is then slow enough to be overtaken.
const DISKS: [&str; 8] = [
    "--disk",
    "name=root,size=16MiB",
    "--disk",
    "name=a,size=1MiB",
    "--disk",
    "name=b,size=1MiB",
    "--disk",
    "name=c,size=1MiB",
];
const SLOW: &str = "1MiB";
/// What the guest has written before it is moved: more than is over when the destination is full.
const WRITTEN: u64 = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// The end that is looked for.
const BY_A_WRITE: &str = "a request of the guest's to a disk failed";
/// How often it is tried to have a write of the guest's find no room before the copy does, which comes to the same end.
const TRIES: u32 = 4;

impl Lab {
    fn storage(&self, host: &str) -> PathBuf {
        self.state().join(host).join("state/disks")
    }

    fn root(&self, host: &str) -> PathBuf {
        self.storage(host).join(GUEST).join("root.raw")
    }
}

/// Moves the guest to a host whose room runs out meanwhile, and makes room again. Gives the reason it was undone for.
fn move_without_room(lab: &Lab) -> String {
    let begun = lab.throughline(&["migrate", GUEST, "--to", "h2", "--bandwidth", SLOW, "--detach"]).done();
    let id = begun["id"].as_str().unwrap().to_owned();
    wait_for("the disk is being copied", PATIENCE, || {
        (lab.migration(&id)["progress"]["disk_copied"].as_u64().unwrap_or_default() > 0).then_some(())
    });
    let filler = lab.storage("h2").join(".filler");
    fill(&filler);
    assert_eq!(lab.wait_until_aborted(&id), "DISK_COPY");
    lab.assert_runs_on("h1");
    lab.assert_no_qemu("h2");
    fs::remove_file(&filler).unwrap();
    lab.migration(&id)["failure"]["message"].to_string()
}

/// Takes every block that is left.
fn fill(filler: &Path) {
    let mut file = File::create(filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

#[test]
fn a_write_whose_copy_finds_no_room_is_done_all_the_same() {
    let lab = Lab::up("noroom");
    // Goes with the lab.
    let small = Some("size=96m,mode=0700");
    mount(Some("tmpfs"), &lab.storage("h2"), Some("tmpfs"), MsFlags::empty(), small).unwrap();
    lab.boot_guest_with("tl.disk=root tl.disk-rate=128", &DISKS);
    let mut probe = Probe::start(&lab);
    // In no order: what it writes next is as likely to be on a part that is not over yet.
    wait_for("the guest has written much", PATIENCE, || {
        let written = lab.root("h1").metadata().is_ok_and(|file| file.blocks() * 512 > WRITTEN);
        written.then_some(())
    });
    probe.assert_unnoticed(&lab, "the guest wrote to its disk");

    let mut why = move_without_room(&lab);
    for _ in 1..TRIES {
        probe.assert_unnoticed(&lab, "the destination had no room for a disk");
        if why.contains(BY_A_WRITE) {
            break;
        }
        why = move_without_room(&lab);
    }
    assert!(why.contains(BY_A_WRITE), "another way to the same end, {TRIES} times: {why}");

    lab.migrate("h2");
    probe.assert_unnoticed(&lab, "the guest moved when there was room again");
    // The guest may be writing just where it is looked.
    wait_for("the disk is sound", Duration::from_secs(5), || {
        let verdict = check(&File::open(lab.root("h2")).unwrap(), Some(Label::new("root")), 0).unwrap();
        (verdict.is_sound() && verdict.sound > 0).then_some(())
    });
}
