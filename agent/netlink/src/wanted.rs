//! What a caller asks of a network, and what it is told was done.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use throughline_cutover::{MacAddr, Mtu, Vni};

/// Where frames for a MAC address go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// To a device in the network's bridge: a tap, an endpoint's veth.
    Local {
        /// Name of the device.
        device: String,
    },
    /// Over the tunnel to another host.
    Remote {
        /// Its tunnel end point.
        vtep: Ipv4Addr,
    },
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { device } => write!(f, "device {device}"),
            Self::Remote { vtep } => write!(f, "VTEP {vtep}"),
        }
    }
}

/// A port of a network, on this host or another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingWanted {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its IP addresses: ARP requests and neighbour solicitations for them are answered by this host's bridge.
    pub ips: Vec<IpAddr>,
    /// Where it is.
    pub path: Path,
}

/// A network as this host should have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkWanted {
    /// Its VNI.
    pub vni: Vni,
    /// Largest payload of a frame, bytes.
    pub mtu: Mtu,
    /// This host's tunnel end point.
    pub local_vtep: Ipv4Addr,
    /// The other hosts of the network: where broadcast, multicast and unknown unicast go.
    pub flood: BTreeSet<Ipv4Addr>,
    /// Its ports.
    pub bindings: Vec<BindingWanted>,
}

/// What a reconciliation had to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Devices created or changed, in order.
    pub devices: Vec<String>,
    /// Forwarding and neighbour entries added or replaced.
    pub entries_set: usize,
    /// Forwarding and neighbour entries of ours removed.
    pub entries_removed: usize,
}

impl Changes {
    /// Everything was as wanted; no modifying message was sent.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

/// Where the kernel sends frames for a MAC address, read back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindingFound {
    /// The bridge port its entry names.
    pub device: Option<String>,
    /// Where the VXLAN device sends it.
    pub vtep: Option<Ipv4Addr>,
    /// What each IP address asked about resolves to on the bridge.
    pub neighbours: BTreeMap<IpAddr, Option<MacAddr>>,
}
