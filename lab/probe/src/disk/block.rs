//! One block: what it says of itself, and how it is told whether that is so.
//!
//! ```text
//! 0   magic          16  number of the write       32  name of the disk, padded with zeroes
//! 8   which block    24  acknowledged by then      48  CRC-32 of the block with zeroes here      64  filling
//! ```

/// Bytes of a block.
pub const LENGTH: usize = 4096;
/// Most bytes of a disk's name.
pub const LONGEST_NAME: usize = 16;

const MAGIC: u64 = u64::from_le_bytes(*b"tl-disk1");
const CHECKSUM: usize = 48;
const FILLING: usize = 64;

/// A block in memory, where the kernel can read it into and write it from without a copy.
#[derive(Debug, Clone)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; LENGTH]);

impl Default for Block {
    fn default() -> Self {
        Self([0; LENGTH])
    }
}

/// What a block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the write.
    pub sequence: u64,
    /// Last write known to be flushed when it was written.
    pub acknowledged: u64,
}

/// What is found where a block should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing: zeroes, as before the first write.
    Blank,
    /// A block that was written there.
    Sound(Stamp),
    /// Something else.
    Wrong(&'static str),
}

/// Which disk: what its name looks like in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label([u8; LONGEST_NAME]);

impl Label {
    /// Of that name, or as much of it as there is room for.
    pub fn new(name: &str) -> Self {
        let mut label = [0; LONGEST_NAME];
        let length = name.len().min(LONGEST_NAME);
        label[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self(label)
    }
}

impl Block {
    /// Makes it what `stamp` says, for its place.
    pub fn fill(&mut self, label: Label, place: u64, stamp: Stamp) {
        let words = [MAGIC, place, stamp.sequence, stamp.acknowledged];
        for (chunk, word) in self.0.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        self.0[32..CHECKSUM].copy_from_slice(&label.0);
        self.0[CHECKSUM..FILLING].fill(0);
        for (index, chunk) in self.0[FILLING..].chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&filling(place, stamp.sequence, index as u64).to_le_bytes());
        }
        let checksum = crc32fast::hash(&self.0);
        self.0[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// What a block is, at that place of that disk; of any disk if there is no label.
pub fn examine(block: &[u8; LENGTH], label: Option<Label>, place: u64) -> Found {
    if block.iter().all(|byte| *byte == 0) {
        return Found::Blank;
    }
    let word = |at: usize| block[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    if word(0) != MAGIC {
        return Found::Wrong("it is no block of ours");
    }
    let mut sum = crc32fast::Hasher::new();
    sum.update(&block[..CHECKSUM]);
    sum.update(&[0; FILLING - CHECKSUM]);
    sum.update(&block[FILLING..]);
    if u64::from(sum.finalize()) != word(CHECKSUM) || word(CHECKSUM + 8) != 0 {
        return Found::Wrong("its checksum is wrong");
    }
    if word(8) != place {
        return Found::Wrong("it is another block");
    }
    if label.is_some_and(|label| block[32..CHECKSUM] != label.0) {
        return Found::Wrong("it is another disk's");
    }
    Found::Sound(Stamp { sequence: word(16), acknowledged: word(24) })
}

/// Distinct for every place, write and word (the finalizer of splitmix64): halves of two writes do not look like one.
fn filling(place: u64, sequence: u64, word: u64) -> u64 {
    mix(sequence << 24 ^ place << 9 ^ word)
}

/// The finalizer of splitmix64.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { sequence: 77, acknowledged: 64 };

    fn block(place: u64, stamp: Stamp) -> Block {
        let mut block = Block::default();
        block.fill(Label::new("root"), place, stamp);
        block
    }

    #[test]
    fn a_block_says_what_it_is_where_it_is() {
        let root = Label::new("root");
        assert_eq!(examine(&block(5, STAMP).0, Some(root), 5), Found::Sound(STAMP));
        assert_eq!(examine(&block(5, STAMP).0, None, 5), Found::Sound(STAMP));
        assert!(matches!(examine(&block(5, STAMP).0, Some(root), 6), Found::Wrong("it is another block")));
        assert!(matches!(
            examine(&block(5, STAMP).0, Some(Label::new("data")), 5),
            Found::Wrong("it is another disk's")
        ));
        assert_eq!(examine(&Block::default().0, Some(root), 5), Found::Blank);
    }

    #[test]
    fn every_flipped_bit_and_every_tear_is_found() {
        for bit in 0..LENGTH * 8 {
            let mut flipped = block(5, STAMP);
            flipped.0[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(examine(&flipped.0, None, 5), Found::Wrong(_)), "bit {bit}");
        }
        let newer = block(5, Stamp { sequence: 78, acknowledged: 77 });
        for sector in 1..8 {
            let mut torn = block(5, STAMP);
            torn.0[..sector * 512].copy_from_slice(&newer.0[..sector * 512]);
            assert!(matches!(examine(&torn.0, None, 5), Found::Wrong(_)), "sector {sector}");
            torn.0[..sector * 512].fill(0);
            assert!(matches!(examine(&torn.0, None, 5), Found::Wrong(_)), "blank up to sector {sector}");
        }
    }
}
