//! The plan of a migration.

use throughline_cutover::{End, Generation, Limits, MarkerPeer, MigrationPlan, PortPlan, UNCOUNTED_MARKER};

use super::field::{InvalidField, number, parse, required, within};
use crate::{
    limits::{LONGEST_ID, MOST_PEERS, MOST_PORTS},
    v1,
};

impl TryFrom<v1::End> for End {
    type Error = InvalidField;
    fn try_from(end: v1::End) -> Result<Self, InvalidField> {
        within("peer_endpoint", end.peer_endpoint.len() as u64, 1..=255, "bytes")?;
        Ok(Self { host: parse("host", &end.host)?, vtep: parse("vtep", &end.vtep)?, peer_endpoint: end.peer_endpoint })
    }
}

impl From<End> for v1::End {
    fn from(end: End) -> Self {
        Self { host: end.host.into(), vtep: end.vtep.to_string(), peer_endpoint: end.peer_endpoint }
    }
}

impl TryFrom<v1::MarkerPeer> for MarkerPeer {
    type Error = InvalidField;
    fn try_from(peer: v1::MarkerPeer) -> Result<Self, InvalidField> {
        within("index", peer.index.into(), 0..=u64::from(UNCOUNTED_MARKER) - 1, "as a peer's number")?;
        Ok(Self {
            host: parse("host", &peer.host)?,
            vtep: parse("vtep", &peer.vtep)?,
            index: peer.index,
            secret: number("secret", peer.secret.as_slice())?,
        })
    }
}

impl TryFrom<v1::PortPlan> for PortPlan {
    type Error = InvalidField;
    fn try_from(plan: v1::PortPlan) -> Result<Self, InvalidField> {
        within("markers", plan.markers.len() as u64, 0..=MOST_PEERS as u64, "peers a port")?;
        let markers = plan
            .markers
            .into_iter()
            .enumerate()
            .map(|(at, peer)| MarkerPeer::try_from(peer).map_err(|e| e.within(format_args!("markers[{at}]"))));
        Ok(Self {
            port: required("port", plan.port)?.try_into().map_err(|e: InvalidField| e.within("port"))?,
            vni: number("vni", plan.vni)?,
            carry_id: number("carry_id", plan.carry_id)?,
            marker_mac: parse("marker_mac", &plan.marker_mac)?,
            markers: markers.collect::<Result<_, InvalidField>>()?,
        })
    }
}

impl From<PortPlan> for v1::PortPlan {
    fn from(plan: PortPlan) -> Self {
        let markers = plan.markers.into_iter().map(|peer| v1::MarkerPeer {
            host: peer.host.into(),
            vtep: peer.vtep.to_string(),
            index: peer.index,
            secret: peer.secret.bytes().to_vec(),
        });
        Self {
            port: Some(plan.port.into()),
            vni: plan.vni.get(),
            carry_id: plan.carry_id.get(),
            marker_mac: plan.marker_mac.into(),
            markers: markers.collect(),
        }
    }
}

impl TryFrom<v1::MigrationPlan> for MigrationPlan {
    type Error = InvalidField;
    fn try_from(plan: v1::MigrationPlan) -> Result<Self, InvalidField> {
        within("migration_id", plan.migration_id.len() as u64, 1..=LONGEST_ID as u64, "bytes")?;
        within("token", plan.token.len() as u64, 1..=LONGEST_ID as u64, "bytes")?;
        within("ports", plan.ports.len() as u64, 1..=MOST_PORTS as u64, "ports a guest")?;
        let ports = plan.ports.into_iter().enumerate();
        let ports = ports.map(|(at, port)| PortPlan::try_from(port).map_err(|e| e.within(format_args!("ports[{at}]"))));
        Ok(Self {
            id: plan.migration_id,
            token: plan.token,
            guest: required("guest", plan.guest)?.try_into().map_err(|e: InvalidField| e.within("guest"))?,
            generation: Generation(plan.generation),
            source: required("source", plan.source)?.try_into().map_err(|e: InvalidField| e.within("source"))?,
            destination: required("destination", plan.destination)?
                .try_into()
                .map_err(|e: InvalidField| e.within("destination"))?,
            ports: ports.collect::<Result<_, _>>()?,
            limits: Limits::try_from(plan.limits.unwrap_or_default()).map_err(|e| e.within("limits"))?,
            cold: plan.cold,
            flatten: plan.flatten,
        })
    }
}

impl From<MigrationPlan> for v1::MigrationPlan {
    fn from(plan: MigrationPlan) -> Self {
        Self {
            migration_id: plan.id,
            token: plan.token,
            guest: Some(plan.guest.into()),
            generation: plan.generation.0,
            source: Some(plan.source.into()),
            destination: Some(plan.destination.into()),
            ports: plan.ports.into_iter().map(Into::into).collect(),
            limits: Some(plan.limits.into()),
            cold: plan.cold,
            flatten: plan.flatten,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> v1::MigrationPlan {
        let mac = |last: u8| format!("02:00:00:00:00:{last:02x}");
        let port = v1::Port { id: 7, network: "blue".into(), mac: mac(7), ips: vec!["10.7.0.10".into()] };
        let peer = v1::MarkerPeer { host: "h3".into(), vtep: "192.0.2.3".into(), index: 0, secret: vec![7; 16] };
        let end = |n: u8| v1::End {
            host: format!("h{n}"),
            vtep: format!("192.0.2.{n}"),
            peer_endpoint: format!("192.0.2.{n}:7701"),
        };
        let boot = v1::Boot { kernel: "/k".into(), ..Default::default() };
        v1::MigrationPlan {
            migration_id: "m".into(),
            token: "t".repeat(64),
            guest: Some(v1::GuestSpec {
                name: "web-1".into(),
                vcpus: 1,
                queues: 1,
                memory_kib: 262_136,
                boot: Some(boot),
                ports: vec![port.clone()],
                disks: vec![],
                guest_agent: false,
            }),
            generation: 1,
            source: Some(end(1)),
            destination: Some(end(2)),
            ports: vec![v1::PortPlan {
                port: Some(port),
                vni: 7,
                carry_id: 9,
                marker_mac: mac(9),
                markers: vec![peer],
            }],
            limits: Some(Limits::default().into()),
            cold: true,
            flatten: true,
        }
    }

    fn field(change: impl FnOnce(&mut v1::MigrationPlan)) -> String {
        let mut plan = plan();
        change(&mut plan);
        MigrationPlan::try_from(plan).expect_err("must be refused").field
    }

    #[test]
    fn a_good_plan_round_trips_and_shows_no_secret_of_a_marker() {
        let domain = MigrationPlan::try_from(plan()).expect("good");
        assert!(format!("{:?}", domain.ports).contains("MarkerSecret(..)"));
        assert_eq!(v1::MigrationPlan::from(domain), plan());
    }

    #[test]
    fn every_refusal_names_its_field() {
        assert_eq!(field(|p| p.migration_id = "m".repeat(65)), "migration_id");
        assert_eq!(field(|p| p.token.clear()), "token");
        assert_eq!(field(|p| p.token = "t".repeat(65)), "token");
        assert_eq!(field(|p| p.ports.clear()), "ports");
        assert_eq!(field(|p| p.ports = vec![p.ports[0].clone(); MOST_PORTS + 1]), "ports");
        assert_eq!(field(|p| p.ports[0].carry_id = 1 << 24), "ports[0].carry_id");
        let peer = plan().ports[0].markers[0].clone();
        assert_eq!(field(|p| p.ports[0].markers = vec![peer; MOST_PEERS + 1]), "ports[0].markers");
        assert_eq!(field(|p| p.ports[0].markers[0].index = UNCOUNTED_MARKER), "ports[0].markers[0].index");
        assert_eq!(field(|p| p.ports[0].markers[0].secret.clear()), "ports[0].markers[0].secret");
        assert_eq!(field(|p| p.ports[0].markers[0].secret = vec![0; 17]), "ports[0].markers[0].secret");
        let endpoint = &"h".repeat(256);
        assert_eq!(
            field(|p| p.source.as_mut().expect("set").peer_endpoint.clone_from(endpoint)),
            "source.peer_endpoint"
        );
    }
}
