//! The kernel's half of a move: three tc programs and their maps, loaded once, attached to the ports on the move.
//!
//! ```text
//!                      ┌───────────── source ─────────────┐        ┌──────── destination ───────┐
//!  frames for the ──►  steer ──► tap ──► guest            │        │  steer ◄── direct frames    │
//!  guest               │  └────► hold ──► Pump ──► refill ┼─ carry ┼► land ──► tap ──► guest     │
//!                      └──────────────────────────────────┘        └────────────────────────────┘
//! ```
//!
//! [`Datapath`] loads and verifies; [`PortHandle`] is one port on the move, whose mode is one atomic store; [`Pump`] empties
//! a port's line without losing a frame or its place. Interface indices are those of the network namespace of the calling
//! thread: a host's agent has its own namespace, its own maps and its own directory of pins.
//!
//! # What the devices must be
//!
//! Each point is the cure of a loss that was measured.
//!
//! - The **hold** is a tap with a vnet header and `TUNSETOFFLOAD` (a super-frame segmented after it was counted would open
//!   the seal early), with queueing discipline `noqueue` (another would hide that the ring was full) and a `txqueuelen` of
//!   [`PortConfig::line_limit`] and 32 more (the kernel frees places in batches). Nothing else may send through it: no address, no IPv6 (`disable_ipv6`) before it
//!   goes up, because a frame the kernel sends by itself was never counted into the line.
//! - The **tap** has a vnet header; its length is the guest's driver's choice, and [`Pump::release`] gives the hold the same.
//! - The **carry** device is VXLAN, `external`, with `nolearning`.

mod attach;
mod datapath;
mod error;
mod landing;
mod lanes;
mod maps;
mod port;
pub mod pump;
mod words;

pub use attach::AttachVia;
pub use datapath::{Datapath, Options};
pub use error::DatapathError;
pub use landing::LandingConfig;
pub use maps::Strays;
pub use port::{PortConfig, PortHandle};
pub use pump::{Exit, Pump, PumpCounts, PumpError, PumpOptions};
pub use throughline_abi::{ALL_MARKERS, LANE_OF_ALL, LANES, MARKERS, PortState, are_all_in};
pub use words::{Direction, Mode};

/// The object `build.rs` made of `ebpf/programs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/throughline-programs"));
