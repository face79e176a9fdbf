//! The agent of one host: runs its guests, keeps its networks as the controller wants them, plays its part in moves.
//!
//! ```text
//!  controller ◄── link ──► reconcile ──► netlink, hypervisor
//!                  │
//!                  └─► source, destination ──(driver: event → step → effects)──► netlink, hypervisor, datapath, journal
//!                          │       ▲
//!              other agents└─ peer ┘
//! ```

pub mod bindings;
pub mod clock;
pub mod cold;
pub mod config;
pub mod destination;
pub mod disks;
pub mod driver;
pub mod fencing;
pub mod flip;
pub mod flows;
pub mod gates;
pub mod host;
pub mod invitation;
pub mod journal;
pub mod link;
pub mod lock;
pub mod memberships;
pub mod memory;
pub mod moves;
pub mod moving;
pub mod peer;
pub mod privilege;
pub mod reconcile;
pub mod recover;
pub mod replica;
pub mod resident;
pub mod server;
pub mod slot;
pub mod source;
pub mod stops;
pub mod strays;
pub mod underlay;
pub mod uplink;
pub mod watch;
