//! What the programs share with user space and with each other.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use throughline_abi::{AwaitedMarkers, Landing, MarkerKey, PortState, SLOTS, SenderKey, stray};

/// Most (carry id, peer) pairs whose markers are awaited at one time.
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

/// Peer of a move → its markers. Only user space adds entries.
#[map]
pub(crate) static AWAITED: HashMap<MarkerKey, AwaitedMarkers> =
    HashMap::with_max_entries(MARKER_KEYS, BPF_F_NO_PREALLOC);

/// What came to the carry tunnel and belongs to no move, by kind. Each processor counts for itself: a flood must not slow
/// the others down.
#[map]
pub(crate) static STRAYS: PerCpuArray<u64> = PerCpuArray::with_max_entries(stray::KINDS, 0);

/// Sender at a port's gate → its lane.
#[map]
pub(crate) static SENDERS: HashMap<SenderKey, u32> = HashMap::with_max_entries(SENDER_KEYS, BPF_F_NO_PREALLOC);
