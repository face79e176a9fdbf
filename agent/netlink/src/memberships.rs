//! Multicast memberships: what a port has joined, so that it can be taken along when the port moves.
//!
//! Networks are made without multicast snooping: multicast goes to every port and host, and there is nothing to move. Where
//! an operator turns it on (`ip link set tlb<VNI> type bridge mcast_snooping 1`), the kernel goes by memberships only while it
//! hears a querier in the segment and floods otherwise. Then a port that appears on another host would get nothing until
//! the next query, up to two minutes later.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_packet_route::link::{
    BridgeMulticastRouterType, InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo,
};
use throughline_cutover::Vni;

use crate::{
    Error, Netlink, Result,
    mdb::{self, Line},
    names,
};

/// What a bridge port wants of its network's multicast.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memberships {
    /// Groups it has joined.
    pub groups: BTreeSet<IpAddr>,
    /// A multicast router or querier is behind it: it wants all.
    pub router: bool,
}

impl Memberships {
    /// It wants nothing in particular.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

impl Netlink {
    /// What a port of the network's bridge has joined; nothing where multicast is flooded.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; the kernel's refusal.
    pub async fn memberships(&self, vni: Vni, device: &str) -> Result<Memberships> {
        let mut found = Memberships::default();
        if !self.snoops(vni).await? {
            return Ok(found);
        }
        let index = self.link_index(device).await?;
        for line in mdb::list().map_err(Error::device("list the multicast memberships of", device))? {
            match line {
                Line::Member { port, group } if port == index => drop(found.groups.insert(group)),
                Line::Router { port } if port == index => found.router = true,
                _ => {}
            }
        }
        Ok(found)
    }

    /// Makes a port of the network's bridge a member, as if what is behind it had reported: entries age, its own reports
    /// renew them. Where multicast is flooded nothing happens.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; the kernel's refusals, all of them.
    pub async fn join(&self, vni: Vni, device: &str, memberships: &Memberships) -> Result<()> {
        if memberships.is_empty() || !self.snoops(vni).await? {
            return Ok(());
        }
        let bridge = self.link_index(&names::bridge(vni)).await?;
        let port = self.link_index(device).await?;
        let mut errors = Vec::new();
        for &group in &memberships.groups {
            let done = mdb::join(bridge, port, group);
            errors.extend(done.map_err(Error::device("set a multicast membership of", device)).err());
        }
        if memberships.router {
            let done = self.verbs.change_link(port, vec![router_for_a_while()]).await;
            errors.extend(done.map_err(Error::device("mark the multicast router behind", device)).err());
        }
        Error::collected(errors)
    }

    async fn snoops(&self, vni: Vni) -> Result<bool> {
        Ok(self.required(&names::bridge(vni)).await?.bridge.multicast_snooping)
    }
}

/// As a query from behind the port would: it wears off if none follows.
fn router_for_a_while() -> LinkAttribute {
    let port = InfoPortData::BridgePort(vec![InfoBridgePort::MulticastRouter(BridgeMulticastRouterType::Temp)]);
    LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(port)])
}
