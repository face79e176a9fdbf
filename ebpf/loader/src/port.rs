//! One port on the move.

use std::{
    fmt,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use throughline_abi::{LANE_OF_ALL, PortState};

use crate::{
    DatapathError,
    attach::{Attachment, Program},
    datapath::{Kernel, lock},
    words::{self, Direction, Mode, Words},
};

/// What a port is to do. Interface indices are those of the calling thread's network namespace.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// The guest's tap.
    pub tap_ifindex: u32,
    /// The port's hold; see the head of this crate for what it must be.
    pub hold_ifindex: u32,
    /// The host's carry device; 0 where nothing is carried from (a destination).
    pub carry_ifindex: u32,
    /// Tunnel key of carried frames, 24 bits; 0 where nothing is carried from.
    pub carry_id: u32,
    /// Where carried frames go.
    pub remote_vtep: Ipv4Addr,
    /// Most frames that may wait; not above the hold's `txqueuelen`.
    pub line_limit: u32,
    /// Most bytes that may wait.
    pub bytes_limit: u64,
    /// Mode from the first frame on.
    pub mode: Mode,
    /// Direction from the first frame on.
    pub direction: Direction,
}

impl PortConfig {
    pub(crate) fn state(&self) -> PortState {
        PortState {
            tap: self.tap_ifindex,
            hold: self.hold_ifindex,
            carry: self.carry_ifindex,
            carry_id: self.carry_id,
            remote_vtep: self.remote_vtep.to_bits(),
            mark: rand::random_range(1..=u32::MAX),
            line_limit: self.line_limit,
            bytes_limit: self.bytes_limit,
            ..words::initial(self.mode, self.direction)
        }
    }
}

/// Where a handle's port comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Opened,
    Adopted,
}

/// A port on the move. Cheap to clone, and its words are read and written in a few nanoseconds; every clone is the same port.
///
/// Dropping the last handle leaves a pinned port as it is, for the next process; without pins it detaches the programs.
/// [`PortHandle::close`] is how a move ends.
#[derive(Clone)]
pub struct PortHandle(Arc<Port>);

struct Port {
    kernel: Arc<Kernel>,
    slot: u32,
    tap: u32,
    adopted: bool,
    attachments: Mutex<Vec<Attachment>>,
    /// Whether the line counts one frame that is none, see [`PortHandle::seal`].
    sealed: AtomicBool,
    /// The last words, once closed: the slot may be another port's by then.
    closed: OnceLock<PortState>,
}

impl fmt::Debug for PortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortHandle").field("tap", &self.0.tap).field("slot", &self.0.slot).finish_non_exhaustive()
    }
}

impl PortHandle {
    /// Attaches the programs to the port in `slot`. If that fails, an opened port is taken apart again; an adopted one
    /// stays for another attempt.
    pub(crate) fn attach(kernel: &Arc<Kernel>, slot: u32, origin: Origin) -> Result<Self, DatapathError> {
        let PortState { tap, hold, .. } = kernel.words(slot).snapshot();
        let mut attachments = Vec::new();
        // `refill` first: from the moment `steer` diverts, what is written back must find its way.
        for (program, ifindex) in [(Program::Refill, hold), (Program::Steer, tap)] {
            let attached = match origin {
                Origin::Opened => kernel.attach(program, ifindex),
                Origin::Adopted => kernel.adopt(program, ifindex),
            };
            match attached {
                Ok(attachment) => attachments.push(attachment),
                Err(error) => {
                    if origin == Origin::Opened {
                        // The first error is the one to tell; what undoing says more would only hide it.
                        detach_all(&mut attachments);
                        let _ = free(kernel, slot, Vec::new());
                    }
                    return Err(error);
                }
            }
        }
        Ok(Self(Arc::new(Port {
            kernel: Arc::clone(kernel),
            slot,
            tap,
            adopted: origin == Origin::Adopted,
            attachments: Mutex::new(attachments),
            sealed: AtomicBool::new(false),
            closed: OnceLock::new(),
        })))
    }

    /// The port's words; `None` once closed.
    fn words(&self) -> Option<&Words> {
        self.0.closed.get().is_none().then(|| self.0.kernel.words(self.0.slot))
    }

    /// Interface index of its tap.
    pub fn tap_ifindex(&self) -> u32 {
        self.0.tap
    }

    pub(crate) fn slot(&self) -> u32 {
        self.0.slot
    }

    /// Whether an earlier process opened it. Its line may then count frames that went with that process.
    pub(crate) fn is_adopted(&self) -> bool {
        self.0.adopted
    }

    /// Whether a line that waits goes into the tap: after an abort, and at an open gate.
    pub fn is_released(&self) -> bool {
        self.words().is_some_and(|words| words.snapshot().mode == throughline_abi::mode::RELEASE)
    }

    /// Changes what `steer` does, for the next frame. Nothing once closed.
    pub fn set_mode(&self, mode: Mode) {
        if let Some(words) = self.words() {
            words.set_mode(mode);
        }
    }

    /// Changes where `refill` sends, for the next frame. Nothing once closed.
    pub fn set_direction(&self, direction: Direction) {
        if let Some(words) = self.words() {
            words.set_direction(direction);
        }
    }

    /// All words; those it had at the end once closed.
    pub fn counters(&self) -> PortState {
        self.words().map_or_else(|| self.0.closed.get().copied().unwrap_or_default(), Words::snapshot)
    }

    /// Frames in line, all lanes: diverted and not yet written back.
    pub fn line(&self) -> i64 {
        self.words().map_or(0, Words::line)
    }

    /// Frames in one lane of the line. While it is 0 the lane's frames may go straight on.
    pub fn lane(&self, lane: u32) -> i64 {
        self.words().map_or(0, |words| words.lane(lane))
    }

    /// A frame of `bytes` has been written back. For whoever empties the line, once after each write; [`Pump`](crate::Pump)
    /// does it.
    pub fn subtract_line(&self, lane: u32, bytes: u32) {
        if let Some(words) = self.words() {
            words.add_line(lane, -1, -i64::from(bytes));
        }
    }

    /// What the line counted at one moment is not there any more. Later frames stay counted.
    pub(crate) fn subtract_gone(&self, at: &PortState) {
        let Some(words) = self.words() else { return };
        for (lane, frames) in (0..).zip(at.lanes) {
            words.add_line(lane, -frames, 0);
        }
        words.add_line(LANE_OF_ALL, 0, -at.line_bytes);
    }

    /// Gives senders their lanes, each a source address with a lane below [`LANES`](crate::LANES). To be called while the
    /// port is mute, and when the hold has a queue for each lane (see [`Datapath::steer_lanes`](crate::Datapath::steer_lanes)).
    ///
    /// # Errors
    /// [`DatapathError::Map`]; senders without a lane are in [`LANE_OF_ALL`](crate::LANE_OF_ALL).
    pub fn give_lanes(&self, senders: impl IntoIterator<Item = ([u8; 6], u32)>) -> Result<(), DatapathError> {
        let Some(words) = self.words() else { return Ok(()) };
        words.give_lanes();
        let mut maps = self.0.kernel.maps();
        senders.into_iter().try_for_each(|(mac, lane)| maps.insert_sender(self.0.slot, mac, lane))
    }

    /// A sender that moves itself is in the lane of all from now on; one that has none already is no error.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn take_lane(&self, sender: [u8; 6]) -> Result<(), DatapathError> {
        if self.words().is_none() {
            return Ok(());
        }
        self.0.kernel.maps().remove_sender(self.0.slot, sender)
    }

    /// Opens the gate for some lanes, one bit each; each seals itself once its own line is empty.
    pub(crate) fn open_lanes(&self, lanes: u32) {
        if let Some(words) = self.words() {
            words.open_lanes(lanes);
        }
    }

    /// Whether a frame of that lane came, by either path.
    pub fn has_seen(&self, lane: u32) -> bool {
        self.words().is_some_and(|words| words.seen_lanes() & (1 << lane) != 0)
    }

    /// Keeps the line sealed, as one frame more would, until [`PortHandle::unseal`]; a second time changes nothing.
    pub(crate) fn seal(&self) {
        if let Some(words) = self.words()
            && !self.0.sealed.swap(true, SeqCst)
        {
            words.add_line(LANE_OF_ALL, 1, 0);
        }
    }

    /// Takes [`PortHandle::seal`] back.
    pub(crate) fn unseal(&self) {
        if let Some(words) = self.words()
            && self.0.sealed.swap(false, SeqCst)
        {
            words.add_line(LANE_OF_ALL, -1, 0);
        }
    }

    /// CPU that diverted the latest frame, if any was.
    pub(crate) fn diverting_cpu(&self) -> Option<usize> {
        self.words().and_then(Words::cpu)
    }

    /// Takes the port apart: programs off, landings, map entries and words gone; its last words. A second time it only
    /// says them again. Frames still in line stay in the hold's ring, and [`PortState::line`] of the answer tells how many.
    ///
    /// # Errors
    /// [`DatapathError::Teardown`] with everything that failed; the rest has been done.
    pub fn close(&self) -> Result<PortState, DatapathError> {
        let mut attachments = lock(&self.0.attachments);
        if let Some(last) = self.0.closed.get() {
            return Ok(*last);
        }
        let errors = detach_all(&mut attachments);
        // No program counts any more, and no handle may touch the words of whoever has the slot next.
        let last = self.0.closed.get_or_init(|| self.0.kernel.words(self.0.slot).snapshot());
        free(&self.0.kernel, self.0.slot, errors).map(|()| *last)
    }
}

/// Takes programs off their interfaces, the latest first; everything that failed.
pub(crate) fn detach_all(attachments: &mut Vec<Attachment>) -> Vec<DatapathError> {
    attachments.drain(..).rev().filter_map(|mut attachment| attachment.detach().err()).collect()
}

/// Frees a slot whose programs are gone, to the end whatever fails on the way. `errors` are those met before.
pub(crate) fn free(kernel: &Kernel, slot: u32, mut errors: Vec<DatapathError>) -> Result<(), DatapathError> {
    let PortState { tap, hold, .. } = kernel.words(slot).snapshot();
    let mut maps = kernel.maps();
    // The words before the entries: a slot without a tap is free for the next port.
    kernel.words(slot).write(&PortState::default());
    errors.extend(maps.remove_port(slot, tap, hold));
    if errors.is_empty() { Ok(()) } else { Err(DatapathError::Teardown { ifindex: tap, errors }) }
}
