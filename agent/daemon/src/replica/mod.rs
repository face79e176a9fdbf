//! Replicas: restore points of a guest's disks, sent by its host, kept at another, and there made its disks if it fails over.
//!
//! ```text
//!  guest's host                                      replica's host
//!  sender: one a replica, for as long as it is       keeper: a QEMU without a guest, one a replica,
//!  wanted and the guest is here                      for as long as it is wanted and somebody may send
//!    │ due, and no move is under way
//!    ├─ KeepPoint ───────────────────────────────►   who it is, by what right
//!    │                               ready  ◄────    points that are there, a door for each disk
//!    │  what is to be sent: all; since the last
//!    │  point; or what the last try has left
//!    ├═ all disks of one instant ═════════════════►  written out each 500 ms
//!    ├─ sent ────────────────────────────────────►   doors shut, point made, the oldest deleted
//!    │                                made  ◄────
//!    └─ the record begins at that point
//! ```
//!
//! Each instant of this may be the last of either agent or of either QEMU. Points are snapshots in the replica's files, and their names say
//! all there is to say of them ([`point_name`]); what is still to be sent is on record in the guest's QEMU. What a point is
//! sent by is more than was written since the newest one that the keeper has, or everything.
//!
//! *Who has the disks' turn* ([`turns`]): a point, a move of the guest, or its end. Whoever moves or ends a guest takes the turn, and
//! the point that is under way is given up.

mod keeper;
mod point_name;
mod promotion;
mod rhythm;
mod sender;
mod sending;
mod taking;
mod testing;
mod turns;
mod wanted;

pub use self::{
    keeper::{Keepers, Kept},
    sender::Senders,
    taking::take,
    turns::Taken,
    wanted::{observed, reconcile},
};
