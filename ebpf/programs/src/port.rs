//! A port's words, which every CPU and user space work on at the same time.
//!
//! `core::sync::atomic` has no arithmetic for this target, so the two read-modify-write operations there are are written
//! out. Both are the plain kind that returns nothing (`lock +=` works on any kernel, `lock |=` since 5.12).

use core::{arch::asm, ptr};

use throughline_abi::{LANES, PortState};

use crate::maps::PORTS;

/// A live port in the shared map.
#[derive(Clone, Copy)]
pub(crate) struct Port(*mut PortState);

/// One read of a word that others write.
macro_rules! read {
    ($name:ident, $word:ty, $($doc:literal)+) => {
        $(#[doc = $doc])+
        #[inline(always)]
        pub(crate) fn $name(self) -> $word {
            // SAFETY: `Port` points at a whole value of the map (see `Port::at`); volatile because others write it.
            unsafe { ptr::read_volatile(&raw const (*self.0).$name) }
        }
    };
}

/// One more in a counter.
macro_rules! count {
    ($method:ident, $counter:ident) => {
        #[doc = concat!("One more in `", stringify!($counter), "`.")]
        #[inline(always)]
        pub(crate) fn $method(self) {
            // SAFETY: `Port` points at a whole value of the map (see `Port::at`), the counter is one of its words.
            unsafe { add(&raw mut (*self.0).$counter, 1) }
        }
    };
}

impl Port {
    /// The port in `slot`, if the map has such a slot.
    #[inline(always)]
    pub(crate) fn at(slot: u32) -> Option<Self> {
        PORTS.get_ptr_mut(slot).map(Self)
    }

    read!(mode, u32, "What `steer` does.");
    read!(direction, u32, "Where `refill` sends.");
    read!(tap, u32, "Interface index of the tap.");
    read!(hold, u32, "Interface index of the hold.");
    read!(carry, u32, "Interface index of the carry device.");
    read!(carry_id, u32, "Tunnel key of carried frames.");
    read!(remote_vtep, u32, "Where carried frames go.");
    read!(mark, u32, "What frames that have had their turn bear.");
    read!(line_limit, u32, "Most frames in line.");
    read!(bytes_limit, u64, "Most bytes in line.");
    read!(line, i64, "Frames in line.");
    read!(line_bytes, i64, "Bytes in line.");
    read!(open_lanes, u32, "Lanes the gate is open for.");
    read!(has_lanes, u32, "Not 0: senders have lanes.");
    read!(seen_lanes, u64, "Lanes in which a frame came.");

    count!(count_overflow, overflowed);
    count!(count_carried, carried);
    count!(count_refilled, refilled);
    count!(count_muted, muted);
    count!(count_passed, passed);
    count!(count_flooded, flooded);
    count!(count_landed, landed);
    count!(count_refused, refused);
    count!(count_forged, forged);

    /// Frames in line in one lane.
    #[inline(always)]
    pub(crate) fn lane(self, lane: u32) -> i64 {
        // SAFETY: as in `read!`; `lane_word` stays within the port.
        unsafe { ptr::read_volatile(self.lane_word(lane)) }
    }

    #[inline(always)]
    fn lane_word(self, lane: u32) -> *const i64 {
        // Masked, so that the verifier sees what is true anyway: there are that many.
        let lane = lane as usize & (LANES - 1);
        // SAFETY: within the array of a whole value of the map.
        unsafe { (&raw const (*self.0).lanes).cast::<i64>().add(lane) }
    }

    /// A frame came in that lane.
    #[inline(always)]
    pub(crate) fn see_lane(self, lane: u32) {
        let bit = 1 << (lane as usize & (LANES - 1));
        if self.seen_lanes() & bit == 0 {
            // SAFETY: as in `count!`.
            unsafe { or(&raw mut (*self.0).seen_lanes, bit) }
        }
    }

    /// One frame of `bytes` more in line: said before the frame is put there, so that no later one can slip past it.
    #[inline(always)]
    pub(crate) fn join_line(self, lane: u32, bytes: u32) {
        self.change_line(lane, 1, u64::from(bytes));
    }

    /// Takes [`Port::join_line`] back: the frame did not get there.
    #[inline(always)]
    pub(crate) fn leave_line(self, lane: u32, bytes: u32) {
        // Adding all ones subtracts one.
        self.change_line(lane, u64::MAX, u64::from(bytes).wrapping_neg());
    }

    #[inline(always)]
    fn change_line(self, lane: u32, frames: u64, bytes: u64) {
        // SAFETY: as in `count!`; the words of a line are signed, which addition does not care about.
        unsafe {
            add(self.lane_word(lane).cast_mut().cast(), frames);
            add((&raw mut (*self.0).line).cast(), frames);
            add((&raw mut (*self.0).line_bytes).cast(), bytes);
        }
    }

    /// One frame of `bytes` was diverted to the hold on `cpu`.
    #[inline(always)]
    pub(crate) fn count_held(self, bytes: u32, cpu: u32) {
        // SAFETY: as in `count!`; `cpu` is a hint, the last writer wins.
        unsafe {
            add(&raw mut (*self.0).held, 1);
            add(&raw mut (*self.0).held_bytes, u64::from(bytes));
            ptr::write_volatile(&raw mut (*self.0).cpu, cpu + 1);
        }
    }
}

/// Atomic `*word += value`.
///
/// # Safety
/// `word` points into a map value and is aligned.
#[inline(always)]
unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: the caller's.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value) }
}

/// Atomic `*word |= bits`.
///
/// # Safety
/// `word` points into a map value and is aligned.
#[inline(always)]
pub(crate) unsafe fn or(word: *mut u64, bits: u64) {
    // SAFETY: the caller's.
    unsafe { asm!("lock *(u64 *)({word} + 0) |= {bits}", word = in(reg) word, bits = in(reg) bits) }
}
