//! Disks that are block devices, on storage that hosts have in common, or over an image, move with their guest, running or stopped. Needs
//! loop devices.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::disks::{WRITER, WRITTEN};
use crate::lab::{GUEST, Lab};
use crate::probe::Probe;

/// The one on a device of each host, the other on the lab's storage; both are written all the time.
const ELSEWHERE: [&str; 4] = [
    "--disk",
    "name=root,size=4MiB,device=lv0",
    "--disk",
    "name=data,size=4MiB,format=qcow2,bus=virtio-scsi,shared=lab",
];

/// A loop device that a host has under a name; gone with the value, for which the guest must be gone.
struct Loop(String);

impl Loop {
    fn of(lab: &Lab, host: &str, name: &str) -> Self {
        let devices = lab.state().join(host).join("devices");
        fs::create_dir_all(&devices).unwrap();
        let file = lab.state().join(host).join(format!("{name}.img"));
        File::create_new(&file).unwrap().set_len(4 << 20).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let device = Self(String::from_utf8(made.stdout).unwrap().trim().to_owned());
        symlink(&device.0, devices.join(name)).unwrap();
        device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // One that is still open goes when it is closed.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

impl Lab {
    /// Whether the file of a guest's disk is over another.
    fn is_over(&self, host: &str, file: &str) -> bool {
        let path = self.disk_dir(host).join(file);
        let info = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(&path).output().unwrap();
        let info: Value = serde_json::from_slice(&info.stdout).unwrap();
        info["backing-filename"].is_string()
    }

    fn shared_image(&self) -> PathBuf {
        self.state().join("shared").join(GUEST).join("data.qcow2")
    }
}

#[test]
fn a_device_and_a_shared_disk_move_with_their_guest() {
    let lab = Lab::up("elsewhere");
    let _devices = ["h1", "h2"].map(|host| Loop::of(&lab, host, "lv0"));
    lab.boot_guest_with(WRITER, &ELSEWHERE);
    let mut probe = Probe::start(&lab);
    for (from, to) in [("h1", "h2"), ("h2", "h1")] {
        let migration = lab.migrate(to);
        probe.assert_unnoticed(&lab, &format!("a guest whose disks are elsewhere moved to {to}"));
        assert_eq!(lab.disk_files(to), ["data.qcow2", "root.raw"], "links");
        assert!(lab.disk_dir(to).join("root.raw").is_symlink() && lab.disk_dir(to).join("data.qcow2").is_symlink());
        assert_eq!(lab.disk_files(from), [""; 0], "left behind on {from}");
        assert_eq!(migration["progress"]["disk_total"], 4 << 20, "the device, and nothing of what is shared");
    }
    probe.assert_disks_read_back();
    drop(probe);

    // Stopped it moves as well, and another host finds the shared disk where it was.
    lab.stop_guest(&[]).done();
    let before = lab.disk_sums("h1");
    lab.throughline(&["migrate", GUEST, "--to", "h2"]).done();
    assert_eq!(lab.disk_sums("h2"), before, "byte for byte");
    assert_eq!(lab.disk_files("h1"), [""; 0]);
    lab.start_guest().done();
    lab.assert_runs_on("h2");
    let mut probe = Probe::start(&lab);
    std::thread::sleep(Duration::from_secs(1));
    probe.assert_unnoticed(&lab, "it was started where it came to");
    probe.assert_disks_read_back();
    drop(probe);

    lab.throughline(&["guest", "delete", GUEST, "--delete-disks"]).done();
    lab.assert_no_qemu("h2");
    crate::lab::wait_for("the shared disk is gone", Duration::from_secs(20), || {
        (!lab.shared_image().exists()).then_some(())
    });
}

#[test]
fn what_another_host_does_not_have_is_told_before_anything_moves() {
    let mut lab = Lab::up("onlyhere");
    let _device = Loop::of(&lab, "h1", "lv0");
    lab.boot_guest_with(WRITER, &ELSEWHERE);
    let mut probe = Probe::start(&lab);
    let refused = |lab: &Lab| {
        let begun = lab.throughline(&["migrate", GUEST, "--to", "h2", "--detach"]).done();
        lab.wait_until_aborted(begun["id"].as_str().unwrap())
    };
    assert_eq!(refused(&lab), "DISK_PLACE", "h2 has no such device");
    probe.assert_unnoticed(&lab, "a move was refused for a device");

    let _other = Loop::of(&lab, "h2", "lv0");
    let mut agent = lab.kill_agent("h2");
    let apart = lab.state().join("h2/apart");
    fs::create_dir(&apart).unwrap();
    let flag = agent.command.iter().position(|word| word == "--shared").unwrap();
    let as_before = std::mem::replace(&mut agent.command[flag + 1], format!("lab={}", apart.display()));
    lab.start_again(&agent);
    assert_eq!(refused(&lab), "STORAGE_NOT_SHARED", "h2 has something else under that name");
    assert_eq!(lab.disk_files("h2"), [""; 0]);
    probe.assert_unnoticed(&lab, "a move was refused for its storage");

    let mut agent = lab.kill_agent("h2");
    agent.command[flag + 1] = as_before;
    lab.start_again(&agent);
    lab.migrate("h2");
    probe.assert_unnoticed(&lab, "it moved when h2 had both");
    probe.assert_disks_read_back();
}

#[test]
fn a_disk_over_an_image_moves_over_it_or_whole() {
    let lab = Lab::up("over");
    // What an earlier guest wrote is the image: the next one's probe knows what has to be in it.
    lab.boot_guest_with(WRITER, &WRITTEN);
    drop(Probe::start(&lab));
    std::thread::sleep(Duration::from_secs(3));
    lab.stop_guest(&[]).done();
    let image = lab.state().join("base.qcow2");
    fs::copy(lab.disk_dir("h1").join("data.qcow2"), &image).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    lab.throughline(&["guest", "delete", GUEST, "--delete-disks"]).done();
    crate::lab::wait_for("the guest's disks are gone", Duration::from_secs(20), || {
        lab.disk_files("h1").is_empty().then_some(())
    });

    let data = format!("name=data,size=4MiB,format=qcow2,bus=virtio-scsi,over={}", image.display());
    lab.boot_guest_with(WRITER, &["--disk", "name=root,size=4MiB", "--disk", &data]);
    let mut probe = Probe::start(&lab);
    let before = fs::read(&image).unwrap();
    lab.migrate("h2");
    assert!(lab.is_over("h2", "data.qcow2"), "it is kept as it is");
    probe.assert_unnoticed(&lab, "a guest moved whose disk is over an image");

    lab.throughline(&["migrate", GUEST, "--to", "h1", "--flatten"]).done();
    assert!(!lab.is_over("h1", "data.qcow2"), "it was brought whole");
    probe.assert_unnoticed(&lab, "its disk was flattened on the way");
    assert!(fs::read(&image).unwrap() == before, "an image is never written");

    // It needs none any more.
    fs::remove_file(&image).unwrap();
    lab.migrate("h2");
    probe.assert_unnoticed(&lab, "it moved without the image");
    probe.assert_disks_read_back();
}
