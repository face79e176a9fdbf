//! The cutover's decisions, and nothing else: who owns a guest, what comes next, what to undo. No IO, no clock, no sleep:
//! every machine takes an event and `now`, and returns effects.

pub mod admission;
mod cold;
mod converge;
mod coordinator;
mod destination;
mod disk;
pub mod fence;
mod machine;
mod model;
mod names;
mod network;
mod power;
mod replica;
mod source;
mod stall;

pub use cold::{ColdDestination, ColdSource};
pub use coordinator::{
    Coordinator, CoordinatorEffect, CoordinatorEvent, CutoverReport, InvalidRebindId, News, Phase, RebindId, Role,
    Step, UNCOUNTED_MARKER, marker_peers,
};
pub use destination::{
    Destination, DestinationEffect, DestinationEvent, DestinationPhase, DestinationReport, GatePeer, MARKER_DEADLINE,
};
pub use disk::{Disk, DiskBus, DiskFate, DiskFormat, DiskPlace, DiskSize, InvalidDisk, MOST_DISKS};
pub use fence::{Mandate, Term};
pub use machine::Machine;
pub use model::{
    Binding, Boot, End, Endpoint, Failure, GuestSpec, Limits, MarkerPeer, MigrationPlan, Network, OnStall, OwnedGuest,
    Port, PortPlan, Progress,
};
pub use names::{
    DiskName, FabricId, GuestName, HostName, InterfaceName, InvalidName, NetworkName, OperatorName, PlaceName,
    ReplicaId, TestId,
};
pub use network::{CarryId, Generation, InvalidNetworkValue, MacAddr, MarkerSecret, Mtu, PortId, Queues, Vni};
pub use power::{Power, RunsOn, Stop, StopFirst};
pub use replica::{
    Keeping, MOST_AT_A_HOST, MOST_OF_A_GUEST, MOST_POINTS, Point, Promotion, ReplicaName, ReplicaTest, ReplicaToken,
    Replication, Rhythm, Sender, Terms, TestState,
};
pub use source::{Source, SourceEffect, SourceEvent, SourcePhase, SourceReport};
