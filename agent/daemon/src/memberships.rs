//! Multicast memberships move with the port, so that the guest need not wait for the next query. Only where a bridge snoops;
//! see `throughline_netlink::Memberships`. What fails here costs a guest some multicast for a while, never the move.

use std::{net::IpAddr, sync::Arc};

use throughline_cutover::MigrationPlan;
use throughline_netlink::{Memberships, names};
use throughline_wire::{
    limits::{MOST_GROUPS, MOST_PORTS},
    v1::{Joined, Membership},
};
use tracing::{info, warn};

use crate::{host::Host, resident::ResidentPort};

/// At the source: what the guest's ports have joined here. What is sent here to these groups goes over the tunnel too from
/// now on, for after commit the departed guest's tap takes no multicast.
pub async fn hand_over(host: &Host, ports: &[Arc<ResidentPort>]) -> Joined {
    let mut memberships = Vec::new();
    for port in ports {
        let found = async {
            let found = host.netlink.memberships(port.vni, &port.tap.name).await?;
            host.netlink.join(port.vni, &names::vxlan(port.vni), &found).await?;
            Ok::<_, throughline_netlink::Error>(found)
        };
        match found.await {
            Ok(found) if found.is_empty() => {}
            Ok(found) => memberships.push(Membership {
                port: port.port.id.get(),
                groups: found.groups.iter().map(ToString::to_string).collect(),
                router: found.router,
            }),
            Err(error) => warn!(%error, tap = port.tap.name, "multicast memberships do not move with this port"),
        }
    }
    Joined { memberships }
}

/// At the destination: what the source says becomes true of the taps here, which are mute until commit and
/// gone, memberships included, if it does not come to that.
pub async fn take_over(host: &Host, plan: &MigrationPlan, joined: &Joined) {
    for membership in joined.memberships.iter().take(MOST_PORTS) {
        let Some(port) = plan.ports.iter().find(|port| port.port.id.get() == membership.port) else {
            warn!(port = membership.port, "multicast memberships of a port that does not move");
            continue;
        };
        let tap = names::tap(port.port.id);
        match host.netlink.join(port.vni, &tap, &read(membership)).await {
            Ok(()) => info!(tap, groups = membership.groups.len(), router = membership.router, "joined for the guest"),
            Err(error) => warn!(%error, tap, "multicast memberships did not move with this port"),
        }
    }
}

/// Groups that are none are left out, and those beyond [`MOST_GROUPS`]: the guest's next report names them.
pub fn read(membership: &Membership) -> Memberships {
    let groups = membership.groups.iter().take(MOST_GROUPS).filter_map(|group| group.parse::<IpAddr>().ok());
    Memberships { groups: groups.filter(IpAddr::is_multicast).collect(), router: membership.router }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_are_read() {
        let groups = ["239.1.2.3", "10.0.0.1", "ff15::1", "no address", ""].map(str::to_owned).to_vec();
        let found = read(&Membership { port: 1, groups, router: true });
        let expected = ["239.1.2.3", "ff15::1"].map(|group| group.parse().unwrap());
        assert_eq!(found, Memberships { groups: expected.into(), router: true });
        let many = (0..=MOST_GROUPS).map(|n| format!("239.{}.{}.1", n >> 8, n & 255)).collect();
        assert_eq!(read(&Membership { port: 1, groups: many, router: false }).groups.len(), MOST_GROUPS);
    }
}
