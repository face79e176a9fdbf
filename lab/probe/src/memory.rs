//! A region of memory that is rewritten all the time and whose every byte is known beforehand.
//!
//! Page *i* in pass *g* has exactly one right content, so a page that a move left stale, swapped or torn is noticed,
//! whichever it was.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Pacer;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

/// Slots a second in which pages are rewritten.
const TICKS: u32 = 100;

/// How the region is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Pages watched.
    pub pages: u64,
    /// Pages rewritten since the start.
    pub rewritten: u64,
    /// Pages ever found with any other content than the last one written. Anything but 0: memory was corrupted.
    pub corrupted: u64,
}

/// The region; pages are rewritten in turn, each one checked first.
#[derive(Debug)]
pub struct Region {
    words: Vec<u64>,
    cursor: usize,
    pass: u64,
    status: Status,
}

impl Region {
    /// A region of `bytes`, rounded down to whole pages.
    pub fn new(bytes: usize) -> Self {
        let pages = bytes / PAGE;
        let mut region = Self {
            words: vec![0; pages * WORDS],
            cursor: 0,
            pass: 1,
            status: Status { pages: pages as u64, ..Status::default() },
        };
        for page in 0..pages {
            region.write(page, 0);
        }
        region
    }

    /// Checks the next `pages` pages and rewrites them.
    pub fn advance(&mut self, pages: usize) {
        for _ in 0..pages {
            let page = self.cursor;
            self.check(page);
            self.write(page, self.pass);
            self.status.rewritten += 1;
            self.cursor += 1;
            if self.cursor as u64 == self.status.pages {
                self.cursor = 0;
                self.pass += 1;
            }
        }
    }

    /// Checks every page now.
    pub fn verify(&mut self) -> Status {
        for page in 0..self.status.pages as usize {
            self.check(page);
        }
        self.status
    }

    fn check(&mut self, page: usize) {
        let pass = if page < self.cursor { self.pass } else { self.pass - 1 };
        let right = (0..WORDS).all(|word| self.words[page * WORDS + word] == content(page, pass, word));
        if !right {
            self.status.corrupted += 1;
            self.write(page, pass);
        }
    }

    fn write(&mut self, page: usize, pass: u64) {
        for word in 0..WORDS {
            self.words[page * WORDS + word] = content(page, pass, word);
        }
    }
}

/// What stands in a word: distinct for every page, pass and place (the finalizer of splitmix64).
fn content(page: usize, pass: u64, word: usize) -> u64 {
    let mut x = (page as u64) << 40 ^ pass << 16 ^ word as u64;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Keeps `bytes` of memory changing at about `rate` bytes a second, for as long as the process lives.
pub fn start(bytes: usize, rate: usize) -> Arc<Mutex<Region>> {
    let region = Arc::new(Mutex::new(Region::new(bytes)));
    let shared = region.clone();
    let pages = rate / PAGE / TICKS as usize;
    thread::spawn(move || {
        let mut pacer = Pacer::new(TICKS);
        loop {
            pacer.wait();
            shared.lock().unwrap_or_else(PoisonError::into_inner).advance(pages);
            // Lets a waiting verification have the lock.
            thread::sleep(Duration::from_micros(100));
        }
    });
    region
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_memory_is_right_in_every_pass() {
        let mut region = Region::new(8 * PAGE);
        for _ in 0..29 {
            region.advance(1);
            assert_eq!(region.verify().corrupted, 0);
        }
        assert_eq!(region.verify(), Status { pages: 8, rewritten: 29, corrupted: 0 });
    }

    #[test]
    fn one_flipped_bit_is_found() {
        let mut region = Region::new(8 * PAGE);
        region.words[3 * WORDS + 77] ^= 1 << 9;
        assert_eq!(region.verify().corrupted, 1);
        assert_eq!(region.verify().corrupted, 1, "counted once");
    }

    #[test]
    fn a_page_from_an_older_pass_is_found() {
        let mut region = Region::new(8 * PAGE);
        let old = region.words[5 * WORDS..6 * WORDS].to_vec();
        region.advance(8);
        region.words[5 * WORDS..6 * WORDS].copy_from_slice(&old);
        region.advance(8);
        assert_eq!(region.verify().corrupted, 1);
    }
}
