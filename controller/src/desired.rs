//! What should be on a host: a pure function of the record.
//!
//! Every host has every network, so that any of them can take a guest without first being given its networks.

use std::net::Ipv4Addr;

use throughline_cutover::{Binding, Endpoint, Generation, GuestSpec, HostName, Network, Power};

use crate::record::{HostRecord, Record, What};

/// A network as one host should have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredNetwork {
    /// The network.
    pub(crate) network: Network,
    /// Where broadcast and multicast go: every other host that has ever connected.
    pub(crate) flood: Vec<Ipv4Addr>,
    /// Every port on it, this host's own included.
    pub(crate) bindings: Vec<Binding>,
}

/// All that should be on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    /// Networks.
    pub(crate) networks: Vec<DesiredNetwork>,
    /// Guests the host owns.
    pub(crate) guests: Vec<DesiredGuest>,
    /// Endpoints on it.
    pub(crate) endpoints: Vec<Endpoint>,
    /// What is to go.
    pub(crate) removals: Vec<What>,
}

/// A guest as its host should have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredGuest {
    /// What it is.
    pub(crate) spec: GuestSpec,
    /// Generation of the ownership.
    pub(crate) generation: Generation,
    /// To be started if it is not there.
    pub(crate) boot: bool,
    /// Whether it should run.
    pub(crate) power: Power,
}

/// What should be on `host`. `unknown`: ports of guests that hosts have and the record does not know.
pub(crate) fn desired(record: &Record, unknown: &[Binding], host: &HostName) -> Desired {
    let others = record.hosts().values().filter(|other| other.name != *host);
    let flood: Vec<_> = others.filter_map(HostRecord::vtep).collect();
    let networks = record.networks().values().map(|network| DesiredNetwork {
        network: network.clone(),
        flood: flood.clone(),
        bindings: record
            .bindings(network)
            .chain(unknown.iter().filter(|binding| binding.vni == network.vni).cloned())
            .collect(),
    });
    let guests = record.guests().values().filter(|guest| guest.host == *host);
    Desired {
        networks: networks.collect(),
        guests: guests
            .map(|guest| DesiredGuest {
                spec: guest.spec.clone(),
                generation: guest.generation,
                boot: !guest.started,
                power: guest.power,
            })
            .collect(),
        endpoints: record.endpoints().values().filter(|endpoint| endpoint.host == *host).cloned().collect(),
        removals: record.removals(host).cloned().collect(),
    }
}
