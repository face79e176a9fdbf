//! Room in the tap's ring: a frame written into a full one is dropped, and nobody is told.

use super::{PumpError, device::Device};

/// Places that look taken in an empty ring: the kernel clears what was read in batches of two cache lines of pointers
/// (`ptr_ring`), 32 where a line has 128 bytes, but never more than half the ring.
const UNCLEARED: u32 = 32;

/// Segments that a super-frame becomes on the tap of a guest which takes none: 64 KiB at TCP's least, 536 bytes.
const SEGMENTS: u32 = 128;

/// Counts what may still be written before the ring could be full. While a line of one lane is not empty only the pump
/// fills the ring (`steer` diverts the rest), so a ring seen empty takes as many frames as it has places. Of a line of
/// several, lanes that have sealed send straight into the same ring; half of it is left to them.
///
/// Which queue of a tap takes a frame is the kernel's choice. So all might go to one: there is no more room than one ring
/// has, and rings seen empty are all of them.
#[derive(Debug)]
pub(super) struct Room {
    /// Queue by queue.
    tap: Vec<Device>,
    places: u32,
    left: u32,
    /// Left for the segments of the frame that is read next.
    reserve: u32,
}

impl Room {
    pub(super) fn new(tap: Vec<Device>, lanes: usize) -> Result<Self, PumpError> {
        // All have the same, and what is no device has none.
        let length = tap.first().map_or(Ok(0), Device::ring_len);
        let length = length.map_err(|source| PumpError::NotATap { role: "tap", source })?;
        let length = if lanes > 1 { length / 2 } else { length };
        let places = length - UNCLEARED.min(length / 2);
        Ok(Self { tap, places: places.max(1), left: 0, reserve: SEGMENTS.min(places / 2) })
    }

    /// Takes one place; false if there may be none until the guest has read on.
    pub(super) fn take(&mut self) -> bool {
        if self.left <= self.reserve && !self.tap.iter().any(Device::has_frames) {
            self.left = self.places;
        }
        let room = self.left > self.reserve;
        self.left -= u32::from(room);
        room
    }

    /// The frame that a place was taken for, its vnet header of `header_len` bytes first: one that the tap may segment
    /// takes a place for every segment.
    pub(super) fn charge(&mut self, frame: &[u8], header_len: u32) {
        self.left = self.left.saturating_sub(segments(frame, header_len as usize).saturating_sub(1));
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

/// By `struct virtio_net_hdr`: kind at 1, length of the headers at 2, of a segment at 4.
fn segments(frame: &[u8], header_len: usize) -> u32 {
    let word = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
    if header_len < 10 || frame.len() < header_len || frame[1] == 0 || word(4) == 0 {
        return 1;
    }
    (frame.len() - header_len).saturating_sub(word(2)).div_ceil(word(4)) as u32
}
