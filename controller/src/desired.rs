//! What should be on a host: a pure function of the record.
//!
//! Every host has every network, so that any of them can take a guest without first being given its networks.

use std::net::Ipv4Addr;

use throughline_cutover::{
    Binding, End, Endpoint, Generation, GuestSpec, HostName, Keeping, Network, Power, Promotion, Replication, Sender,
};

use crate::record::{GuestRecord, HostRecord, Record, ReplicaRecord, What};

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
    /// Replicas to be sent from it.
    pub(crate) replications: Vec<Replication>,
    /// Replicas to be kept there.
    pub(crate) replicas: Vec<Keeping>,
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
    /// What its disks are made from, if it was promoted.
    pub(crate) promotion: Option<Promotion>,
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
    let guests = record.guests().values().filter(|guest| guest.host == *host && guest.is_due());
    let replicas = record.replicas().values().filter_map(|it| Some((it, record.guests().get(&it.name.guest)?)));
    let sent = replicas.clone().filter(|(replica, guest)| guest.host == *host && replica.name.host != *host);
    let kept = replicas.filter(|(replica, _)| replica.name.host == *host);
    Desired {
        networks: networks.collect(),
        guests: guests
            .map(|guest| DesiredGuest {
                spec: guest.spec.clone(),
                generation: guest.generation,
                boot: !guest.started,
                power: guest.power,
                promotion: guest.promotion.as_ref().map(|pending| pending.promotion.clone()),
            })
            .collect(),
        endpoints: record.endpoints().values().filter(|endpoint| endpoint.host == *host).cloned().collect(),
        removals: record.removals(host).cloned().collect(),
        replications: sent.filter_map(|(replica, guest)| replication(record, replica, guest)).collect(),
        replicas: kept.map(|(replica, guest)| keeping(record, replica, guest)).collect(),
    }
}

/// What a guest's host is to send; nothing while the other has never said where it is.
fn replication(record: &Record, replica: &ReplicaRecord, guest: &GuestRecord) -> Option<Replication> {
    let keeper = record.hosts().get(&replica.name.host)?.enrolment.as_ref()?;
    Some(Replication {
        id: replica.id.clone(),
        guest: replica.name.guest.clone(),
        generation: guest.generation,
        keeper: End { host: keeper.host.clone(), vtep: keeper.vtep, peer_endpoint: keeper.peer_endpoint.clone() },
        token: replica.token.clone(),
        rhythm: replica.terms.rhythm,
        bandwidth: replica.terms.bandwidth,
    })
}

/// What a host is to keep. Of a replica that is its guest's own host's nothing is sent: it is becoming the guest's disks.
fn keeping(record: &Record, replica: &ReplicaRecord, guest: &GuestRecord) -> Keeping {
    let vtep = record.hosts().get(&guest.host).and_then(HostRecord::vtep);
    Keeping {
        id: replica.id.clone(),
        spec: guest.spec.clone(),
        generation: guest.generation,
        source: (guest.host != replica.name.host).then(|| Sender { host: guest.host.clone(), vtep }),
        token: replica.token.clone(),
        keep: replica.terms.keep,
        // No record has it.
        test: None,
    }
}
