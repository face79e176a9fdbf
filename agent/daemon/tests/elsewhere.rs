//! Disks that are block devices, or on storage that hosts have in common: two hosts' stores over loop devices and directories of the
//! test's own. Needs root, and loop devices.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use nix::fcntl::{FcntlArg, fcntl};
use throughline_agent::disks::{CopyId, DiskError, Elsewhere, Extent, Made, Store};
use throughline_cutover::{Disk, DiskBus, DiskFormat, DiskPlace, DiskSize, GuestName, HostName};
use throughline_wire::v1::DiskHere;

const MIB: u64 = 1 << 20;

/// A directory, and loop devices; gone with the value.
struct Scratch {
    directory: PathBuf,
    loops: Vec<String>,
    guest: GuestName,
}

impl Scratch {
    fn new(test: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("throughline-elsewhere-{}-{test}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        for part in ["h1", "h2", "h1/devices", "h2/devices", "common", "h1/apart", "h2/apart"] {
            fs::create_dir(directory.join(part)).unwrap();
        }
        Self { directory, loops: Vec::new(), guest: "web-1".parse().unwrap() }
    }

    /// A host's store. What is called "common" all hosts have, "apart" each has one of.
    fn store(&self, host: &str) -> Store {
        let own = self.directory.join(host);
        let shared = [("common", self.directory.join("common")), ("apart", own.join("apart"))];
        let shared = shared.into_iter().map(|(name, path)| (name.parse().unwrap(), path)).collect::<BTreeMap<_, _>>();
        let elsewhere = Elsewhere::new(host.parse().unwrap(), Some(own.join("devices")), shared);
        Store::open(&own.join("disks"), &"61000".parse().unwrap(), elsewhere).unwrap()
    }

    /// A block device of a host, by name.
    fn device(&mut self, host: &str, name: &str, mib: u64) {
        let file = self.directory.join(host).join(format!("{name}.img"));
        File::create_new(&file).unwrap().set_len(mib * MIB).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        symlink(&device, self.directory.join(host).join("devices").join(name)).unwrap();
        self.loops.push(device);
    }

    fn files(&self, host: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.directory.join(host).join("disks/web-1")) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for device in &self.loops {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn disk(place: DiskPlace) -> Disk {
    Disk {
        name: "data".parse().unwrap(),
        size: DiskSize::try_from(8 * MIB).unwrap(),
        format: DiskFormat::Raw,
        bus: DiskBus::VirtioBlk,
        image: String::new(),
        place,
        over: false,
    }
}

fn device() -> Disk {
    disk(DiskPlace::Device("lv0".parse().unwrap()))
}

fn shared(name: &str) -> Disk {
    disk(DiskPlace::Shared(name.parse().unwrap()))
}

fn copy(n: u32) -> CopyId {
    format!("c-{n}").parse().unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, DiskError>) -> &'static str {
    result.expect_err("must be refused").code()
}

fn begins_with(path: &Path, what: &[u8]) -> bool {
    let mut found = vec![0; what.len()];
    File::open(path).unwrap().read_exact(&mut found).unwrap();
    found == what
}

/// As QEMU locks an image that its guest writes; for as long as the file is open.
fn lock_as_qemu(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let shared = libc::flock { l_type: libc::F_RDLCK as i16, l_whence: 0, l_start: 101, l_len: 1, l_pid: 0 };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&shared)).unwrap();
    file
}

#[test]
fn a_device_is_taken_as_it_is_by_one_and_keeps_what_is_on_it() {
    let mut scratch = Scratch::new("device");
    let (store, guest) = (scratch.store("h1"), scratch.guest.clone());
    assert_eq!(code(store.create(&guest, &device())), "DISK_PLACE", "there is none of that name");
    assert!(scratch.files("h1").is_empty());
    scratch.device("h1", "lv0", 8);
    fs::write(scratch.directory.join("h1/lv0.img"), "before").unwrap();
    File::options().write(true).open(scratch.directory.join("h1/lv0.img")).unwrap().set_len(8 * MIB).unwrap();

    assert_eq!(store.create(&guest, &device()).unwrap(), Made::Found);
    assert_eq!(scratch.files("h1"), ["data.raw"]);
    let open = store.open_disk(&guest, &device()).unwrap();
    let all = [Extent { start: 0, end: 8 * MIB }];
    assert_eq!(store.extents(&guest, &device()).unwrap(), all, "it does not tell where it has holes");
    open.write_all_at(b"after!", 0).unwrap();
    open.sync_all().unwrap();
    assert_eq!(code(store.open_disk(&guest, &device())), "DISK_IN_USE");
    let other: GuestName = "web-2".parse().unwrap();
    assert_eq!(code(store.create(&other, &device())), "DISK_EXISTS", "it is web-1's");
    drop(open);
    assert_eq!(code(store.create(&other, &device())), "DISK_EXISTS", "and is so though nobody has it open");
    assert_eq!(code(store.receive(&other, &device(), 0, &copy(1), None)), "DISK_EXISTS");
    let here = disk(DiskPlace::Directory);
    assert_eq!(code(store.create(&guest, &here)), "DISK_UNFIT", "what is kept is a device, and not to be one");
    store.delete(&guest).unwrap();
    assert!(scratch.files("h1").is_empty());
    assert!(begins_with(&scratch.directory.join("h1/lv0.img"), b"after!"), "an operator's device is not wiped");
}

#[test]
fn a_device_that_is_none_or_of_another_size_is_refused() {
    let mut scratch = Scratch::new("unfit");
    let (store, guest) = (scratch.store("h1"), scratch.guest.clone());
    fs::write(scratch.directory.join("h1/devices/lv0"), vec![0; 8 << 20]).unwrap();
    assert_eq!(code(store.create(&guest, &device())), "DISK_PLACE", "a plain file");
    fs::remove_file(scratch.directory.join("h1/devices/lv0")).unwrap();
    scratch.device("h1", "lv0", 16);
    assert_eq!(code(store.create(&guest, &device())), "DISK_UNFIT", "too large");
    assert!(scratch.files("h1").is_empty(), "and nothing is left");
}

#[test]
fn a_device_comes_and_goes_as_a_file_does_and_begins_anew_each_time() {
    let mut scratch = Scratch::new("comes");
    let (store, guest) = (scratch.store("h2"), scratch.guest.clone());
    scratch.device("h2", "lv0", 8);
    let came = store.receive(&guest, &device(), 0, &copy(1), None).unwrap();
    assert!(!came.continued);
    assert_eq!(scratch.files("h2"), ["data.raw.c-1.incoming"]);
    assert_eq!(code(store.receive(&guest, &device(), 0, &copy(2), None)), "DISK_IN_USE", "its QEMU has not ended");
    assert_eq!(scratch.files("h2"), [""; 0]);
    drop(came);
    drop(store.receive(&guest, &device(), 0, &copy(1), None).unwrap());
    store.put_aside(&guest, true).unwrap();
    assert_eq!(scratch.files("h2"), ["data.raw.c-1.part"]);
    let again = store.receive(&guest, &device(), 0, &copy(2), Some(&copy(1))).unwrap();
    assert!(!again.continued, "it may have been another guest's meanwhile");
    drop(again);
    store.discard_incoming(&guest).unwrap();
    assert!(scratch.files("h2").is_empty());
    drop(store.receive_file(&guest, &device(), 0, &copy(3)).unwrap());
    store.keep(&guest, &[device()]).unwrap();
    assert_eq!(scratch.files("h2"), ["data.raw"]);
    drop(store.open_disk(&guest, &device()).unwrap());
}

#[test]
fn a_shared_disk_is_one_wherever_it_is_looked_at() {
    let scratch = Scratch::new("shared");
    let (h1, h2, guest) = (scratch.store("h1"), scratch.store("h2"), scratch.guest.clone());
    let (disk, source) = (shared("common"), "h1".parse::<HostName>().unwrap());
    assert_eq!(h1.create(&guest, &disk).unwrap(), Made::Anew);
    drop(h1.open_disk(&guest, &disk).unwrap());
    let image = scratch.directory.join("common/web-1/data.raw");
    assert_eq!(image.metadata().unwrap().len(), 8 * MIB);

    let old = DiskHere { place_proof: h1.prove(&guest, &disk).unwrap(), ..Default::default() };
    let place_proof = h1.prove(&guest, &disk).unwrap();
    assert_eq!(
        code(h2.check_disks(&guest, &source, &[(disk.clone(), old)])),
        "STORAGE_NOT_SHARED",
        "as a copy of it would have"
    );
    let proof = DiskHere { place_proof, ..Default::default() };
    h2.check_disks(&guest, &source, &[(disk.clone(), proof.clone())]).unwrap();
    assert_eq!(code(h2.check_disks(&guest, &source, &[(disk.clone(), DiskHere::default())])), "STORAGE_NOT_SHARED");
    assert_eq!(code(h2.receive(&guest, &disk, 0, &copy(1), None)), "STORAGE_NO_LOCKS", "nobody seems to run on it");

    let running = lock_as_qemu(&image);
    assert_eq!(code(h1.open_disk(&guest, &disk)), "DISK_IN_USE");
    let came = h2.receive(&guest, &disk, 0, &copy(1), None).unwrap();
    assert!(!came.continued);
    h2.put_aside(&guest, false).unwrap();
    h2.discard_incoming(&guest).unwrap();
    assert!(scratch.files("h2").is_empty() && image.exists(), "the guest stayed where it was");
    drop(h2.receive(&guest, &disk, 0, &copy(2), None).unwrap());
    h2.keep(&guest, std::slice::from_ref(&disk)).unwrap();
    drop(running);

    let elsewhere = lock_as_qemu(&image);
    assert_eq!(code(h1.delete(&guest)), "DISK_IN_USE", "a late order does not take it from under a guest");
    drop(elsewhere);
    h1.remove(&guest).unwrap();
    assert!(scratch.files("h1").is_empty() && image.exists(), "it has left, and its disk is where it was");
    drop(h2.open_disk(&guest, &disk).unwrap());
    h2.delete(&guest).unwrap();
    assert!(!image.exists() && !image.parent().unwrap().exists(), "deleted with its disks");
}

#[test]
fn a_link_on_shared_storage_is_no_disk() {
    let scratch = Scratch::new("planted");
    let (store, guest) = (scratch.store("h1"), scratch.guest.clone());
    let secret = scratch.directory.join("secret");
    File::create_new(&secret).unwrap().set_len(8 * MIB).unwrap();
    fs::DirBuilder::new().mode(0o700).create(scratch.directory.join("common/web-1")).unwrap();
    symlink(&secret, scratch.directory.join("common/web-1/data.raw")).unwrap();
    assert_eq!(code(store.create(&guest, &shared("common"))), "DISK_STORE");
    assert!(scratch.files("h1").is_empty());
}

#[test]
fn storage_that_only_has_one_name_is_found_out() {
    let scratch = Scratch::new("apart");
    let (h1, h2, guest) = (scratch.store("h1"), scratch.store("h2"), scratch.guest.clone());
    let (disk, source) = (shared("apart"), "h1".parse::<HostName>().unwrap());
    h1.create(&guest, &disk).unwrap();
    let proof = DiskHere { place_proof: h1.prove(&guest, &disk).unwrap(), ..Default::default() };
    assert_eq!(code(h2.check_disks(&guest, &source, &[(disk.clone(), proof.clone())])), "STORAGE_NOT_SHARED");
    assert_eq!(code(h2.create(&guest, &shared("nfs7"))), "DISK_PLACE", "no such name here");
}

#[test]
fn a_disk_whose_storage_is_away_is_not_replaced_by_a_blank_one() {
    let scratch = Scratch::new("away");
    let (store, guest, disk) = (scratch.store("h1"), scratch.guest.clone(), shared("common"));
    store.create(&guest, &disk).unwrap();
    let (common, aside) = (scratch.directory.join("common"), scratch.directory.join("unmounted"));
    fs::rename(&common, &aside).unwrap();
    fs::create_dir(&common).unwrap();
    assert_eq!(code(store.create(&guest, &disk)), "DISK_STORE");
    assert!(fs::read_dir(&common).unwrap().next().is_none());
    fs::remove_dir(&common).unwrap();
    fs::rename(&aside, &common).unwrap();
    assert_eq!(store.create(&guest, &disk).unwrap(), Made::Found);
}
