//! Room in the tap's ring: a frame written into a full one is dropped, and nobody is told.

use super::{PumpError, device::Device};

/// Places that look taken in an empty ring: the kernel clears what was read in batches of two cache lines of pointers
/// (`ptr_ring`), 32 where a line has 128 bytes, but never more than half the ring.
const UNCLEARED: u32 = 32;

/// Counts what may still be written before the ring could be full. While a line of one lane is not empty only the pump
/// fills the ring (`steer` diverts the rest), so a ring seen empty takes as many frames as it has places. Of a line of
/// several, lanes that have sealed send straight into the same ring; half of it is left to them.
#[derive(Debug)]
pub(super) struct Room {
    tap: Device,
    places: u32,
    left: u32,
}

impl Room {
    pub(super) fn new(tap: Device, lanes: usize) -> Result<Self, PumpError> {
        let length = tap.ring_len().map_err(|source| PumpError::NotATap { role: "tap", source })?;
        let length = if lanes > 1 { length / 2 } else { length };
        let places = length - UNCLEARED.min(length / 2);
        Ok(Self { tap, places: places.max(1), left: 0 })
    }

    /// Takes one place; false if there may be none until the guest has read on.
    pub(super) fn take(&mut self) -> bool {
        if self.left == 0 && !self.tap.has_frames() {
            self.left = self.places;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// The place taken last was not needed.
    pub(super) fn put_back(&mut self) {
        self.left += 1;
    }

    /// Frames now go straight on, unseen by the pump: look again before the next is written.
    pub(super) fn forget(&mut self) {
        self.left = 0;
    }
}
