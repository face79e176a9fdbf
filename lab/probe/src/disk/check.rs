//! A disk's file, checked against nothing but itself.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use super::block::{Found, LENGTH, Label, examine};
use super::order::Order;

/// Most faults that are told one by one.
const TOLD: usize = 16;

/// What is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which block.
    pub block: u64,
    /// What is wrong.
    pub why: String,
}

/// What a disk has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its length in blocks of 4 KiB.
    pub blocks: u64,
    /// Blocks that were never written, or look like it.
    pub blank: u64,
    /// Blocks that are what they say they are.
    pub sound: u64,
    /// Blocks that are not. Anything but 0: the disk is corrupted.
    pub wrong: u64,
    /// Blocks that are older than what was acknowledged. Anything but 0: a write was lost.
    pub missing: u64,
    /// Number of the last write that is known to have been flushed: by the blocks, or by whoever asks.
    pub acknowledged: u64,
    /// Number of the last write that is there.
    pub newest: u64,
    /// The first of what is wrong or missing.
    pub faults: Vec<Fault>,
}

impl Verdict {
    /// Whether everything acknowledged is there, and nothing else than what was written.
    pub fn is_sound(&self) -> bool {
        self.wrong == 0 && self.missing == 0
    }

    /// Counts a block. Gives the number of its write, 0 if it is blank, nothing if it is wrong.
    fn take(&mut self, place: u64, found: Found) -> Option<u64> {
        match found {
            Found::Blank => {
                self.blank += 1;
                Some(0)
            }
            Found::Sound(stamp) => {
                self.sound += 1;
                self.acknowledged = self.acknowledged.max(stamp.acknowledged);
                self.newest = self.newest.max(stamp.sequence);
                Some(stamp.sequence)
            }
            Found::Wrong(why) => {
                self.wrong += 1;
                self.blame(place, why.to_owned());
                None
            }
        }
    }

    fn blame(&mut self, block: u64, why: String) {
        if self.faults.len() < TOLD {
            self.faults.push(Fault { block, why });
        }
    }
}

/// For each block the number of its write, 0 if blank, nothing if wrong.
type Writes = Vec<Option<u64>>;

/// Checks a whole disk, a raw file or a device. `acknowledged`: what the writer is known to have had flushed; what the blocks say
/// counts too. Only with it is found that the last writes of all are lost. `label`: which disk it should be.
pub fn check(file: &File, label: Option<Label>, acknowledged: u64) -> io::Result<Verdict> {
    let length = (&*file).seek(SeekFrom::End(0))?;
    let order = Order::new(blocks(length)?);
    let mut verdict = Verdict { blocks: blocks(length)?, acknowledged, ..Verdict::default() };
    let writes = read(file, label, order, &mut verdict)?;
    for (block, (found, wanted)) in writes.into_iter().zip(order.latest(verdict.acknowledged)).enumerate() {
        if let Some(found) = found.filter(|found| *found < wanted) {
            verdict.missing += 1;
            verdict.blame(block as u64, format!("write {wanted} was acknowledged, write {found} is there"));
        }
    }
    Ok(verdict)
}

/// How many blocks a disk of `length` bytes has.
pub(super) fn blocks(length: u64) -> io::Result<u64> {
    match length / LENGTH as u64 {
        blocks @ 1..=0xffff_ffff => Ok(blocks),
        _ => Err(io::Error::other(format!("a disk of {length} bytes is too short or too long to be checked"))),
    }
}

/// Blocks that are read at a time, where the kernel can read them into without a copy.
#[repr(C, align(4096))]
struct Stretch([[u8; LENGTH]; 64]);

fn read(file: &File, label: Option<Label>, order: Order, verdict: &mut Verdict) -> io::Result<Writes> {
    let mut writes = Writes::new();
    let mut stretch = Box::new(Stretch([[0; LENGTH]; 64]));
    let mut from = 0;
    while from < verdict.blocks {
        let count = stretch.0.len().min((verdict.blocks - from) as usize);
        file.read_exact_at(stretch.0[..count].as_flattened_mut(), from * LENGTH as u64)?;
        for (place, block) in (from..).zip(&stretch.0[..count]) {
            writes.push(verdict.take(place, rightly(order, place, examine(block, label, place))));
        }
        from += count as u64;
    }
    Ok(writes)
}

/// A block that is sound, but whose write was to another place, is not.
fn rightly(order: Order, place: u64, found: Found) -> Found {
    match found {
        Found::Sound(stamp) if stamp.sequence == 0 || order.block_of(stamp.sequence) != place => {
            Found::Wrong("that write is to another block: is the disk as long as it was when it was written?")
        }
        found => found,
    }
}
