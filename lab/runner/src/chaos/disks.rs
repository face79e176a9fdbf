//! The disks of a guest that moves with some: what they are, and whether after a cell all of it is where it belongs.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use throughline_probe::disk::block::Label;
use throughline_probe::disk::check::check;

use super::storage;
use super::world::World;
use crate::demo::cast;
use crate::demo::disks::read_back;
use crate::signals;

/// What the guest is created with: a disk of either format that it writes all the time, and one it only has.
pub(super) const FLAGS: [&str; 6] = [
    "--disk",
    "name=root,size=1MiB",
    "--disk",
    "name=data,size=1MiB,format=qcow2,bus=virtio-scsi",
    "--disk",
    "name=big,size=64MiB",
];
/// Their files.
const FILES: [&str; 3] = ["big.raw", "data.qcow2", "root.raw"];
/// Bytes at the beginning of the one that is only had.
pub(super) const FILLED: u64 = 8 << 20;
/// Shared by three disks: that one then takes two seconds, and has a middle.
pub(super) const BANDWIDTH: &str = "12MiB";
/// How long what has to go may take to go, and a guest's disks to be there.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// How often a file is looked at that does not seem sound: its guest may have been writing just there.
const TRIES: u32 = 3;

/// What was seen of the disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copied {
    /// Bytes that an undisturbed move copies.
    pub(super) whole: u64,
    /// Bytes that the next move had to copy; none if it was not made or did not succeed.
    pub(super) left: Option<u64>,
}

/// The disks of a world's guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disks {
    /// What the one has that is only had.
    content: u64,
    /// Bytes that an undisturbed move copies.
    pub(super) whole: u64,
    /// Of the raw disk that is written: the last write that its guest said was acknowledged.
    acknowledged: u64,
    /// What is in all of their files while the guest is off.
    off: Option<[u64; 3]>,
}

impl Disks {
    /// Waits for those of a new guest and fills the one it does not write, which it has not read yet.
    pub(super) fn fill(world: &World<'_>, bytes: u64) -> Result<Self> {
        let path = directory(world, &world.home).join("big.raw");
        let deadline = Instant::now() + PATIENCE;
        while !path.exists() {
            ensure!(Instant::now() < deadline, "the guest has no {}", path.display());
            signals::sleep(LOOK)?;
        }
        let file = File::options().write(true).open(&path)?;
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        for at in (0..bytes).step_by(1 << 16) {
            let words = (0..1 << 13).flat_map(|_| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word.to_le_bytes()
            });
            file.write_all_at(&words.collect::<Vec<u8>>(), at)?;
        }
        Ok(Self { content: content(&path)?, whole: 0, acknowledged: 0, off: None })
    }
}

fn directory(world: &World<'_>, host: &str) -> PathBuf {
    storage::directory(world.stage.lab, host).join(cast::GUEST)
}

fn content(path: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.hash(&mut hasher);
    Ok(hasher.finish())
}

/// Names of the files of the guest's disks on a host.
fn files(world: &World<'_>, host: &str) -> Vec<String> {
    let entries = fs::read_dir(directory(world, host)).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What the guest says of its disks goes on from what it said before a blow that may be its last.
pub(super) fn note(world: &mut World<'_>) -> Result<()> {
    if world.disks.is_none_or(|disks| disks.off.is_some()) {
        return Ok(());
    }
    let (probes, _) = world.probes()?;
    let (from, to) = (probes.mark()?, probes.mark()?);
    let report = probes.report(from, to)?;
    let root = report.disks.iter().find(|disk| disk.name == "root").context("the guest says nothing of its disk")?;
    let acknowledged = root.acknowledged;
    world.disks.iter_mut().for_each(|disks| disks.acknowledged = acknowledged);
    Ok(())
}

/// The guest has just been shut off, or is about to be started: until the other, none of its files changes.
pub(super) fn set_off(world: &mut World<'_>, is_off: bool) -> Result<()> {
    let off = if is_off { Some(contents(world)?) } else { None };
    world.disks.iter_mut().for_each(|disks| disks.off = off);
    Ok(())
}

fn contents(world: &World<'_>) -> Result<[u64; 3]> {
    let directory = directory(world, &world.home);
    let mut contents = [0; FILES.len()];
    for (found, file) in contents.iter_mut().zip(FILES) {
        *found = content(&directory.join(file))?;
    }
    Ok(contents)
}

/// What is wrong with the files, in sentences: where the guest is its disks are, whole, and on the other host nothing is, or what a
/// next try may go on with.
pub(super) fn misplaced(world: &World<'_>, parts_may_be: bool) -> Result<Vec<String>> {
    let Some(disks) = world.disks else { return Ok(Vec::new()) };
    let deadline = Instant::now() + PATIENCE;
    let (here, there) = loop {
        let (here, there) = (files(world, &world.home), files(world, world.away()));
        let is_right = here == FILES && there.iter().all(|name| parts_may_be && name.ends_with(".part"));
        if is_right || Instant::now() > deadline {
            break (here, there);
        }
        signals::sleep(LOOK)?;
    };
    let mut wrong = Vec::new();
    if here != FILES {
        wrong.push(format!("the guest is on {}, and of its disks is there: {}", world.home, here.join(", ")));
    }
    if !there.iter().all(|name| parts_may_be && name.ends_with(".part")) {
        wrong.push(format!("left behind on {}: {}", world.away(), there.join(", ")));
    }
    let directory = directory(world, &world.home);
    if content(&directory.join("big.raw"))? != disks.content {
        wrong.push("the disk that the guest does not write is not what it was".to_owned());
    }
    if disks.off.is_some_and(|off| contents(world).ok() != Some(off)) {
        wrong.push("the guest was off, and its disks are not byte for byte what they were".to_owned());
    }
    wrong.extend(unsound(&directory.join("root.raw"), disks.acknowledged)?);
    Ok(wrong)
}

/// What is wrong with the raw disk that is written, by nothing but its file.
fn unsound(path: &Path, acknowledged: u64) -> Result<Option<String>> {
    let look = || check(&File::open(path)?, Some(Label::new("root")), acknowledged);
    let mut verdict = look()?;
    for _ in 1..TRIES {
        if verdict.is_sound() {
            return Ok(None);
        }
        signals::sleep(LOOK)?;
        verdict = look()?;
    }
    Ok((!verdict.is_sound()).then(|| {
        format!(
            "{}: {} blocks wrong, {} older than acknowledged: {:?}",
            path.display(),
            verdict.wrong,
            verdict.missing,
            verdict.faults
        )
    }))
}

/// What is wrong with what the guest reads back, every block of every disk it writes, in sentences.
pub(super) fn misread(world: &mut World<'_>) -> Result<Vec<String>> {
    if world.disks.is_none() {
        return Ok(Vec::new());
    }
    let (probes, _) = world.probes()?;
    Ok(read_back(probes)?.iter().filter_map(|disk| disk.broken()).collect())
}
