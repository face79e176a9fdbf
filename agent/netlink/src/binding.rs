//! One binding at a time: the flip after a commit, and markers. No lists are read here.

use std::net::{IpAddr, Ipv4Addr};

use throughline_cutover::{MacAddr, Vni};

use crate::{
    BindingFound, BindingWanted, Error, Netlink, Path, Result,
    error::Cause,
    netlink::Segment,
    network::{Entry, neighbour},
};

/// A [`Path`] with its device looked up.
#[derive(Debug, Clone, Copy)]
enum Target {
    Port(u32),
    Vtep(Ipv4Addr),
}

/// What the kernel has for a MAC address, by index.
#[derive(Debug, Clone, Copy)]
struct Way {
    port: Option<u32>,
    vtep: Option<Ipv4Addr>,
}

impl Way {
    fn leads_to(self, target: Target, segment: Segment) -> bool {
        match target {
            Target::Port(port) => self.port == Some(port),
            Target::Vtep(vtep) => self.port == Some(segment.vxlan) && self.vtep == Some(vtep),
        }
    }
}

impl Netlink {
    /// Points a binding where it should, MAC and IP addresses in one step, and reads it back from the kernel. Frames
    /// under way see either the old or the new place, never none. Done when this returns.
    ///
    /// # Errors
    /// [`Error::NoNetwork`], [`Error::NoDevice`], [`Error::NotAsAsked`]; the kernel's refusal.
    pub async fn set_binding(&self, vni: Vni, binding: &BindingWanted) -> Result<()> {
        match self.try_set_binding(vni, binding).await {
            Err(error) if error.is_stale() => {
                // The network's devices were made anew since their indexes were remembered.
                self.forget(vni);
                self.try_set_binding(vni, binding).await
            }
            done => done,
        }
    }

    async fn try_set_binding(&self, vni: Vni, binding: &BindingWanted) -> Result<()> {
        let segment = self.segment(vni).await?;
        let target = self.target(&binding.path).await?;
        self.point(vni, segment, binding.mac, target).await?;
        for &ip in &binding.ips {
            let done = self.verbs.set_neighbour(segment.bridge, ip, binding.mac).await;
            done.map_err(entry("set", format!("neighbour {ip} lladdr {}", binding.mac), vni))?;
        }
        let way = self.way(vni, segment, binding.mac).await?;
        for &ip in &binding.ips {
            if self.resolved(vni, segment, ip).await? != Some(binding.mac) {
                return Err(self.mismatch(vni, binding).await);
            }
        }
        if way.leads_to(target, segment) { Ok(()) } else { Err(self.mismatch(vni, binding).await) }
    }

    /// Where the kernel sends frames for `mac`, and what `ips` resolve to on the network's bridge.
    ///
    /// # Errors
    /// [`Error::NoNetwork`]; the kernel's refusal.
    pub async fn read_binding(&self, vni: Vni, mac: MacAddr, ips: &[IpAddr]) -> Result<BindingFound> {
        let segment = self.segment(vni).await?;
        let way = self.way(vni, segment, mac).await?;
        let mut found = BindingFound { vtep: way.vtep, ..BindingFound::default() };
        if let Some(port) = way.port {
            let link =
                self.verbs.link_at(port).await.map_err(Error::device("look up", &format!("interface {port}")))?;
            found.device = link.map(|link| link.name);
        }
        for &ip in ips {
            found.neighbours.insert(ip, self.resolved(vni, segment, ip).await?);
        }
        Ok(found)
    }

    /// Removes a binding's entries, as far as they are ours. Gone already: nothing happens.
    ///
    /// # Errors
    /// [`Error::NoNetwork`]; the kernel's refusals, all of them.
    pub async fn remove_binding(&self, vni: Vni, mac: MacAddr, ips: &[IpAddr]) -> Result<()> {
        let segment = self.segment(vni).await?;
        let mut errors = Vec::new();
        for &ip in ips {
            errors.extend(self.remove_neighbour(vni, segment, ip, mac).await.err());
        }
        errors.extend(self.remove_forward(vni, segment, mac).await.err());
        errors.extend(self.remove_remote(vni, segment, mac).await.err());
        Error::collected(errors)
    }

    /// Points a marker address where it should and reads it back. Reconciliations leave it alone until
    /// [`Netlink::remove_marker`]; a process that begins anew treats what it finds as residue.
    ///
    /// # Errors
    /// [`Error::NoNetwork`], [`Error::NoDevice`], [`Error::NotAsAsked`]; the kernel's refusal.
    pub async fn set_marker(&self, vni: Vni, marker_mac: MacAddr, path: &Path) -> Result<()> {
        self.remember_marker(vni, marker_mac);
        let marker = BindingWanted { mac: marker_mac, ips: Vec::new(), path: path.clone() };
        self.set_binding(vni, &marker).await
    }

    /// Removes a marker address. Gone already, or its whole network: nothing happens.
    ///
    /// # Errors
    /// The kernel's refusals.
    pub async fn remove_marker(&self, vni: Vni, marker_mac: MacAddr) -> Result<()> {
        self.forget_marker(vni, marker_mac);
        match self.remove_binding(vni, marker_mac, &[]).await {
            Err(Error::NoNetwork(_)) => Ok(()),
            done => done,
        }
    }

    async fn target(&self, path: &Path) -> Result<Target> {
        Ok(match path {
            Path::Local { device } => Target::Port(self.link_index(device).await?),
            Path::Remote { vtep } => Target::Vtep(*vtep),
        })
    }

    async fn point(&self, vni: Vni, segment: Segment, mac: MacAddr, target: Target) -> Result<()> {
        match target {
            Target::Port(port) => {
                self.set_forward(vni, port, mac).await?;
                self.remove_remote(vni, segment, mac).await
            }
            Target::Vtep(vtep) => {
                let done = self.verbs.set_remote(segment.vxlan, mac, vtep).await;
                done.map_err(entry("set", format!("VXLAN entry {mac} dst {vtep}"), vni))?;
                self.set_forward(vni, segment.vxlan, mac).await
            }
        }
    }

    async fn set_forward(&self, vni: Vni, port: u32, mac: MacAddr) -> Result<()> {
        let done = self.verbs.set_forward(port, mac).await;
        done.map_err(entry("set", format!("bridge entry {mac} to interface {port}"), vni))
    }

    async fn way(&self, vni: Vni, segment: Segment, mac: MacAddr) -> Result<Way> {
        let forward = self.forward(vni, segment, mac).await?;
        let remote = self.remote(vni, segment, mac).await?;
        Ok(Way { port: forward.map(|entry| entry.port), vtep: remote.and_then(|entry| entry.vtep) })
    }

    async fn forward(&self, vni: Vni, segment: Segment, mac: MacAddr) -> Result<Option<Entry>> {
        let message = self.verbs.forward(segment.bridge, mac).await;
        let message = message.map_err(entry("read", format!("bridge entry {mac}"), vni))?;
        Ok(message.as_ref().map(Entry::from))
    }

    async fn remote(&self, vni: Vni, segment: Segment, mac: MacAddr) -> Result<Option<Entry>> {
        let message = self.verbs.remote(segment.vxlan, mac).await;
        let message = message.map_err(entry("read", format!("VXLAN entry {mac}"), vni))?;
        Ok(message.as_ref().map(Entry::from))
    }

    async fn resolved(&self, vni: Vni, segment: Segment, ip: IpAddr) -> Result<Option<MacAddr>> {
        let message = self.verbs.neighbour(segment.bridge, ip).await;
        let message = message.map_err(entry("read", format!("neighbour {ip}"), vni))?;
        Ok(message.as_ref().and_then(neighbour).and_then(|(_, entry)| entry.value))
    }

    async fn remove_forward(&self, vni: Vni, segment: Segment, mac: MacAddr) -> Result<()> {
        let Some(found) = self.forward(vni, segment, mac).await?.filter(|found| found.ours) else { return Ok(()) };
        let done = self.verbs.remove_forward(found.port, mac).await;
        unless_gone(done).map_err(entry("remove", format!("bridge entry {mac}"), vni))
    }

    async fn remove_remote(&self, vni: Vni, segment: Segment, mac: MacAddr) -> Result<()> {
        if self.remote(vni, segment, mac).await?.is_none_or(|found| !found.ours) {
            return Ok(());
        }
        let done = self.verbs.remove_remote(segment.vxlan, mac, None).await;
        unless_gone(done).map_err(entry("remove", format!("VXLAN entry {mac}"), vni))
    }

    /// Only while it resolves to `mac`: the address may have found another owner.
    async fn remove_neighbour(&self, vni: Vni, segment: Segment, ip: IpAddr, mac: MacAddr) -> Result<()> {
        let message = self.verbs.neighbour(segment.bridge, ip).await;
        let message = message.map_err(entry("read", format!("neighbour {ip}"), vni))?;
        match message.as_ref().and_then(neighbour) {
            Some((_, found)) if found.ours && found.value == Some(mac) => {
                let done = self.verbs.remove_neighbour(segment.bridge, ip).await;
                unless_gone(done).map_err(entry("remove", format!("neighbour {ip}"), vni))
            }
            _ => Ok(()),
        }
    }

    async fn mismatch(&self, vni: Vni, binding: &BindingWanted) -> Error {
        match self.read_binding(vni, binding.mac, &binding.ips).await {
            Ok(found) => Error::NotAsAsked {
                vni,
                mac: binding.mac,
                asked: format!("{} for {:?}", binding.path, binding.ips),
                found: format!("{found:?}"),
            },
            Err(error) => error,
        }
    }
}

fn entry(doing: &'static str, entry: String, vni: Vni) -> impl FnOnce(Cause) -> Error {
    move |source| Error::Entry { doing, entry, vni, source }
}

fn unless_gone(done: Result<(), Cause>) -> Result<(), Cause> {
    match done {
        Err(cause) if cause.is_absent() => Ok(()),
        done => done,
    }
}
