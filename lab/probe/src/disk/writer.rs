//! The writer in the guest: writes, flushes, remembers what was acknowledged, and reads it back from the disk itself.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Status;
use super::block::{Block, Found, LENGTH, Label, Stamp, examine};
use super::check::check;
use super::find::find;
use super::order::Order;
use crate::clock::Pacer;

/// Most blocks between two flushes.
const BATCH: u64 = 16;
/// Blocks read back for each one written.
const LOOKS: u64 = 2;
/// Until what failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// Which disk to write to, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Serial number of the disk, or the path of one; all that is on it is lost.
    pub name: String,
    /// Bytes written a second.
    pub rate: usize,
}

/// How a disk is doing, for whoever asks: also while a write hangs.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Counters>);

#[derive(Debug, Default)]
struct Counters {
    status: Status,
    slowest: Duration,
    /// When the write or flush under way began.
    begun: Option<Instant>,
}

impl Progress {
    /// As of now.
    pub fn status(&self) -> Status {
        self.with(|counters| {
            let under_way = counters.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            let slowest_write_ms = counters.slowest.max(under_way).as_millis() as u64;
            Status { slowest_write_ms, ..counters.status.clone() }
        })
    }

    fn count(&self, change: impl FnOnce(&mut Status)) {
        self.with(|counters| change(&mut counters.status));
    }

    /// Does it, and notes how long it takes.
    fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        self.with(|counters| counters.begun = Some(begun));
        let done = work();
        self.with(|counters| {
            counters.begun = None;
            counters.slowest = counters.slowest.max(begun.elapsed());
        });
        done
    }

    fn with<T>(&self, work: impl FnOnce(&mut Counters) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes to one disk.
#[derive(Debug)]
pub struct Writer {
    file: File,
    label: Label,
    order: Order,
    /// For each block the last write that was acknowledged.
    acknowledged: Vec<u64>,
    /// The next write's number.
    next: u64,
    /// The last write that may have reached the disk.
    newest: u64,
    /// Blocks read back so far.
    looked: u64,
    /// Blocks that were found wrong or missing and were not rewritten since: each counts once.
    faulty: BTreeSet<u64>,
    block: Box<Block>,
    progress: Arc<Progress>,
}

impl Writer {
    /// Opens a disk past the page cache, so that what is read comes from it. Goes on with one that was written before.
    pub fn open(path: &Path, name: &str, progress: Arc<Progress>) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
        let label = Label::new(name);
        let before = check(&file, Some(label), 0)?;
        // For who sees nothing of the guest but its console: a test of a replica is on no network.
        eprintln!("disk {name} was found as {}", serde_json::to_string(&before)?);
        let order = Order::new(before.blocks);
        progress.count(|status| {
            status.blocks = before.blocks;
            status.acknowledged = before.acknowledged;
        });
        Ok(Self {
            file,
            label,
            order,
            acknowledged: order.latest(before.acknowledged),
            next: before.acknowledged + 1,
            newest: before.newest,
            looked: 0,
            faulty: BTreeSet::new(),
            block: Box::default(),
            progress,
        })
    }

    /// Writes the next blocks and flushes them. If it fails, nothing of it is acknowledged, and the next call writes the same.
    pub fn write(&mut self, count: u64) -> io::Result<()> {
        let flushed = self.next - 1;
        for sequence in self.next..self.next + count {
            let place = self.order.block_of(sequence);
            self.block.fill(self.label, place, Stamp { sequence, acknowledged: flushed });
            self.newest = self.newest.max(sequence);
            self.progress.time(|| self.file.write_all_at(&self.block.0, place * LENGTH as u64))?;
            self.progress.count(|status| status.written += 1);
        }
        self.progress.time(|| self.file.sync_data())?;
        for sequence in self.next..self.next + count {
            let place = self.order.block_of(sequence);
            self.acknowledged[place as usize] = sequence;
            self.faulty.remove(&place);
        }
        self.next += count;
        self.progress.count(|status| status.acknowledged = self.next - 1);
        Ok(())
    }

    /// Reads the next blocks back and compares them; in an order of its own, in which each pass is over all of them.
    pub fn verify(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            let place = self.order.block_of(self.looked + 1);
            self.file.read_exact_at(&mut self.block.0, place * LENGTH as u64)?;
            self.looked += 1;
            let fault = self.fault(place, examine(&self.block.0, Some(self.label), place));
            let is_new = fault.is_some() && self.faulty.insert(place);
            self.progress.count(|status| {
                status.verified += 1;
                match fault.filter(|_| is_new) {
                    Some(Fault::Wrong) => status.wrong += 1,
                    Some(Fault::Missing) => status.missing += 1,
                    None => {}
                }
            });
        }
        Ok(())
    }

    fn fault(&self, place: u64, found: Found) -> Option<Fault> {
        let wanted = self.acknowledged[place as usize];
        let sequence = match found {
            Found::Blank => 0,
            Found::Sound(Stamp { sequence, .. }) => sequence,
            Found::Wrong(_) => return Some(Fault::Wrong),
        };
        let never_written = sequence > self.newest || (sequence != 0 && self.order.block_of(sequence) != place);
        match () {
            () if never_written => Some(Fault::Wrong),
            () if sequence < wanted => Some(Fault::Missing),
            () => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Wrong,
    Missing,
}

/// Keeps a disk changing, and checked, for as long as the process lives.
pub fn start(config: Config) -> Arc<Progress> {
    let progress = Arc::new(Progress::default());
    progress.count(|status| status.name.clone_from(&config.name));
    let shared = progress.clone();
    thread::spawn(move || {
        let mut writer = loop {
            match find(&config.name).and_then(|path| Writer::open(&path, &config.name, shared.clone())) {
                Ok(writer) => break writer,
                Err(error) => complain(&shared, &config.name, &error),
            }
        };
        let batch = (config.rate as u64 / LENGTH as u64).clamp(1, BATCH);
        let slots = config.rate as u64 / (batch * LENGTH as u64);
        let mut pacer = Pacer::new(u32::try_from(slots).unwrap_or(u32::MAX));
        loop {
            pacer.wait();
            if let Err(error) = writer.write(batch).and_then(|()| writer.verify(LOOKS * batch)) {
                complain(&shared, &config.name, &error);
            }
        }
    });
    progress
}

fn complain(progress: &Progress, name: &str, error: &io::Error) {
    eprintln!("disk {name}: {error}; trying again");
    progress.count(|status| status.failed += 1);
    thread::sleep(AGAIN);
}
