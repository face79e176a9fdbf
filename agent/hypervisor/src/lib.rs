//! Runs guests in QEMU and drives their migration over QMP.
//!
//! A [`Guest`] is a handle to a QEMU process that outlives it: QEMU has its own session and keeps a duplicate of every
//! descriptor the data path needs, so an agent that dies loses neither the guest nor a frame, and takes both back with
//! [`Guest::adopt`] and [`Guest::take_fd`]. The decisions (when to pause, when to commit) belong to the caller; this
//! crate sends commands, each with a deadline, and passes on events in the order QEMU sent them.
//!
//! QEMU is not trusted: it runs confined (`confinement/`), and what it says or leaves is checked. Memory goes over a stream that
//! the agents open and a program of this crate, `throughline-seal`, encrypts (`stream/`). So do disks (`disk/`), and restore
//! points of a guest that stays (`disk/replica/`).
//!
//! What is pure (command line, RAM size, reading of statistics) is in functions without IO.
//!
//! ```text
//!  source                          destination
//!  launch                          launch(incoming)
//!                                  listen                -> invitation
//!  call(invitation)                receive
//!  start_migration
//!  progress, progress, ...
//!  let_stop
//!  event Migration(PreSwitchover)
//!  continue_switchover             event Migration(Completed), run state Paused
//!                                  cont                  <- the commit
//!  quit
//! ```
//!
//! Until `let_stop` QEMU stays in pre-copy, however idle the guest (see `anchor.rs`). The stop shows as event `Stop`, then
//! `Migration(PreSwitchover)`.

mod accelerator;
mod anchor;
mod command_line;
mod confinement;
mod descriptors;
mod disk;
mod error;
mod event;
mod guest;
mod guest_agent;
mod image;
mod keeper;
mod launch;
mod migration;
mod probe;
mod probe_rom;
mod process;
mod progress;
mod qmp;
mod run_dir;
mod stream;

pub use accelerator::{Accelerator, AcceleratorChoice, InvalidAccelerator, ram_kib};
pub use confinement::{Confinement, ConfinementError, InvalidQemuUser, QemuUser};
pub use descriptors::FdRole;
pub use disk::{
    AwaitedDisk, AwaitedReplica, Below, DiskFd, DiskInvitation, DiskProgress, DiskState, DiskStreams,
    InvalidReplicaName, KeeperId, PointDisk, PointInstant, PointName, PointProgress, PointState, ReplicaInvitation,
    ReplicaName, ReplicaRecord, ReplicaStream, Rest, RestorePoint,
};
pub use error::HypervisorError;
pub use event::{GuestEvent, GuestEventKind, MigrationStatus, RunState};
pub use guest::Guest;
pub use guest_agent::read_agent_answers;
pub use image::open_public;
pub use keeper::Keeper;
pub use launch::{Launch, NicFds};
pub use probe::{ProbeError, probe_accelerator};
pub use process::Exit;
pub use progress::MigrationProgress;
pub use qmp::read_monitor_line;
pub use run_dir::RunDir;
pub use stream::{Awaited, Credentials, Invitation, Sealer, Token, seal};
