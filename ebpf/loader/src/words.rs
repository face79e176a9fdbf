//! The port map's pages, mapped: every word is shared with the programs, so every access is atomic.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use aya::maps::MapData;
use throughline_abi::{LANES, PortState, SLOTS, direction, mode};

/// What `steer` does with a frame for the guest; see [`throughline_abi::mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To the tap, as if no program were there.
    Pass,
    /// Dropped and counted: the destination before commit.
    Mute,
    /// To the hold: the source from arm on; at the destination this is the gate.
    Hold,
    /// Self-sealing, to the carry tunnel.
    Carry,
    /// Self-sealing, to the tap.
    Release,
}

impl Mode {
    const fn word(self) -> u32 {
        match self {
            Self::Pass => mode::PASS,
            Self::Mute => mode::MUTE,
            Self::Hold => mode::HOLD,
            Self::Carry => mode::CARRY,
            Self::Release => mode::RELEASE,
        }
    }
}

/// Where `refill` sends what is written back; see [`throughline_abi::direction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the port's own tap.
    Tap,
    /// To the carry tunnel.
    Carry,
}

impl Direction {
    const fn word(self) -> u32 {
        match self {
            Self::Tap => direction::TAP,
            Self::Carry => direction::CARRY,
        }
    }
}

/// [`PortState`], word for word, as atomics.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Words {
    mode: AtomicU32,
    direction: AtomicU32,
    tap: AtomicU32,
    hold: AtomicU32,
    carry: AtomicU32,
    carry_id: AtomicU32,
    remote_vtep: AtomicU32,
    mark: AtomicU32,
    line_limit: AtomicU32,
    cpu: AtomicU32,
    open_lanes: AtomicU32,
    has_lanes: AtomicU32,
    seen_lanes: AtomicU64,
    bytes_limit: AtomicU64,
    line: AtomicI64,
    line_bytes: AtomicI64,
    lanes: [AtomicI64; LANES],
    held: AtomicU64,
    held_bytes: AtomicU64,
    overflowed: AtomicU64,
    carried: AtomicU64,
    refilled: AtomicU64,
    muted: AtomicU64,
    passed: AtomicU64,
    flooded: AtomicU64,
    landed: AtomicU64,
    refused: AtomicU64,
    forged: AtomicU64,
    padding: [AtomicU64; 3],
}

const _: () = assert!(size_of::<Words>() == size_of::<PortState>());
const _: () = assert!(std::mem::offset_of!(Words, cpu) == std::mem::offset_of!(PortState, cpu));
const _: () = assert!(std::mem::offset_of!(Words, line) == std::mem::offset_of!(PortState, line));
const _: () = assert!(std::mem::offset_of!(Words, refused) == std::mem::offset_of!(PortState, refused));
const _: () = assert!(std::mem::offset_of!(Words, forged) == std::mem::offset_of!(PortState, forged));

macro_rules! each_word {
    ($with:ident) => {
        $with!(
            mode,
            direction,
            tap,
            hold,
            carry,
            carry_id,
            remote_vtep,
            mark,
            line_limit,
            cpu,
            open_lanes,
            has_lanes,
            seen_lanes,
            bytes_limit,
            line,
            line_bytes,
            held,
            held_bytes,
            overflowed,
            carried,
            refilled,
            muted,
            passed,
            flooded,
            landed,
            refused,
            forged
        )
    };
}

impl Words {
    /// Everything, each word read atomically, not all at one instant.
    pub(crate) fn snapshot(&self) -> PortState {
        let lanes = self.lanes.each_ref().map(|lane| lane.load(SeqCst));
        macro_rules! load {
            ($($word:ident),*) => { PortState { lanes, padding: [0; 3], $($word: self.$word.load(SeqCst)),* } };
        }
        each_word!(load)
    }

    /// Overwrites everything: for a slot no program looks at.
    pub(crate) fn write(&self, state: &PortState) {
        macro_rules! store {
            ($($word:ident),*) => {{ $(self.$word.store(state.$word, SeqCst);)* }};
        }
        each_word!(store);
        for (word, value) in self.lanes.iter().zip(state.lanes) {
            word.store(value, SeqCst);
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode.word(), SeqCst);
    }

    pub(crate) fn set_direction(&self, direction: Direction) {
        self.direction.store(direction.word(), SeqCst);
    }

    pub(crate) fn line(&self) -> i64 {
        self.line.load(SeqCst)
    }

    /// Frames in line in one lane.
    pub(crate) fn lane(&self, lane: u32) -> i64 {
        self.lanes.get(lane as usize).map_or(0, |line| line.load(SeqCst))
    }

    pub(crate) fn add_line(&self, lane: u32, frames: i64, bytes: i64) {
        self.line_bytes.fetch_add(bytes, SeqCst);
        self.line.fetch_add(frames, SeqCst);
        if let Some(line) = self.lanes.get(lane as usize) {
            line.fetch_add(frames, SeqCst);
        }
    }

    pub(crate) fn open_lanes(&self, lanes: u32) {
        self.open_lanes.fetch_or(lanes, SeqCst);
    }

    pub(crate) fn give_lanes(&self) {
        self.has_lanes.store(1, SeqCst);
    }

    pub(crate) fn seen_lanes(&self) -> u64 {
        self.seen_lanes.load(SeqCst)
    }

    /// CPU that diverted the latest frame.
    pub(crate) fn cpu(&self) -> Option<usize> {
        self.cpu.load(SeqCst).checked_sub(1).and_then(|cpu| usize::try_from(cpu).ok())
    }
}

/// Initial words of a port.
pub(crate) fn initial(mode: Mode, direction: Direction) -> PortState {
    PortState { mode: mode.word(), direction: direction.word(), ..PortState::default() }
}

/// The mapped pages: one [`Words`] a slot.
#[derive(Debug)]
pub(crate) struct Pages {
    base: NonNull<Words>,
    /// Programs are loaded with its descriptor, so it has to stay open.
    _map: MapData,
}

const LENGTH: usize = SLOTS as usize * size_of::<Words>();

// SAFETY: the pages stay mapped until drop, and all access is by atomics.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps the pages of `map`, which must have [`SLOTS`] values of [`PortState`] and `BPF_F_MMAPABLE`.
    pub(crate) fn map(map: MapData) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address the kernel chooses; it refuses a length beyond the map.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, _map: map })
    }

    /// The words of `slot`, which is below [`SLOTS`].
    pub(crate) fn slot(&self, slot: u32) -> &Words {
        assert!(slot < SLOTS, "slot {slot} of {SLOTS}");
        // SAFETY: within the mapping, aligned (a slot is 256 bytes, the mapping pages), only ever accessed by atomics.
        unsafe { self.base.add(slot as usize).as_ref() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, whole, and no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), LENGTH) };
    }
}
