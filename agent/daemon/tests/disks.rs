//! Disks as QEMU's own tools see them: what is made is what was asked for, and a chart says where a disk has data. Needs root and
//! package qemu-utils.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use throughline_agent::disks::{BITMAP, Elsewhere, Made, Store};
use throughline_cutover::{Disk, DiskBus, DiskFormat, DiskPlace, DiskSize, GuestName};

const MIB: u64 = 1 << 20;
const GRAIN: u64 = 64 << 10;

/// A store and a directory that everybody may look into, gone with the value.
struct Scratch {
    directory: PathBuf,
    store: Store,
    guest: GuestName,
}

impl Scratch {
    fn new(test: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("throughline-disks-{}-{test}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let elsewhere = Elsewhere::new("h1".parse().unwrap(), None, BTreeMap::new());
        let store = Store::open(&directory.join("disks"), &"61000".parse().unwrap(), elsewhere).unwrap();
        Self { directory, store, guest: "web-1".parse().unwrap() }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    fn kept(&self, file: &str) -> PathBuf {
        self.directory.join("disks/web-1").join(file)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn disk(format: DiskFormat, mib: u64, image: &Path) -> Disk {
    Disk {
        name: "root".parse().unwrap(),
        size: DiskSize::try_from(mib * MIB).unwrap(),
        format,
        bus: DiskBus::VirtioBlk,
        image: image.to_str().unwrap().to_owned(),
        place: DiskPlace::Directory,
        over: false,
    }
}

fn img(arguments: &[&str]) -> Output {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-utils is installed: make setup");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn public(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

/// An image of 3 MiB, with something at 1 MiB, in that format.
fn image(scratch: &Scratch, format: DiskFormat) -> PathBuf {
    let raw = scratch.path("image.raw");
    let file = File::create(&raw).unwrap();
    file.set_len(3 * MIB).unwrap();
    file.write_all_at(&[0xa5; 8192], MIB).unwrap();
    public(&raw);
    if format == DiskFormat::Raw {
        return raw;
    }
    let qcow2 = scratch.path("image.qcow2");
    // Compressed, so that a copy takes more than the image.
    img(&["convert", "-c", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), qcow2.to_str().unwrap()]);
    public(&qcow2);
    qcow2
}

/// What a guest would read.
fn content(scratch: &Scratch, path: &Path, format: DiskFormat) -> Vec<u8> {
    let plain = scratch.path("plain");
    img(&["convert", "-f", format.as_str(), "-O", "raw", path.to_str().unwrap(), plain.to_str().unwrap()]);
    fs::read(plain).unwrap()
}

#[test]
fn a_disk_begins_blank_or_as_its_image_and_is_as_long_as_asked_for() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let scratch = Scratch::new(&format!("begin-{format}"));
        let file = scratch.kept(&format!("root.{format}"));
        let blank = disk(format, 8, Path::new(""));
        assert_eq!(scratch.store.create(&scratch.guest, &blank).unwrap(), Made::Anew);
        assert_eq!(content(&scratch, &file, format), vec![0; 8 << 20]);
        assert!(scratch.store.used(&scratch.guest, &blank).unwrap() < MIB);
        scratch.store.remove(&scratch.guest).unwrap();

        let wanted = disk(format, 8, &image(&scratch, format));
        assert_eq!(scratch.store.create(&scratch.guest, &wanted).unwrap(), Made::Anew);
        let mut expected = vec![0; 8 << 20];
        expected[1 << 20..][..8192].fill(0xa5);
        assert!(content(&scratch, &file, format) == expected, "{format}: it is not as its image");
        assert!(scratch.store.used(&scratch.guest, &wanted).unwrap() < MIB, "{format}: holes of the image are holes");
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), 0, "the tools' user has it no more");
        scratch.store.open_disk(&scratch.guest, &wanted).unwrap();
    }
}

#[test]
fn a_disk_that_comes_is_blank_and_is_written_by_its_descriptor() {
    let scratch = Scratch::new("come");
    let qcow2 = disk(DiskFormat::Qcow2, 8, Path::new(""));
    let copy = "c-1".parse().unwrap();
    let file = scratch.store.receive(&scratch.guest, &qcow2, MIB, &copy, None).unwrap().file;
    assert_eq!(content(&scratch, &scratch.kept("root.qcow2.c-1.incoming"), DiskFormat::Qcow2), vec![0; 8 << 20]);
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let write =
        Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -q -P 7 65536 65536", &path]).status().unwrap();
    assert!(write.success());
    scratch.store.keep(&scratch.guest, std::slice::from_ref(&qcow2)).unwrap();
    drop(file);
    let found = content(&scratch, &scratch.kept("root.qcow2"), DiskFormat::Qcow2);
    assert!(found[65536..131_072].iter().all(|byte| *byte == 7));
    scratch.store.open_disk(&scratch.guest, &qcow2).unwrap();
}

#[test]
fn what_no_disk_may_begin_as_is_refused_in_words_and_leaves_nothing() {
    let scratch = Scratch::new("refused");
    let fine = image(&scratch, DiskFormat::Qcow2);
    let path = |file: &str| scratch.path(file).to_str().unwrap().to_owned();
    let secret = scratch.path("secret.qcow2");
    fs::copy(&fine, &secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    img(&["create", "-q", "-f", "qcow2", "-b", &path("secret.qcow2"), "-F", "qcow2", &path("resting.qcow2")]);
    let data_file = format!("data_file={}", path("data"));
    img(&["create", "-q", "-f", "qcow2", "-o", &data_file, &path("elsewhere.qcow2"), "1M"]);
    img(&["create", "-q", "-f", "qcow2", &path("long.qcow2"), "16M"]);
    for file in ["resting.qcow2", "elsewhere.qcow2", "long.qcow2", "data"] {
        public(&scratch.path(file));
    }
    for (image, why) in [
        (secret, "not everybody may read it"),
        (scratch.path("resting.qcow2"), "rests on another file"),
        (scratch.path("elsewhere.qcow2"), "in another file"),
        (scratch.path("long.qcow2"), "give it at least that"),
        (scratch.path("image.raw"), "not in format qcow2"),
        (scratch.path("../x.qcow2"), "without `..`"),
        (scratch.path("none.qcow2"), "No such file"),
        (PathBuf::from("image.qcow2"), "absolute"),
        (PathBuf::from("/dev/zero"), "not a file"),
    ] {
        let refused = scratch.store.create(&scratch.guest, &disk(DiskFormat::Qcow2, 8, &image)).unwrap_err();
        assert_eq!(refused.code(), "DISK_IMAGE");
        assert!(refused.to_string().contains(why), "{}: {refused}", image.display());
    }
    // The head is sound, the rest is not: the tool's own words.
    let broken = scratch.path("broken.qcow2");
    let mut bytes = fs::read(&fine).unwrap();
    bytes[40..48].fill(0xff);
    fs::write(&broken, bytes).unwrap();
    public(&broken);
    let refused = scratch.store.create(&scratch.guest, &disk(DiskFormat::Qcow2, 8, &broken)).unwrap_err();
    assert_eq!(refused.code(), "DISK_TOOL");
    assert!(refused.to_string().contains("L1"), "{refused}");
    assert_eq!(fs::read_dir(scratch.kept("")).unwrap().count(), 0);
}

/// qemu-nbd serving a chart's bitmap; ends with the value.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which ranges the bitmap of a chart has marked, as QEMU reads it.
fn marked(scratch: &Scratch, mut chart: &File) -> Vec<(u64, u64)> {
    let (copy, socket) = (scratch.path("chart.qcow2"), scratch.path("nbd.sock"));
    let mut bytes = Vec::new();
    chart.rewind().unwrap();
    chart.read_to_end(&mut bytes).unwrap();
    fs::write(&copy, bytes).unwrap();
    let _of_the_last_one = fs::remove_file(&socket);
    let mut nbd = Command::new("qemu-nbd");
    nbd.args(["-r", "-f", "qcow2", "-B", BITMAP, "-t", "-k"]).arg(&socket).arg(&copy).stderr(Stdio::null());
    let _served = Served(nbd.spawn().expect("qemu-utils is installed: make setup"));
    let soon = Instant::now() + Duration::from_secs(10);
    while !socket.exists() && Instant::now() < soon {
        thread::sleep(Duration::from_millis(10));
    }
    let from = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{BITMAP}",
        socket.display()
    );
    let map = img(&["map", "--output=json", "--image-opts", &from]).stdout;
    let map: Vec<Value> = serde_json::from_slice(&map).unwrap();
    // With a bitmap in its place, what is no data is what is marked.
    let marked = map.iter().filter(|range| range["data"] == false);
    marked.map(|range| (range["start"].as_u64().unwrap(), range["length"].as_u64().unwrap())).collect()
}

#[test]
fn a_chart_marks_data_and_no_holes() {
    let scratch = Scratch::new("chart");
    let raw = disk(DiskFormat::Raw, 4096, Path::new(""));
    scratch.store.create(&scratch.guest, &raw).unwrap();
    let empty = File::from(scratch.store.chart(&scratch.guest, &raw).unwrap());
    assert_eq!(marked(&scratch, &empty), []);

    // A QEMU has it open meanwhile.
    let file = scratch.store.open_disk(&scratch.guest, &raw).unwrap();
    for (at, length) in [(0, 1), (10 * GRAIN + 5000, 4096), (1 << 30, 3 * GRAIN), (4096 * MIB - 4096, 4096)] {
        file.write_all_at(&vec![1; length as usize], at).unwrap();
    }
    let chart = File::from(scratch.store.chart(&scratch.guest, &raw).unwrap());
    assert!(chart.write_all_at(b"x", 0).is_err(), "it is to be read only");
    let expected = [(0, GRAIN), (10 * GRAIN, GRAIN), (1 << 30, 3 * GRAIN), (4096 * MIB - GRAIN, GRAIN)];
    assert_eq!(marked(&scratch, &chart), expected);
}

#[test]
fn a_chart_of_many_pieces_is_drawn_in_seconds() {
    let scratch = Scratch::new("pieces");
    let raw = disk(DiskFormat::Raw, 8192, Path::new(""));
    scratch.store.create(&scratch.guest, &raw).unwrap();
    let file = scratch.store.open_disk(&scratch.guest, &raw).unwrap();
    let pieces = (0..16_000).map(|piece| piece * 3 * GRAIN);
    for piece in pieces.clone() {
        file.write_all_at(b"x", piece).unwrap();
    }
    let before = Instant::now();
    let chart = File::from(scratch.store.chart(&scratch.guest, &raw).unwrap());
    println!("drawn in {:?}", before.elapsed());
    assert!(before.elapsed() < Duration::from_secs(30));
    let expected: Vec<_> = pieces.map(|piece| (piece, GRAIN)).collect();
    assert!(marked(&scratch, &chart) == expected, "it marks others than these 16,000");
}

#[test]
fn a_disk_over_an_image_has_only_what_differs_and_needs_the_very_image() {
    let scratch = Scratch::new("over");
    let image = scratch.path("base.qcow2");
    img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "8M"]);
    public(&image);
    let over = Disk { over: true, ..disk(DiskFormat::Qcow2, 16, &image) };
    assert_eq!(scratch.store.create(&scratch.guest, &over).unwrap(), Made::Anew);
    let info = img(&["info", "--output=json", scratch.kept("root.qcow2").to_str().unwrap()]);
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["virtual-size"], 16 * MIB);
    assert!(info["backing-filename"].as_str().unwrap().starts_with("sha256:"), "{info:#}");
    let file = scratch.store.open_disk(&scratch.guest, &over).unwrap();
    assert!(scratch.store.open_image(&scratch.guest, &over, &file).unwrap().is_some());
    let plain = Disk { over: false, ..over.clone() };
    drop(file);
    assert_eq!(scratch.store.open_disk(&scratch.guest, &plain).unwrap_err().code(), "DISK_UNFIT", "as one of its own");

    let sum = scratch.store.image_of(&scratch.guest, &over).unwrap().expect("it is over one");
    let check = |until: Instant| scratch.store.check_image(&scratch.guest, &over, &sum, until);
    check(Instant::now()).unwrap();

    // Where it comes to it is over the image too, or a disk of its own.
    let other = "web-2".parse().unwrap();
    let copy = "c-1".parse().unwrap();
    for (disk, is_over) in [(&over, true), (&plain, false)] {
        let came = scratch.store.receive(&other, disk, 0, &copy, None).unwrap();
        assert_eq!(came.image.is_some(), is_over);
        drop(came);
        scratch.store.put_aside(&other, false).unwrap();
    }
    let again = scratch.store.receive(&other, &plain, 0, &copy, Some(&copy)).unwrap();
    assert!(again.continued && again.image.is_none());
    drop(again);
    scratch.store.put_aside(&other, false).unwrap();
    let over_again = scratch.store.receive(&other, &over, 0, &copy, Some(&copy)).unwrap();
    assert!(
        !over_again.continued && over_again.image.is_some(),
        "what was to be whole is not gone on with over an image"
    );
    drop(over_again);

    // Another image is another disk.
    img(&["resize", "-q", "-f", "qcow2", image.to_str().unwrap(), "9M"]);
    assert_eq!(check(Instant::now() + Duration::from_secs(60)).unwrap_err().code(), "DISK_IMAGE");
    let file = scratch.store.open_disk(&scratch.guest, &over).unwrap();
    assert_eq!(scratch.store.open_image(&scratch.guest, &over, &file).unwrap_err().code(), "DISK_IMAGE");

    // One that takes its time is read for whoever comes again.
    File::options().write(true).open(&image).unwrap().set_len(512 * MIB).unwrap();
    assert_eq!(check(Instant::now()).unwrap_err().code(), "IMAGE_BEING_READ");
    assert_eq!(check(Instant::now() + Duration::from_secs(60)).unwrap_err().code(), "DISK_IMAGE");
    assert_eq!(check(Instant::now()).unwrap_err().code(), "DISK_IMAGE");
}
