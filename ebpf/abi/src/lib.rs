//! Types shared between the tc programs and user space: no padding, sizes and offsets asserted, no `std`.
//!
//! One [`PortState`] a port being moved lives in a memory-mapped array map; user space and the programs work on the same
//! words with atomic operations. A port at rest has no program attached and no entry anywhere.
#![no_std]

mod marker;
mod verdict;

pub use marker::{
    MARKER_ETHERTYPE, MARKER_FRAME_LEN, MARKER_MAGIC, MARKER_PAYLOAD_LEN, MARKER_PAYLOAD_OFFSET, MarkerPayload,
    marker_frame,
};
pub use verdict::{Sight, Verdict, decide, has_room, is_group};

/// Slots in the state map: ports one host can have on the move at one time.
pub const SLOTS: u32 = 64;
/// Lanes of a line. Each is a queue of its own in the hold, with a seal of its own, so that the gate can open for one peer
/// while it waits for another. A source's line has only [`LANE_OF_ALL`].
pub const LANES: usize = 8;
/// The lane of whatever sender no lane was given to. At the gate it is the last to open.
pub const LANE_OF_ALL: u32 = 0;

/// What `steer` does with a frame for the guest that does not bear the port's own mark. A word of [`PortState`].
pub mod mode {
    /// To the tap, as if no program were there.
    pub const PASS: u32 = 0;
    /// Dropped and counted: the destination before commit.
    pub const MUTE: u32 = 1;
    /// To the hold: the source from arm on. At the destination this is the gate, and lanes in
    /// [`super::PortState::open_lanes`] are released as in [`RELEASE`].
    pub const HOLD: u32 = 2;
    /// Self-sealing, to the carry: while anything is in line to the hold, then straight to the carry tunnel.
    /// Broadcast and multicast that did not wait in line is dropped: the destination gets its own copy.
    pub const CARRY: u32 = 3;
    /// Self-sealing, to the tap: while the frame's lane is not empty to the hold, then straight to the tap. Abort, and the
    /// open gate.
    pub const RELEASE: u32 = 4;
}

/// Where `refill` sends what the agent writes back. Apart from the mode: see the sixth cause of loss in ARCHITECTURE.md.
pub mod direction {
    /// To the port's own tap, marked.
    pub const TAP: u32 = 0;
    /// To the carry tunnel.
    pub const CARRY: u32 = 1;
}

/// A port on the move: what the programs are to do with its frames, and what they have done.
///
/// Index of the map is the port's slot. The agent writes the words up to `line_limit`; `mode` and `direction` change under
/// traffic, each by one atomic store. Counters only grow, except `line`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortState {
    /// A [`mode`].
    pub mode: u32,
    /// A [`direction`].
    pub direction: u32,
    /// Interface index of the tap.
    pub tap: u32,
    /// Interface index of the hold.
    pub hold: u32,
    /// Interface index of the carry device.
    pub carry: u32,
    /// Tunnel key of carried frames, 24 bits.
    pub carry_id: u32,
    /// Where carried frames go: IPv4, host byte order (as `struct bpf_tunnel_key` has it).
    pub remote_vtep: u32,
    /// `skb->mark` of frames that have had their turn: `steer` lets them pass. Random per move, never 0: a guest cannot set marks, and must not guess one.
    pub mark: u32,
    /// Most frames that may be in line; past it the newest are dropped and counted.
    pub line_limit: u32,
    /// CPU that diverted the latest frame, plus one; 0: none yet. Whoever writes frames back follows it: on the same CPU
    /// frames written back and frames that go straight on share every queue, so their order holds.
    pub cpu: u32,
    /// Lanes the gate is open for: one bit each. Looked at in [`mode::HOLD`] only.
    pub open_lanes: u32,
    /// Not 0: senders have lanes, see [`SenderKey`].
    pub has_lanes: u32,
    /// Lanes in which a frame came, by either path: one bit each.
    pub seen_lanes: u64,
    /// Most bytes that may be in line; past it the newest frames are dropped and counted.
    pub bytes_limit: u64,
    /// Frames diverted to the hold less frames written back, all lanes: what the limit bounds. Programs add before they
    /// divert and take back if that fails; the agent subtracts after it has written a frame back.
    pub line: i64,
    /// Their bytes, from the destination address to the end of the payload, a VLAN tag included.
    pub line_bytes: i64,
    /// The frames in line, lane by lane: the seals.
    pub lanes: [i64; LANES],
    /// Frames diverted to the hold.
    pub held: u64,
    /// Their bytes.
    pub held_bytes: u64,
    /// Frames dropped because the line was at a limit or the hold's ring was full.
    pub overflowed: u64,
    /// Frames `steer` sent straight to the carry tunnel.
    pub carried: u64,
    /// Frames `refill` sent on, either direction.
    pub refilled: u64,
    /// Frames dropped in [`mode::MUTE`].
    pub muted: u64,
    /// Frames `steer` let through to the tap, marked or not.
    pub passed: u64,
    /// Broadcast and multicast frames dropped in [`mode::CARRY`].
    pub flooded: u64,
    /// Frames `land` put on the tap (destination).
    pub landed: u64,
    /// Frames `land` refused because of their tunnel source (destination).
    pub refused: u64,
    /// Frames to the marker address that were no markers of a peer of this move: none at all, or with a tag that is not the
    /// peer's (destination).
    pub forged: u64,
    /// Zero. Two ports share no cache line.
    pub padding: [u64; 3],
}

/// Who sends from where: key of the map from a frame's source address to its lane at one port's gate. A sender that is not
/// in it, or is taken out again because it moves itself, is in [`LANE_OF_ALL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SenderKey {
    /// Slot of the port.
    pub slot: u32,
    /// Source address.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// A carry tunnel's landing, at the destination. Key of the map: the carry id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Landing {
    /// Slot of the port.
    pub slot: u32,
    /// The only tunnel source accepted: IPv4, host byte order.
    pub source_vtep: u32,
    /// Destination MAC of markers.
    pub marker_mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Key of the map of markers awaited.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MarkerKey {
    /// Carry id under which they land.
    pub carry_id: u32,
    /// Number of the peer that sent it.
    pub peer: u32,
}

/// What is known of one peer's markers at a landing. User space writes all of it before the landing opens, and none of it
/// after: what no peer is told to send has no place here, so that nobody fills it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AwaitedMarkers {
    /// Those that came: one bit for each sequence number.
    pub seen: u64,
    /// The tag of each, by sequence number.
    pub tags: [u64; MARKERS as usize],
}

/// What came to the carry tunnel and belongs to no move: index into the host's counters.
pub mod stray {
    /// Without a tunnel key over IPv4.
    pub const NO_KEY: u32 = 0;
    /// Under a carry id that nothing lands under.
    pub const UNKNOWN_ID: u32 = 1;
    /// How many there are.
    pub const KINDS: u32 = 2;
}

/// Markers a peer sends down the old path, each with other inner UDP ports, so that every queue between sees one.
pub const MARKERS: u32 = 32;
/// All of a peer's markers are in.
pub const ALL_MARKERS: u64 = (1 << MARKERS) - 1;

/// Whether nothing older than a peer's markers can still be on its way: one marker says so of its own queue only.
pub const fn are_all_in(seen: u64) -> bool {
    seen == ALL_MARKERS
}

const _: () = assert!(size_of::<PortState>() == 256);
const _: () = assert!(core::mem::offset_of!(PortState, line_limit) == 32);
const _: () = assert!(core::mem::offset_of!(PortState, bytes_limit) == 56);
const _: () = assert!(core::mem::offset_of!(PortState, line) == 64);
const _: () = assert!(core::mem::offset_of!(PortState, lanes) == 80);
const _: () = assert!(core::mem::offset_of!(PortState, held) == 144);
const _: () = assert!(core::mem::offset_of!(PortState, refused) == 216);
const _: () = assert!(core::mem::offset_of!(PortState, forged) == 224);
const _: () = assert!(size_of::<SenderKey>() == 12);
const _: () = assert!(size_of::<Landing>() == 16);
const _: () = assert!(size_of::<MarkerKey>() == 8);
const _: () = assert!(size_of::<AwaitedMarkers>() == 264);
