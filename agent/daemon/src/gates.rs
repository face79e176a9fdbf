//! Lanes of the gates that are up on this host: each peer's frames in one of their own, as far as there are lanes.

use std::{collections::BTreeMap, net::Ipv4Addr, os::fd::AsFd as _, sync::Mutex};

use throughline_cutover::{Failure, MacAddr, PortPlan, Vni};
use throughline_loader::{LANES, PortHandle};
use throughline_netlink::Path;
use tracing::warn;

use crate::{
    host::Host,
    lock::lock,
    moving::MovingPort,
    resident::{datapath_failure, network_failure},
};

/// Lanes for peers; one more is for everybody else.
const PEER_LANES: u32 = LANES as u32 - 1;

/// Ports whose senders have lanes.
#[derive(Debug, Default)]
pub struct Gates(Mutex<BTreeMap<u32, (Vni, PortHandle)>>);

impl Gates {
    /// A sender on that network moves itself: until every gate is open it waits with everybody.
    pub fn sender_moves(&self, vni: Vni, mac: MacAddr) {
        for (on, port) in lock(&self.0).values() {
            if *on == vni
                && let Err(error) = port.take_lane(mac.octets())
            {
                warn!(%error, %mac, "a sender that moves keeps its lane");
            }
        }
    }

    /// That port's gate is no more.
    pub fn forget(&self, port: &MovingPort) {
        lock(&self.0).remove(&port.port.tap.index);
    }
}

impl Host {
    /// Makes the lanes of a port that is still mute, and gives every sender known on its network the lane of its peer.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub fn make_lanes(&self, moving: &mut MovingPort) -> Result<(), Failure> {
        let plan = &moving.plan;
        for _ in 0..lanes_of(plan) {
            moving.lanes.push(self.netlink.add_queue(&moving.port.hold.name).map_err(network_failure)?);
        }
        if moving.lanes.is_empty() {
            return Ok(());
        }
        self.datapath.steer_lanes(moving.port.hold.fd.as_fd()).map_err(datapath_failure)?;
        let vtep_of = |path| match path {
            Path::Remote { vtep } => vtep,
            Path::Local { .. } => self.config.vtep,
        };
        let known = self.bindings.ports_on(plan.vni).into_iter();
        let others = known.filter(|(mac, _)| *mac != plan.port.mac);
        let senders = others.filter_map(|(mac, path)| Some((mac.octets(), lane_of_vtep(plan, vtep_of(path))?)));
        moving.handle.give_lanes(senders).map_err(datapath_failure)?;
        self.watch_gate(moving);
        Ok(())
    }

    /// Senders that move themselves lose their lanes at this port's gate, if it has any.
    pub fn watch_gate(&self, moving: &MovingPort) {
        if !moving.lanes.is_empty() {
            lock(&self.gates.0).insert(moving.port.tap.index, (moving.plan.vni, moving.handle.clone()));
        }
    }
}

/// How many lanes the peers of a port share.
fn lanes_of(plan: &PortPlan) -> usize {
    plan.markers.len().min(PEER_LANES as usize)
}

/// The lane of a peer, by its number on the port. Where there are more peers than lanes, some share one.
pub fn lane_of(plan: &PortPlan, peer: u32) -> Option<u32> {
    let place = plan.markers.iter().position(|marker| marker.index == peer)?;
    Some(1 + place as u32 % PEER_LANES)
}

fn lane_of_vtep(plan: &PortPlan, vtep: Ipv4Addr) -> Option<u32> {
    lane_of(plan, plan.markers.iter().find(|marker| marker.vtep == vtep)?.index)
}

/// Peers that share the lane of `peer`, itself included.
pub fn sharing(plan: &PortPlan, peer: u32) -> impl Iterator<Item = u32> {
    let lane = lane_of(plan, peer);
    plan.markers.iter().map(|marker| marker.index).filter(move |other| lane_of(plan, *other) == lane)
}

#[cfg(test)]
mod tests {
    use throughline_cutover::{CarryId, MarkerPeer, Port, PortId};

    use super::*;

    fn plan(peers: u8) -> PortPlan {
        let peer = |at: u8| MarkerPeer {
            host: format!("h{at}").parse().expect("a name"),
            vtep: [192, 0, 2, at].into(),
            index: u32::from(at),
            secret: Default::default(),
        };
        let port = Port {
            id: PortId::try_from(1_u32).expect("valid"),
            network: "blue".parse().expect("a name"),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            ips: vec![],
        };
        PortPlan {
            port,
            vni: Vni::try_from(7_u32).expect("valid"),
            carry_id: CarryId::try_from(9_u32).expect("valid"),
            marker_mac: MacAddr::new([2, 0, 0, 0, 0, 9]),
            markers: (0..peers).map(peer).collect(),
        }
    }

    #[test]
    fn a_peer_has_a_lane_of_its_own_while_there_are_enough() {
        let plan = plan(7);
        let lanes: Vec<_> = (0..7).map(|peer| lane_of(&plan, peer)).collect();
        assert_eq!(lanes, (1..8).map(Some).collect::<Vec<_>>());
        assert_eq!(lane_of(&plan, 7), None);
        assert_eq!(sharing(&plan, 3).collect::<Vec<_>>(), [3]);
        assert_eq!(lane_of_vtep(&plan, [192, 0, 2, 2].into()), Some(3));
        assert_eq!(lane_of_vtep(&plan, [192, 0, 2, 99].into()), None, "nobody waits for that host");
    }

    #[test]
    fn more_peers_share_lanes() {
        let plan = plan(20);
        assert_eq!(lanes_of(&plan), 7);
        assert_eq!(sharing(&plan, 9).collect::<Vec<_>>(), [2, 9, 16]);
        assert!((0..20).all(|peer| lane_of(&plan, peer).is_some_and(|lane| (1..8).contains(&lane))));
    }
}
