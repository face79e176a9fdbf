//! What the fabric is made of, checked: a value of these types is within its limits.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    CarryId, Disk, Generation, GuestName, HostName, InterfaceName, MacAddr, MarkerSecret, Mtu, NetworkName, PortId,
    Queues, Vni,
};

/// A tenant layer-2 segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Unique name.
    pub name: NetworkName,
    /// Unique VNI.
    pub vni: Vni,
    /// Largest payload of a guest's frame, bytes.
    pub mtu: Mtu,
}

/// A network card, everything allotted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Fabric-wide number.
    pub id: PortId,
    /// Network it is on.
    pub network: NetworkName,
    /// Its address; unicast.
    pub mac: MacAddr,
    /// Its IP addresses.
    pub ips: Vec<IpAddr>,
}

/// Direct kernel boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Path of the kernel.
    pub kernel: String,
    /// Path of the initial RAM disk; may be empty.
    pub initrd: String,
    /// Kernel command line.
    pub cmdline: String,
}

/// A virtual machine as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// Unique name.
    pub name: GuestName,
    /// Virtual processors.
    pub vcpus: u32,
    /// Queues of each network card. Both ends of a migration need the same: they are part of the cards' state.
    #[serde(default)]
    pub queues: Queues,
    /// RAM, KiB.
    pub memory_kib: u64,
    /// How it boots.
    pub boot: Boot,
    /// Network cards in slot order.
    pub ports: Vec<Port>,
    /// Disks in slot order. Guests on record from before there were disks have none.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// It has a channel to an agent of its own (qemu-guest-agent's protocol), by which its file systems are frozen for a point.
    #[serde(default)]
    pub guest_agent: bool,
}

impl GuestSpec {
    /// Disks whose content has to be brought to a host that the guest moves to, in their order.
    pub fn disks_to_bring(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| disk.goes_along())
    }

    /// Whether there are any.
    pub fn brings_disks(&self) -> bool {
        self.disks_to_bring().next().is_some()
    }
}

/// A guest a host owns, by its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedGuest {
    /// What to run.
    pub spec: GuestSpec,
    /// Generation of the ownership.
    pub generation: Generation,
    /// VNI of each port's network, in the ports' order.
    pub vnis: Vec<Vni>,
    /// It was stopped: that nothing runs is in order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// It was asked to shut down since it booted. When it does, that is in order, whether or not anybody still wants it by then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
}

/// A port that is not a guest's and stays on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Unique name, also of its interface.
    pub name: InterfaceName,
    /// Where it lives.
    pub host: HostName,
    /// Its port.
    pub port: Port,
    /// Prefix length of its IPv4 addresses.
    pub prefix_len: u8,
    /// Generation of its binding. Those on record from before it was counted have the first.
    #[serde(default = "Generation::first")]
    pub generation: Generation,
}

/// Who owns a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// VNI of the port's network.
    pub vni: Vni,
    /// The port.
    pub port: Port,
    /// Host that owns it.
    pub host: HostName,
    /// Its tunnel end point; `None` while that host has never connected.
    pub vtep: Option<Ipv4Addr>,
    /// Generation of the ownership.
    pub generation: Generation,
}

/// What is done about a guest whose memory does not converge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnStall {
    /// The migration is given up. The only policy that costs the guest nothing, hence the default.
    #[default]
    GiveUp,
    /// QEMU slows the guest's processors, step by step, until it converges or the last step was in vain.
    Throttle,
    /// A longer pause is accepted, step by step.
    LongerPause {
        /// But none longer than that, milliseconds.
        at_most_ms: u32,
    },
}

/// What the caller allows a migration to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Longest pause to aim for, milliseconds.
    pub longest_pause_ms: u32,
    /// Bandwidth for memory, bytes per second.
    pub bandwidth: u64,
    /// Time for everything before commit, milliseconds.
    pub deadline_ms: u32,
    /// If the guest does not converge.
    #[serde(default)]
    pub on_stall: OnStall,
}

impl Limits {
    /// The longest pause that may come to be accepted, milliseconds.
    pub fn pause_at_most_ms(&self) -> u32 {
        match self.on_stall {
            OnStall::LongerPause { at_most_ms } => at_most_ms.max(self.longest_pause_ms),
            OnStall::GiveUp | OnStall::Throttle => self.longest_pause_ms,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { longest_pause_ms: 300, bandwidth: 1_250_000_000, deadline_ms: 300_000, on_stall: OnStall::default() }
    }
}

/// One end of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Host.
    pub host: HostName,
    /// Its tunnel end point.
    pub vtep: Ipv4Addr,
    /// Its `Peer` service, `address:port`.
    pub peer_endpoint: String,
}

/// A host whose markers the gate waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkerPeer {
    /// Host.
    pub host: HostName,
    /// Its tunnel end point: frames of ports bound there are its.
    pub vtep: Ipv4Addr,
    /// Its number in this migration.
    pub index: u32,
    /// What its markers are made from. Zero in plans on record from before there were secrets.
    #[serde(default)]
    pub secret: MarkerSecret,
}

/// What both ends and the peers agree on, for one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPlan {
    /// The port.
    pub port: Port,
    /// VNI of its network.
    pub vni: Vni,
    /// Tunnel key of its carried frames.
    pub carry_id: CarryId,
    /// Where its markers are addressed.
    pub marker_mac: MacAddr,
    /// Who sends markers.
    pub markers: Vec<MarkerPeer>,
}

/// Everything both ends are told when a migration begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationPlan {
    /// Id, a UUID.
    pub id: String,
    /// Secret the source shows the destination.
    pub token: String,
    /// The guest.
    pub guest: GuestSpec,
    /// Generation at which the source owns it.
    pub generation: Generation,
    /// Who gives it up.
    pub source: End,
    /// Who takes it.
    pub destination: End,
    /// One entry a port, in the guest's order.
    pub ports: Vec<PortPlan>,
    /// Limits.
    pub limits: Limits,
    /// The guest is stopped, and arrives stopped.
    #[serde(default)]
    pub cold: bool,
    /// Disks that are over an image arrive as files of their own.
    #[serde(default)]
    pub flatten: bool,
}

/// Why something failed: a stable code and words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct Failure {
    /// Stable code, UPPER_SNAKE_CASE.
    pub reason: String,
    /// What failed, to whom it matters, what to do.
    pub message: String,
}

impl Failure {
    /// From its two halves.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}

/// How memory and disks are getting on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Bytes sent.
    pub transferred: u64,
    /// Bytes left, as QEMU estimates.
    pub remaining: u64,
    /// Guest memory, bytes.
    pub total: u64,
    /// Bytes per second.
    pub rate: u64,
    /// Bytes dirtied per second.
    pub dirty_rate: u64,
    /// Pause to expect if stopped now, microseconds; 0: unknown.
    pub expected_pause_us: u64,
    /// Passes over memory begun.
    pub passes: u32,
    /// What QEMU takes of its processors' time from the guest, percent.
    pub throttle_percent: u32,
    /// Bytes of the guest's disks that are over.
    pub disk_copied: u64,
    /// Bytes of them to copy; 0: it has none, or copying has not begun.
    pub disk_total: u64,
}

impl fmt::Display for Progress {
    /// What an operator needs to know to choose other limits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the guest dirties {} bytes/s of memory, {} bytes/s are sent, a pause now would take {} ms",
            self.dirty_rate,
            self.rate,
            self.expected_pause_us / 1000
        )
    }
}
