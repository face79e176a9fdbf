//! The networks' half of a reconciliation.

use std::{collections::BTreeSet, net::Ipv4Addr};

use throughline_cutover::{Binding, Endpoint, Network, Vni};
use throughline_netlink::{BindingWanted, EndpointWanted, NetworkWanted, Path, names};
use throughline_wire::v1;
use tracing::info;

use crate::host::Host;

/// The desired state, read.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) networks: Vec<KnownNetwork>,
    endpoints: Vec<Endpoint>,
}

/// One network of it.
#[derive(Debug)]
pub(super) struct KnownNetwork {
    pub(super) network: Network,
    flood: BTreeSet<Ipv4Addr>,
    bindings: Vec<Binding>,
}

impl Known {
    /// Reads what can be read; the rest becomes problems.
    pub(super) fn read(state: &v1::DesiredState, problems: &mut Vec<String>) -> Self {
        let mut networks = Vec::with_capacity(state.networks.len());
        for network in state.networks.iter().cloned() {
            match read_network(network) {
                Ok(network) => networks.push(network),
                Err(error) => problems.push(format!("a network of the desired state: {error}")),
            }
        }
        let mut endpoints = Vec::with_capacity(state.endpoints.len());
        for endpoint in state.endpoints.iter().cloned() {
            match Endpoint::try_from(endpoint) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => problems.push(format!("an endpoint of the desired state: {error}")),
            }
        }
        Self { networks, endpoints }
    }

    /// Bridges, tunnels, entries. Networks with a move under way are left as the move makes them.
    pub(super) async fn ensure(&self, host: &Host, problems: &mut Vec<String>) {
        for known in &self.networks {
            let _writing = host.bindings.writing.lock().await;
            if host.bindings.is_moving(known.network.vni) {
                continue;
            }
            let wanted = known.wanted(host).await;
            match host.netlink.ensure_network(&wanted).await {
                Ok(changes) if changes.is_empty() => {}
                Ok(changes) => {
                    info!(network = %known.network.name, vni = %known.network.vni, ?changes, "network is as wanted")
                }
                Err(error) => problems.push(format!("network {}: {error}", known.network.name)),
            }
        }
    }

    /// Endpoints here; true if any was changed.
    pub(super) async fn ensure_endpoints(&self, host: &Host, problems: &mut Vec<String>) -> bool {
        let mut changed = false;
        for endpoint in &self.endpoints {
            let Some(segment) = host.bindings.segment(&endpoint.port.network) else {
                problems.push(format!("endpoint {}: network {} is not here", endpoint.name, endpoint.port.network));
                continue;
            };
            let wanted = EndpointWanted {
                name: endpoint.name.clone(),
                vni: segment.vni,
                port: endpoint.port.id,
                mac: endpoint.port.mac,
                ips: endpoint.port.ips.clone(),
                prefix_len: endpoint.prefix_len,
                mtu: segment.mtu,
            };
            match host.netlink.create_endpoint(&wanted).await {
                Ok(changes) => changed |= !changes.is_empty(),
                Err(error) => problems.push(format!("endpoint {}: {error}", endpoint.name)),
            }
        }
        changed
    }
}

/// Removes endpoints and networks of ours that are named to go. What is not named stays: the controller may not know of it.
pub(super) async fn remove_named(host: &Host, state: &v1::DesiredState, problems: &mut Vec<String>) {
    match host.netlink.list_endpoints().await {
        Ok(found) => {
            for port in found.into_iter().filter(|port| state.remove_endpoints.contains(&port.get())) {
                if let Err(error) = host.netlink.remove_endpoint(port).await {
                    problems.push(format!("an endpoint that is to go: {error}"));
                }
            }
        }
        Err(error) => problems.push(error.to_string()),
    }
    match host.netlink.list_networks().await {
        Ok(found) => {
            for vni in found.into_iter().filter(|vni| state.remove_networks.contains(&vni.get())) {
                remove_network(host, vni).await.unwrap_or_else(|problem| problems.push(problem));
            }
        }
        Err(error) => problems.push(error.to_string()),
    }
}

/// One that something is on stays, whoever knows of it.
async fn remove_network(host: &Host, vni: Vni) -> Result<(), String> {
    if let Some(resident) = host.resident_on(vni, None).await {
        return Err(format!("network with VNI {vni} is to go, but guest {} is on it; it stays", resident.spec.name));
    }
    if host.bindings.is_moving(vni) {
        return Err(format!("network with VNI {vni} is to go, but a guest on it is moving; it stays for now"));
    }
    host.netlink.remove_network(vni).await.map_err(|error| format!("a network that is to go: {error}"))?;
    host.bindings.forget_all_but(vni, &[]);
    info!(%vni, "network removed");
    Ok(())
}

fn read_network(network: v1::DesiredNetwork) -> Result<KnownNetwork, String> {
    let inner = network.network.ok_or("network is missing")?;
    let flood = network.flood_vteps.iter().map(|vtep| vtep.parse::<Ipv4Addr>());
    let bindings = network.bindings.into_iter().map(Binding::try_from);
    Ok(KnownNetwork {
        network: Network::try_from(inner).map_err(|error| error.to_string())?,
        flood: flood.collect::<Result<_, _>>().map_err(|error| format!("flood_vteps: {error}"))?,
        bindings: bindings.collect::<Result<_, _>>().map_err(|error| error.to_string())?,
    })
}

impl KnownNetwork {
    async fn wanted(&self, host: &Host) -> NetworkWanted {
        let vni = self.network.vni;
        let mut bindings = Vec::with_capacity(self.bindings.len());
        for binding in &self.bindings {
            match wanted_binding(host, binding).await {
                Some(wanted) => bindings.push(host.bindings.newest(vni, wanted, binding.generation)),
                None => bindings.extend(host.bindings.newer_than(vni, binding.port.mac, binding.generation)),
            }
        }
        let macs: Vec<_> = self.bindings.iter().map(|binding| binding.port.mac).collect();
        host.bindings.forget_all_but(vni, &macs);
        NetworkWanted { vni, mtu: self.network.mtu, local_vtep: host.config.vtep, flood: self.flood.clone(), bindings }
    }
}

/// `None`: it leads nowhere yet.
async fn wanted_binding(host: &Host, binding: &Binding) -> Option<BindingWanted> {
    let path = if binding.host == *host.name() {
        Path::Local { device: local_device(host, binding).await? }
    } else {
        Path::Remote { vtep: binding.vtep? }
    };
    Some(BindingWanted { mac: binding.port.mac, ips: binding.port.ips.clone(), path })
}

/// The device of a port that should be here, if it is.
async fn local_device(host: &Host, binding: &Binding) -> Option<String> {
    let port = binding.port.id;
    for name in [names::tap(port), names::endpoint(port)] {
        if host.netlink.link_index(&name).await.is_ok() {
            return Some(name);
        }
    }
    None
}
