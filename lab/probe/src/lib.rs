//! Probes that trust nobody: they count what reached a guest and what came back from it, without asking any agent.
//!
//! Two ends talk to each other over the network under test. The *guest* end runs inside the guest, the *peer* end on a
//! host that stays where it is; a third part, the *observer*, watches a hypervisor's taps.
//!
//! ```text
//!   peer                                              guest
//!   echo   numbered UDP, --pps  ───────────────────►  counts arrivals, echoes
//!          counts echoes        ◄───────────────────
//!   oneway counts arrivals      ◄───────────────────  numbered UDP, --pps
//!   stream numbered messages    ◄── one TCP stream ─► numbered messages, both poll TCP_INFO
//!   ping   ICMP echo, 50/s      ◄──────────────────►  (the guest's kernel)
//!   load   numbered UDP, many flows     ────────────►  counts arrivals, echoes nothing
//!          TCP as fast as it goes       ◄───────────►  (a connection each way)
//!   control: one JSON line a request, one a response  keeps rewriting and checking its memory and its disks
//! ```
//!
//! Nothing here knows what a migration is: the peer reports what happened between two *marks*. A packet belongs to the
//! window in which it was *sent*, so windows that share a mark cover every packet exactly once. A *load* is a window of its
//! own, and several peers may load one guest.

pub mod arrivals;
pub mod clock;
pub mod control;
pub mod disk;
pub mod echo;
pub mod guest;
pub mod load;
pub mod memory;
pub mod observe;
pub mod oneway;
pub mod packet;
pub mod peer;
pub mod ping;
pub mod stream;
