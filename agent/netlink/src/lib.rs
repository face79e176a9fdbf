//! The agent's only way to the kernel's network configuration.
//!
//! A network is one bridge and one VXLAN device that learns nothing: who is where is written by the agent, in three
//! kinds of entries, each tagged so that what is ours can be told from what is not.
//!
//! | entry | says | tag |
//! |---|---|---|
//! | bridge FDB | MAC → bridge port (tap, veth, or the VXLAN device) | `extern_learn` |
//! | VXLAN FDB | MAC → VTEP; all-zero MAC → the flood list | `extern_learn` |
//! | neighbour on the bridge | IP → MAC, so that ARP and ND are answered here (`neigh_suppress`) | protocol 84 |
//!
//! Entries of ours that are not wanted are removed; others are left alone, unless they claim a MAC or IP address that
//! is wanted. The VXLAN device's flood list is ours whole: a stray entry there would duplicate every broadcast.
//!
//! What differs is found by one pure function (`diff`); what is sent is in one file of verbs (`verbs`).
//!
//! # Namespaces
//!
//! [`Netlink`] works in the network namespace the calling thread was in at [`Netlink::open`]. Opening taps, writing
//! under `/proc/sys/net` and sending frames follow the thread that runs the call, so where namespaces differ by thread
//! a [`Netlink`] belongs on the thread that opened it, on a `current_thread` runtime.

pub mod announce;
mod answers;
mod attributes;
mod binding;
mod device;
mod diff;
mod endpoint;
mod error;
mod link;
mod link_local;
pub mod marker;
mod mdb;
mod memberships;
pub mod names;
mod netlink;
mod network;
mod packet;
mod quiet;
mod tap;
mod verbs;
mod vxlan;
mod wanted;

pub use answers::read_answer;
pub use endpoint::EndpointWanted;
pub use error::{Cause, Error};
pub use marker::MarkerOrder;
pub use memberships::Memberships;
pub use netlink::Netlink;
pub use tap::{Tap, TapConfig};
pub use wanted::{BindingFound, BindingWanted, Changes, NetworkWanted, Path};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
