//! Which block a write is to: a function of its number, so that the numbers on a disk say which are missing.

use super::block::mix;

/// The order of writes to a disk of so many blocks. Writes are numbered from 1.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    blocks: u64,
}

impl Order {
    /// For a disk of `blocks`, at least one and less than 2³².
    pub fn new(blocks: u64) -> Self {
        Self { blocks }
    }

    /// The block that the write of that number (from 1) is to.
    pub fn block_of(self, sequence: u64) -> u64 {
        let (pass, place) = ((sequence - 1) / self.blocks, (sequence - 1) % self.blocks);
        (place * self.stride(pass) + mix(pass << 1) % self.blocks) % self.blocks
    }

    /// For each block the last write to it up to that number; 0 for one not written yet.
    pub fn latest(self, through: u64) -> Vec<u64> {
        let mut latest = vec![0; self.blocks as usize];
        // In any two passes' worth of writes each block is written.
        for sequence in through.saturating_sub(2 * self.blocks) + 1..=through {
            latest[self.block_of(sequence) as usize] = sequence;
        }
        latest
    }

    /// Steps of this length lead to every block once before any twice.
    fn stride(self, pass: u64) -> u64 {
        let start = mix(pass << 1 | 1) % self.blocks;
        (start..start + self.blocks).find(|stride| common_divisor(*stride, self.blocks) == 1).unwrap_or(1)
    }
}

fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_pass_writes_every_block_once_in_an_order_of_its_own() {
        for blocks in [1, 2, 3, 7, 256, 1000, 4096] {
            let order = Order::new(blocks);
            let pass = |pass: u64| (1..=blocks).map(|place| order.block_of(pass * blocks + place)).collect::<Vec<_>>();
            for number in 0..5 {
                assert_eq!(pass(number).into_iter().collect::<BTreeSet<_>>().len() as u64, blocks);
            }
            assert!(blocks < 100 || pass(0) != pass(1));
        }
        let far = Order::new(u64::from(u32::MAX) - 4);
        assert!(far.block_of(u64::MAX / 4) < far.blocks);
    }

    #[test]
    fn the_latest_writes_are_those_a_walk_from_the_start_finds() {
        let order = Order::new(24);
        let mut walked = vec![0; 24];
        assert_eq!(order.latest(0), walked);
        for sequence in 1..200 {
            walked[order.block_of(sequence) as usize] = sequence;
            assert_eq!(order.latest(sequence), walked, "through {sequence}");
        }
    }
}
