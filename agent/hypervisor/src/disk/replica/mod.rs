//! A running guest's disks, sent to another host again and again: its *replica*, a list of *restore points*.
//!
//! A point is all disks of the guest at one instant, between two of its writes: what it would find after a loss of power. The
//! first is everything, each further one what has been written since the last ([`record`]). The replica's host keeps the disks
//! in a QEMU that is no guest's, the *keeper* ([`keeper`]): what is sent goes into qcow2 files there, and when all of it
//! has come, an internal snapshot of each file is the point. Until then the last point is what it was, whatever breaks.
//!
//! ```text
//!  source (a running guest)                 replica's host (a keeper)
//!  begin_replica, merge_replica_chart,
//!  name_replica
//!                                           offer_replica         -> invitation, one a disk
//!  call_replica(invitation)                 admit_replica
//!  send_point                               settle_disks, again and again
//!  point_progress, until all are Sent
//!  end_point                                close_disks
//!                                           make_point            <- from here on it counts
//!  complete_point
//! ```
//!
//! A guest must not wait for a host that is far away. So what it overwrites while a point is sent goes into a file beside its
//! disk first, and the point is read out of the two ([`point`]): a write waits for this host's disk, and for no other. If that file
//! cannot be written the point breaks, and the guest's write does not.

mod keeper;
mod names;
mod options;
mod point;
mod progress;
mod record;
mod stream;

pub use self::{
    keeper::RestorePoint,
    names::{InvalidReplicaName, KeeperId, PointName, ReplicaName},
    point::{PointDisk, PointInstant},
    progress::{PointProgress, PointState},
    record::ReplicaRecord,
    stream::{AwaitedReplica, ReplicaInvitation, ReplicaStream},
};
