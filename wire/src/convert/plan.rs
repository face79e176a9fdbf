//! The plan of a migration.

use throughline_cutover::{End, Generation, Limits, MarkerPeer, MigrationPlan, PortPlan};

use super::field::{InvalidField, number, parse, required, within};
use crate::v1;

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

impl TryFrom<v1::PortPlan> for PortPlan {
    type Error = InvalidField;
    fn try_from(plan: v1::PortPlan) -> Result<Self, InvalidField> {
        let markers = plan.markers.into_iter().enumerate().map(|(at, peer)| {
            let within = |e: InvalidField| e.within(format_args!("markers[{at}]"));
            let host = parse("host", &peer.host).map_err(within)?;
            let vtep = parse("vtep", &peer.vtep).map_err(within)?;
            Ok(MarkerPeer { host, vtep, index: peer.index })
        });
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
        within("migration_id", plan.migration_id.len() as u64, 1..=64, "bytes")?;
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
        }
    }
}
