//! What the programs share with user space and with each other.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap},
};
use throughline_abi::{Landing, MarkerKey, PortState, SLOTS, SenderKey};

/// Most (carry id, peer) pairs whose markers are remembered at one time.
const MARKER_KEYS: u32 = 16_384;

/// Most senders whose lanes are known at one time, all gates of a host. Those beyond it are in the lane of all.
const SENDER_KEYS: u32 = 65_536;

/// Slot → port on the move. User space maps its pages and works on the same words.
#[map]
pub(crate) static PORTS: Array<PortState> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

/// Interface index of a tap → slot.
#[map]
pub(crate) static TAPS: HashMap<u32, u32> = HashMap::with_max_entries(SLOTS, 0);

/// Interface index of a hold → slot.
#[map]
pub(crate) static HOLDS: HashMap<u32, u32> = HashMap::with_max_entries(SLOTS, 0);

/// Carry id → where its frames land.
#[map]
pub(crate) static LANDINGS: HashMap<u32, Landing> = HashMap::with_max_entries(SLOTS, 0);

/// Markers that arrived: one bit for each sequence number.
#[map]
pub(crate) static MARKERS_SEEN: HashMap<MarkerKey, u64> = HashMap::with_max_entries(MARKER_KEYS, BPF_F_NO_PREALLOC);

/// Sender at a port's gate → its lane.
#[map]
pub(crate) static SENDERS: HashMap<SenderKey, u32> = HashMap::with_max_entries(SENDER_KEYS, BPF_F_NO_PREALLOC);
