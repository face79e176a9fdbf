//! Disks that lose writes, flip bytes, mix up blocks and hang on purpose: the writer in the guest and the check of a file must each
//! find it, and accuse no disk that does none of that.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use throughline_probe::control::{Client, Ports, Request, Response};
use throughline_probe::disk::block::{LENGTH, Label};
use throughline_probe::disk::check::{Verdict, check};
use throughline_probe::disk::order::Order;
use throughline_probe::disk::writer::{Config, Progress, Writer};
use throughline_probe::guest;

use super::{ADDRESS, own_network};

const BLOCKS: u64 = 100;

/// A file that plays the disk; gone with the value. Not below /tmp, which need not take O_DIRECT.
struct Played(PathBuf);

impl Played {
    fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-disk-{}-{test}", std::process::id()));
        File::create(&path).unwrap().set_len(BLOCKS * LENGTH as u64).unwrap();
        Self(path)
    }

    fn writer(&self) -> (Writer, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        (Writer::open(&self.0, "root", progress.clone()).unwrap(), progress)
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.0).unwrap()
    }

    fn block(&self, place: u64) -> Vec<u8> {
        let mut block = vec![0; LENGTH];
        self.file().read_exact_at(&mut block, place * LENGTH as u64).unwrap();
        block
    }

    /// Puts that there behind the writer's back.
    fn put(&self, place: u64, block: &[u8]) {
        let file = self.file();
        file.write_all_at(block, place * LENGTH as u64).unwrap();
        file.sync_all().unwrap();
    }

    fn check(&self, acknowledged: u64) -> Verdict {
        check(&self.file(), Some(Label::new("root")), acknowledged).unwrap()
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What the writer has found after it has looked at all of it.
fn looked(writer: &mut Writer, progress: &Progress) -> (u64, u64) {
    writer.verify(2 * BLOCKS).unwrap();
    let status = progress.status();
    (status.wrong, status.missing)
}

#[test]
fn a_faithful_disk_is_not_accused_at_any_moment() {
    let disk = Played::new("faithful");
    let (mut writer, progress) = disk.writer();
    for turn in 1..=40 {
        writer.write(8).unwrap();
        assert_eq!(looked(&mut writer, &progress), (0, 0));
        let verdict = disk.check(progress.status().acknowledged);
        assert!(verdict.is_sound(), "after {turn}: {verdict:?}");
        assert_eq!((verdict.newest, verdict.acknowledged), (8 * turn, 8 * turn));
    }
    let status = progress.status();
    assert_eq!((status.blocks, status.written, status.acknowledged), (BLOCKS, 320, 320));
    assert_eq!((status.verified, status.failed), (40 * 2 * BLOCKS, 0));
    let verdict = disk.check(0);
    assert_eq!((verdict.blank, verdict.sound, verdict.acknowledged), (0, BLOCKS, 312), "the blocks alone know so much");
}

#[test]
fn a_flipped_byte_is_found() {
    let disk = Played::new("flipped");
    let (mut writer, progress) = disk.writer();
    writer.write(BLOCKS).unwrap();
    let mut block = disk.block(42);
    block[1234] ^= 1;
    disk.put(42, &block);
    assert_eq!(looked(&mut writer, &progress), (1, 0));
    assert_eq!(looked(&mut writer, &progress), (1, 0), "counted once");
    let verdict = disk.check(0);
    assert_eq!((verdict.wrong, verdict.missing, verdict.faults[0].block), (1, 0, 42));
    // Rewritten it is well again.
    writer.write(BLOCKS).unwrap();
    assert_eq!(looked(&mut writer, &progress), (1, 0));
    assert!(disk.check(0).is_sound());
}

#[test]
fn a_lost_write_is_found() {
    let disk = Played::new("lost");
    let (mut writer, progress) = disk.writer();
    writer.write(BLOCKS).unwrap();
    let order = Order::new(BLOCKS);
    // The first write of the second pass does not reach the disk; later ones do.
    let place = order.block_of(BLOCKS + 1);
    let old = disk.block(place);
    writer.write(8).unwrap();
    writer.write(8).unwrap();
    assert!(disk.check(0).is_sound());
    disk.put(place, &old);
    assert_eq!(looked(&mut writer, &progress), (0, 1));
    let verdict = disk.check(0);
    assert_eq!((verdict.wrong, verdict.missing), (0, 1));
    assert_eq!(verdict.faults[0].block, place);
    // So is one of the first pass, where nothing is.
    disk.put(order.block_of(BLOCKS), &[0; LENGTH]);
    assert_eq!((disk.check(0).missing, looked(&mut writer, &progress)), (2, (0, 2)));
}

#[test]
fn the_very_last_write_is_missed_by_who_knows_of_it() {
    let disk = Played::new("last");
    let (mut writer, progress) = disk.writer();
    writer.write(8).unwrap();
    let place = Order::new(BLOCKS).block_of(9);
    let old = disk.block(place);
    writer.write(1).unwrap();
    disk.put(place, &old);
    assert_eq!(disk.check(0).missing, 0, "no block tells of it");
    assert_eq!(disk.check(progress.status().acknowledged).missing, 1);
    assert_eq!(looked(&mut writer, &progress), (0, 1));
}

#[test]
fn mixed_up_blocks_and_disks_are_found() {
    let disk = Played::new("mixed");
    let (mut writer, progress) = disk.writer();
    writer.write(BLOCKS).unwrap();
    let (one, other) = (disk.block(3), disk.block(4));
    disk.put(3, &other);
    disk.put(4, &one);
    assert_eq!(looked(&mut writer, &progress), (2, 0));
    assert_eq!(disk.check(0).wrong, 2);
    let named = check(&disk.file(), Some(Label::new("data")), 0).unwrap();
    assert_eq!(named.wrong, BLOCKS);
}

#[test]
fn a_writer_that_is_started_anew_goes_on_and_finds_what_was_done_meanwhile() {
    let disk = Played::new("anew");
    let (mut writer, _) = disk.writer();
    writer.write(BLOCKS).unwrap();
    writer.write(8).unwrap();
    drop(writer);
    let mut block = disk.block(7);
    block[4095] ^= 0x80;
    disk.put(7, &block);
    let (mut writer, progress) = disk.writer();
    // Of the last batch nobody but the writer knew that it was flushed; it is written again.
    assert_eq!(progress.status().acknowledged, BLOCKS);
    assert_eq!(looked(&mut writer, &progress), (1, 0));
    writer.write(BLOCKS).unwrap();
    assert_eq!(looked(&mut writer, &progress), (1, 0));
    assert!(disk.check(2 * BLOCKS).is_sound());
}

#[test]
fn the_check_says_no_by_its_status_too() {
    let disk = Played::new("program");
    let (mut writer, _) = disk.writer();
    writer.write(BLOCKS).unwrap();
    let program = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughline-probe"));
        let ended = command.arg("disk-check").arg(&disk.0).args(arguments).output().unwrap();
        (ended.status.success(), serde_json::from_slice::<Verdict>(&ended.stdout).unwrap())
    };
    let (sound, verdict) = program(&["--name", "root", "--acknowledged", "100"]);
    assert!(sound && verdict.sound == BLOCKS, "{verdict:?}");
    let (sound, verdict) = program(&["--acknowledged", "101"]);
    assert!(!sound && verdict.missing == 1, "{verdict:?}");
    disk.put(50, &[0xff; LENGTH]);
    let (sound, verdict) = program(&[]);
    assert!(!sound && verdict.wrong == 1, "{verdict:?}");
}

/// Asks until the guest end's one disk is so.
fn until(client: &mut Client, what: &str, is: impl Fn(&throughline_probe::disk::Status) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let Response::Disks(disks) = client.ask(&Request::Disks).unwrap() else { panic!("another answer") };
        if is(&disks[0]) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {disks:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_guest_end_tells_of_its_disks_over_the_control_connection() {
    own_network();
    let disk = Played::new("guest");
    let ports = Ports::from(7930);
    let disks = vec![Config { name: disk.0.to_str().unwrap().to_owned(), rate: 4 << 20 }];
    let config = guest::Config { address: ADDRESS, ports, memory: 1 << 20, memory_rate: 1 << 20, disks };
    thread::spawn(move || guest::run(&config).expect("the guest end runs"));
    let mut client = Client::connect(ADDRESS, ports.control, Duration::from_secs(5)).unwrap();
    until(&mut client, "all is written and read back", |status| {
        assert_eq!((status.wrong, status.missing, status.failed), (0, 0, 0), "{status:?}");
        status.acknowledged > BLOCKS && status.verified > 2 * BLOCKS
    });
    // Faster than it is written anew: one of these stays to be found.
    for place in 0..BLOCKS {
        disk.put(place, &[0xff; LENGTH]);
    }
    until(&mut client, "corruption is found", |status| status.wrong > 0);
}
