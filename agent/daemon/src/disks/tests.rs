//! The store over a directory of the test's own: what is there after each call, and after a crash within one.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
};

use throughline_cutover::{DiskBus, DiskSize};

use super::*;

const MIB: u64 = 1 << 20;

/// A store, gone with the value.
struct Scratch {
    directory: PathBuf,
    store: Store,
    guest: GuestName,
}

impl Scratch {
    fn new(test: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("throughline-store-{}-{test}", std::process::id()));
        let store =
            Store::open(&directory, &user(), elsewhere()).expect("run as root: QEMU's tools run as another user");
        Self { directory, store, guest: "web-1".parse().unwrap() }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.join("web-1").join(file)
    }

    /// What an agent that was killed left there.
    fn leave(&self, file: &str, content: &[u8]) {
        fs::create_dir_all(self.path("")).unwrap();
        fs::set_permissions(self.path(""), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(self.path(file), content).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("")) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn again(&self) -> Store {
        Store::open(&self.directory, &user(), elsewhere()).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn elsewhere() -> Elsewhere {
    Elsewhere::new("h1".parse().unwrap(), None, BTreeMap::new())
}

fn user() -> QemuUser {
    "61000".parse().unwrap()
}

fn disk(name: &str, mib: u64, format: DiskFormat) -> Disk {
    let (name, size) = (name.parse().unwrap(), DiskSize::try_from(mib * MIB).unwrap());
    Disk { name, size, format, bus: DiskBus::VirtioBlk, image: String::new(), place: DiskPlace::Directory, over: false }
}

fn raw(name: &str) -> Disk {
    disk(name, 8, DiskFormat::Raw)
}

fn copy(n: u32) -> CopyId {
    format!("c-{n}").parse().unwrap()
}

fn receive(store: &Store, guest: &GuestName, disk: &Disk) -> Result<File, DiskError> {
    store.receive(guest, disk, 0, &copy(1), None).map(|received| received.file)
}

fn code<T: std::fmt::Debug>(result: Result<T, DiskError>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn a_disk_is_made_once_and_opened_by_one() {
    let scratch = Scratch::new("once");
    let (store, guest, root) = (&scratch.store, &scratch.guest, raw("root"));
    assert_eq!(code(store.open_disk(guest, &root)), "DISK_MISSING");
    assert_eq!(store.create(guest, &root).unwrap(), Made::Anew);
    let file = store.open_disk(guest, &root).unwrap();
    file.write_all_at(b"kept", 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8 * MIB);
    assert!(store.used(guest, &root).unwrap() < MIB, "it is sparse");

    // Opened by one, also if that one has only a copy of the descriptor.
    let copy = file.try_clone().unwrap();
    drop(file);
    assert_eq!(code(scratch.again().open_disk(guest, &root)), "DISK_IN_USE");
    assert_eq!(code(store.remove(guest)), "DISK_IN_USE");
    drop(copy);

    assert_eq!(store.create(guest, &root).unwrap(), Made::Found);
    let mut content = [0; 4];
    store.open_disk(guest, &root).unwrap().read_exact_at(&mut content, 4096).unwrap();
    assert_eq!(&content, b"kept");
    let modes = [scratch.directory.clone(), scratch.path(""), scratch.path("root.raw")];
    let modes = modes.map(|path| path.metadata().unwrap().permissions().mode() & 0o777);
    assert_eq!(modes, [0o700, 0o700, 0o600]);
}

#[test]
fn what_is_there_and_is_not_that_disk_is_left_alone() {
    let scratch = Scratch::new("other");
    let (store, guest) = (&scratch.store, &scratch.guest);
    store.create(guest, &raw("root")).unwrap();
    let longer = disk("root", 16, DiskFormat::Raw);
    assert_eq!(code(store.create(guest, &longer)), "DISK_UNFIT");
    assert_eq!(code(store.open_disk(guest, &longer)), "DISK_UNFIT");
    for other in [disk("root", 8, DiskFormat::Qcow2), raw("root")] {
        assert_eq!(code(receive(store, guest, &other)), "DISK_EXISTS");
    }
    assert_eq!(code(store.create(guest, &disk("root", 8, DiskFormat::Qcow2))), "DISK_EXISTS");
    // A name that leads elsewhere, or a file that has another name.
    fs::write(scratch.directory.join("secret"), vec![0; 8 << 20]).unwrap();
    symlink("../secret", scratch.path("link.raw")).unwrap();
    fs::hard_link(scratch.directory.join("secret"), scratch.path("twin.raw")).unwrap();
    assert!(store.open_disk(guest, &raw("link")).is_err());
    assert_eq!(code(store.open_disk(guest, &raw("twin"))), "DISK_UNFIT");
    assert_eq!(scratch.files(), ["link.raw", "root.raw", "twin.raw"]);
}

#[test]
fn what_came_is_kept_or_discarded_and_either_may_be_said_again() {
    let scratch = Scratch::new("come");
    let (store, guest) = (&scratch.store, &scratch.guest);
    let disks = [raw("root"), raw("data.raw")];
    let open: Vec<_> = disks.iter().map(|disk| receive(store, guest, disk).unwrap()).collect();
    open[0].write_all_at(b"came", 0).unwrap();
    assert_eq!(scratch.files(), ["data.raw.raw.c-1.incoming", "root.raw.c-1.incoming"]);
    for disk in &disks {
        assert_eq!(code(store.open_disk(guest, disk)), "DISK_MISSING");
    }
    // While a QEMU has them nobody takes them from it.
    assert_eq!(code(store.discard_incoming(guest)), "DISK_IN_USE");
    assert_eq!(code(receive(store, guest, &disks[0])), "DISK_IN_USE");
    // It is decided while that QEMU has them.
    for _ in 0..2 {
        store.keep(guest, &disks).unwrap();
        store.discard_incoming(guest).unwrap();
        assert_eq!(scratch.files(), ["data.raw.raw", "root.raw"]);
    }
    assert_eq!(code(store.open_disk(guest, &disks[0])), "DISK_IN_USE");
    drop(open);
    assert_eq!(fs::read(scratch.path("root.raw")).unwrap()[..4], *b"came");

    for _ in 0..2 {
        store.remove(guest).unwrap();
        assert!(!scratch.path("").exists());
        assert_eq!(store.guests().unwrap(), []);
    }
    drop(receive(store, guest, &disks[0]).unwrap());
    for _ in 0..2 {
        store.discard_incoming(guest).unwrap();
        assert!(!scratch.path("").exists());
    }
    assert_eq!(code(store.keep(guest, &disks)), "DISK_MISSING");
}

#[test]
fn after_a_crash_each_call_is_made_again() {
    let scratch = Scratch::new("crash");
    let (store, guest) = (&scratch.store, &scratch.guest);
    let disks = [raw("root"), raw("data")];

    // In the middle of `create`: a half-made file in its way.
    scratch.leave("root.raw.new", b"half");
    assert_eq!(store.create(guest, &disks[0]).unwrap(), Made::Anew);
    assert_eq!(fs::read(scratch.path("root.raw")).unwrap(), vec![0; 8 << 20]);
    assert_eq!(scratch.files(), ["root.raw"]);

    // In the middle of `remove`: the first file is gone.
    scratch.leave("data.raw", b"");
    fs::remove_file(scratch.path("root.raw")).unwrap();
    store.remove(guest).unwrap();
    assert!(!scratch.path("").exists());

    // In the middle of `receive`, at the second disk: the first has come whole.
    drop(receive(store, guest, &disks[0]).unwrap());
    fs::write(scratch.path("root.raw.c-1.incoming"), b"of an earlier attempt").unwrap();
    scratch.leave("data.raw.new", b"half");
    assert_eq!(scratch.again().guests().unwrap(), std::slice::from_ref(guest));
    assert_eq!(scratch.files(), ["root.raw.c-1.incoming"], "a new agent sweeps");
    for disk in &disks {
        receive(store, guest, disk).unwrap();
    }
    assert_eq!(fs::read(scratch.path("root.raw.c-1.incoming")).unwrap(), vec![0; 8 << 20], "blank again");

    // In the middle of `keep`: the first is kept, the second is not.
    fs::rename(scratch.path("root.raw.c-1.incoming"), scratch.path("root.raw")).unwrap();
    store.keep(guest, &disks).unwrap();
    assert_eq!(scratch.files(), ["data.raw", "root.raw"]);

    // In the middle of `discard_incoming`, and a disk that came in another format at an earlier attempt.
    store.remove(guest).unwrap();
    scratch.leave("root.qcow2.c-1.incoming", b"");
    drop(receive(store, guest, &disks[0]).unwrap());
    assert_eq!(scratch.files(), ["root.raw.c-1.incoming"]);
    scratch.leave("data.raw.new", b"half");
    store.discard_incoming(guest).unwrap();
    assert!(!scratch.path("").exists());
}

#[test]
fn a_disk_that_neither_came_nor_is_kept_stops_the_keeping_of_all() {
    let scratch = Scratch::new("neither");
    let (store, guest) = (&scratch.store, &scratch.guest);
    receive(store, guest, &raw("root")).unwrap();
    assert_eq!(code(store.keep(guest, &[raw("root"), raw("data")])), "DISK_MISSING");
    assert_eq!(scratch.files(), ["root.raw.c-1.incoming"]);
    // Nor is a disk made anew under one that is coming.
    assert_eq!(code(store.create(guest, &raw("root"))), "DISK_EXISTS");
}

#[test]
fn too_little_room_is_told_with_what_is_needed_and_what_there_is() {
    let scratch = Scratch::new("room");
    let error = scratch.store.receive(&scratch.guest, &raw("root"), 1 << 60, &copy(1), None).unwrap_err();
    let DiskError::Space { need, have, .. } = &error else { panic!("{error}") };
    assert!(*need > 1 << 60 && *have < 1 << 50);
    assert_eq!(error.code(), "DISK_SPACE");
    let said = error.to_string();
    assert!(
        said.contains(&need.to_string()) && said.contains(&have.to_string()) && said.contains("--disk-dir"),
        "{said}"
    );
    assert_eq!(scratch.files(), [""; 0], "nothing was made");
}

#[test]
fn what_is_not_of_the_store_stays() {
    let scratch = Scratch::new("foreign");
    let (store, guest) = (&scratch.store, &scratch.guest);
    store.create(guest, &raw("root")).unwrap();
    scratch.leave("notes.txt", b"");
    scratch.leave("root.incoming", b"");
    fs::create_dir(scratch.directory.join("lost+found")).unwrap();
    assert_eq!(scratch.again().guests().unwrap(), std::slice::from_ref(guest));
    store.remove(guest).unwrap();
    assert_eq!(scratch.files(), ["notes.txt", "root.incoming"]);
}

#[test]
fn a_directory_that_others_see_into_is_refused() {
    let scratch = Scratch::new("open");
    fs::set_permissions(&scratch.directory, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(code(Store::open(&scratch.directory, &user(), elsewhere())), "DISK_STORE");
}

#[test]
fn a_next_try_goes_on_with_what_came() {
    let scratch = Scratch::new("part");
    let (store, guest, root) = (&scratch.store, &scratch.guest, raw("root"));
    let receive = |disk: &Disk, n, begun_by: Option<u32>| {
        store.receive(guest, disk, 0, &copy(n), begun_by.map(copy).as_ref()).unwrap()
    };
    let first = receive(&root, 1, None);
    assert!(!first.continued);
    first.file.write_all_at(b"came", 4096).unwrap();
    assert_eq!(code(store.put_aside(guest, false)), "DISK_IN_USE");
    drop(first);
    for _ in 0..2 {
        store.put_aside(guest, false).unwrap();
        assert_eq!(scratch.files(), ["root.raw.c-1.part"]);
    }
    // The same agent or the next; a host that was down has none.
    scratch.again();
    assert_eq!(scratch.files(), ["root.raw.c-1.part"]);

    let second = receive(&root, 2, Some(1));
    assert!(second.continued);
    let mut content = [0; 4];
    second.file.read_exact_at(&mut content, 4096).unwrap();
    assert_eq!(&content, b"came");
    assert_eq!(scratch.files(), ["root.raw.c-1.incoming"]);
    // An agent that was killed did not put it aside: that is as good.
    drop(second);
    assert!(receive(&root, 3, Some(1)).continued);
    // Another copying knows nothing of this one.
    store.put_aside(guest, false).unwrap();
    assert!(!receive(&root, 4, Some(3)).continued);
    assert_eq!(scratch.files(), ["root.raw.c-4.incoming"]);
    store.put_aside(guest, false).unwrap();
    assert!(!receive(&disk("root", 16, DiskFormat::Raw), 5, Some(4)).continued, "it is not that disk's");
    store.keep(guest, &[disk("root", 16, DiskFormat::Raw)]).unwrap();
    assert_eq!(scratch.files(), ["root.raw"]);
}

#[test]
fn a_part_is_not_believed_after_a_crash_that_may_have_cost_some_of_it() {
    let scratch = Scratch::new("doubt");
    let (store, guest) = (&scratch.store, &scratch.guest);
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        receive(store, guest, &disk(format.as_str(), 8, format)).unwrap();
    }
    // Its QEMU was killed.
    store.put_aside(guest, true).unwrap();
    assert_eq!(scratch.files(), ["raw.raw.c-1.part"]);
    // The host was, with a part and while another came.
    let down = || fs::write(scratch.directory.join(".boot-id"), "another").unwrap();
    receive(store, guest, &raw("root")).unwrap();
    down();
    scratch.again();
    assert_eq!(scratch.files(), ["root.raw.c-1.doubtful"]);
    store.put_aside(guest, true).unwrap();
    assert!(!scratch.path("").exists(), "nobody's");
    receive(store, guest, &raw("root")).unwrap();
    down();
    scratch.again();
    assert!(!store.receive(guest, &raw("root"), 0, &copy(2), Some(&copy(1))).unwrap().continued);
    assert_eq!(scratch.files(), ["root.raw.c-2.incoming"]);
    // A commit was: the file had been synced before.
    down();
    scratch.again();
    store.keep(guest, &[raw("root")]).unwrap();
    assert_eq!(scratch.files(), ["root.raw"]);
    store.remove(guest).unwrap();
    // Nobody came back for it.
    receive(store, guest, &raw("root")).unwrap();
    store.put_aside(guest, false).unwrap();
    store.remove_old_parts().unwrap();
    assert_eq!(scratch.files(), ["root.raw.c-1.part"]);
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 60 * 60);
    File::options().write(true).open(scratch.path("root.raw.c-1.part")).unwrap().set_modified(old).unwrap();
    store.remove_old_parts().unwrap();
    assert!(!scratch.path("").exists());
}

#[test]
fn a_directory_of_somebody_else_is_in_nobodys_way() {
    let scratch = Scratch::new("foreign-dir");
    scratch.store.create(&scratch.guest, &raw("root")).unwrap();
    let theirs = scratch.directory.join("old");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o755)).unwrap();
    let store = scratch.again();
    store.remove_old_parts().unwrap();
    store.open_disk(&scratch.guest, &raw("root")).unwrap();
}
