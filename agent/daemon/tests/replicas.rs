//! Replicas' files, by QEMU's own tools: they become their guest's disks as they were at one point, all of them or none, whatever broke
//! off before. Needs root and package qemu-utils.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use throughline_agent::disks::{DiskError, Elsewhere, Replicas, Store};
use throughline_cutover::{Disk, DiskBus, DiskFormat, DiskPlace, DiskSize, GuestName, ReplicaId};

const MIB: u64 = 1 << 20;

/// A replica of two disks, in a store that is gone with the value.
struct Scratch {
    directory: PathBuf,
    store: Store,
    replicas: Replicas,
    id: ReplicaId,
    guest: GuestName,
    disks: Vec<Disk>,
}

impl Scratch {
    fn new(test: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("throughline-replicas-{}-{test}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let elsewhere = Elsewhere::new("h1".parse().unwrap(), None, BTreeMap::new());
        let store = Store::open(&directory.join("disks"), &"61000".parse().unwrap(), elsewhere).unwrap();
        let replicas = store.open_replicas().unwrap();
        let disks = ["root", "data"].map(|name| Disk {
            name: name.parse().unwrap(),
            size: DiskSize::try_from(8 * MIB).unwrap(),
            format: DiskFormat::Raw,
            bus: DiskBus::VirtioBlk,
            image: String::new(),
            place: DiskPlace::Directory,
            over: false,
        });
        let (id, guest) = ("5f1c7a52-0c3d".parse().unwrap(), "web-1".parse().unwrap());
        let scratch = Self { directory, store, replicas, id, guest, disks: disks.into() };
        assert_eq!(scratch.open().unwrap(), 2);
        scratch
    }

    /// Opens its files as for a keeper.
    fn open(&self) -> Result<usize, DiskError> {
        self.replicas.open(&self.id, &self.disks, number).map(|files| files.len())
    }

    fn kept(&self, disk: &str) -> PathBuf {
        self.directory.join("disks/.replicas/5f1c7a52-0c3d").join(format!("{disk}.qcow2"))
    }

    fn own(&self, file: &str) -> PathBuf {
        self.directory.join("disks/web-1").join(file)
    }

    /// As a keeper does.
    fn write_and_snapshot(&self, disk: &str, pattern: u8, point: Option<&str>) {
        let file = self.kept(disk);
        tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -P {pattern} 0 1M"), file.to_str().unwrap()]);
        if let Some(point) = point {
            tool("qemu-img", &["snapshot", "-c", point, file.to_str().unwrap()]);
        }
    }

    fn point(&self, pattern: u8, name: &str) {
        for disk in ["root", "data"] {
            self.write_and_snapshot(disk, pattern, Some(name));
        }
    }

    fn promote(&self, point: u64) -> Result<(), DiskError> {
        self.store.promote(&self.replicas, &self.id, &self.guest, &self.disks, |name| number(name) == Some(point))
    }

    fn assert_has(&self, path: &Path, pattern: u8) {
        let read = format!("read -P {pattern} 0 1M");
        let said = tool("qemu-io", &["-r", "-f", "qcow2", "-c", &read, path.to_str().unwrap()]);
        assert!(!said.contains("failed"), "{}: {said}", path.display());
    }

    fn assert_guest_has(&self, pattern: u8) {
        for disk in ["root", "data"] {
            self.assert_has(&self.own(&format!("{disk}.qcow2")), pattern);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix('p')?.split('-').next()?.parse().ok()
}

fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("qemu-utils is installed: make setup");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn a_guest_gets_its_disks_as_they_were_at_the_point_and_what_it_had_is_put_aside() {
    let scratch = Scratch::new("promote");
    fs::create_dir_all(scratch.own("")).unwrap();
    fs::set_permissions(scratch.own(""), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs::write(scratch.own("root.raw"), "from before").unwrap();
    scratch.point(1, "p1-a");
    scratch.point(2, "p2-a");
    scratch.write_and_snapshot("root", 9, None);
    assert!(matches!(scratch.promote(3), Err(DiskError::Point { .. })));
    assert!(!scratch.own("root.qcow2").exists(), "and the guest has what it had");
    scratch.promote(1).unwrap();
    scratch.assert_guest_has(1);
    scratch.promote(2).unwrap();
    scratch.assert_guest_has(2);
    let aside = fs::read_dir(scratch.own("")).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let aside: Vec<_> = aside.filter(|name| name.starts_with("root.raw.before-failover-")).collect();
    assert_eq!(fs::read_to_string(scratch.own(aside.first().unwrap())).unwrap(), "from before");
    let kept: Vec<Disk> = scratch.disks.iter().map(|disk| Disk { format: DiskFormat::Qcow2, ..disk.clone() }).collect();
    scratch.store.forget_points(&scratch.guest, &kept).unwrap();
    scratch.assert_guest_has(2);
    assert!(matches!(scratch.promote(2), Err(DiskError::Point { .. })), "the guest's disks are its own now");
    scratch.store.remove(&scratch.guest).unwrap();
    assert!(scratch.own(aside.first().unwrap()).exists(), "an operator's to remove");
}

#[test]
fn a_promotion_that_broke_off_anywhere_is_made_again_also_when_the_replica_has_no_folder_any_more() {
    let scratch = Scratch::new("again");
    scratch.point(1, "p1-a");
    scratch.point(2, "p2-a");
    // As far as the first disk's move.
    fs::create_dir_all(scratch.own("")).unwrap();
    fs::set_permissions(scratch.own(""), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs::rename(scratch.kept("root"), scratch.own("root.qcow2")).unwrap();
    let left = scratch.store.points_left(&scratch.replicas, &scratch.id, &scratch.guest, &scratch.disks).unwrap();
    assert_eq!(left, ["p1-a", "p2-a"]);
    assert!(matches!(scratch.open(), Err(DiskError::Missing { .. })), "no blank disk beside one that has points");
    // As far as the last's, and an agent that began anew.
    fs::rename(scratch.kept("data"), scratch.own("data.qcow2")).unwrap();
    scratch.store.open_replicas().unwrap();
    assert!(!scratch.kept("data").parent().unwrap().exists());
    scratch.promote(1).unwrap();
    scratch.assert_guest_has(1);
}

#[test]
fn what_not_all_disks_have_is_no_point_and_a_keeper_begins_where_the_newest_is() {
    let scratch = Scratch::new("torn");
    scratch.point(1, "p1-a");
    // A keeper was killed over its second point, and the next one has the same number.
    scratch.write_and_snapshot("root", 2, Some("p2-a"));
    scratch.write_and_snapshot("data", 2, None);
    assert_eq!(scratch.open().unwrap(), 2);
    for disk in ["root", "data"] {
        scratch.assert_has(&scratch.kept(disk), 1);
    }
    scratch.point(3, "p2-b");
    scratch.promote(2).unwrap();
    scratch.assert_guest_has(3);
}
