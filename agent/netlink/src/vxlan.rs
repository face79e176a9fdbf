//! VXLAN devices: a network's, and the one that carries departed guests' frames.

use std::net::Ipv4Addr;

use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo};
use throughline_cutover::Vni;

use crate::{
    Error, Netlink, Result,
    link::{Link, VxlanSettings},
    names,
    quiet::Role,
};

/// UDP port of the tenant tunnels (RFC 7348, IANA).
const TENANT_PORT: u16 = 4789;
/// UDP port of the carry tunnel: its own, so that a carried frame is never taken for a tenant's.
const CARRY_PORT: u16 = 4790;
/// What fits an IPv4 datagram after 50 bytes of encapsulation: whatever the tenant's MTU, the carry's is not less.
const CARRY_MTU: u32 = 65485;
const TTL: u8 = 64;

/// A network's tunnel: learns nothing, every destination is written by the agent.
pub(crate) fn tenant(vni: Vni, local: Ipv4Addr) -> VxlanSettings {
    VxlanSettings { id: vni.get(), local: Some(local), port: TENANT_PORT, learning: false, external: false }
}

fn carry(local: Ipv4Addr) -> VxlanSettings {
    VxlanSettings { id: 0, local: Some(local), port: CARRY_PORT, learning: false, external: true }
}

impl Netlink {
    /// The device that carries departed guests' frames, made if it is not there; its interface index. Tunnel key and
    /// destination are the frame's own (`external`).
    ///
    /// # Errors
    /// [`Error::Foreign`]; the kernel's refusal.
    pub async fn ensure_carry(&self, local_vtep: Ipv4Addr) -> Result<u32> {
        let mut changed = Vec::new();
        let link = self.ensure_vxlan(names::CARRY, carry(local_vtep), CARRY_MTU, &mut changed).await?;
        self.ensure_up(&link, &mut changed).await?;
        Ok(link.index)
    }

    /// A quiet VXLAN device with these settings, made anew if it has others. Not brought up.
    pub(crate) async fn ensure_vxlan(
        &self,
        name: &str,
        settings: VxlanSettings,
        mtu: u32,
        changed: &mut Vec<String>,
    ) -> Result<Link> {
        let found = self.find(name).await?;
        if found.as_ref().is_some_and(|link| link.kind != Some(InfoKind::Vxlan)) {
            return Err(Error::Foreign { device: name.to_owned(), expected: "a VXLAN device" });
        }
        let link = match found {
            Some(link) if link.vxlan == settings => link,
            Some(_) => {
                self.delete_link(name).await?;
                self.create(name, vxlan_attributes(name, settings, mtu), changed).await?
            }
            None => self.create(name, vxlan_attributes(name, settings, mtu), changed).await?,
        };
        self.ensure_basics(link, mtu, Role::Passage, changed).await
    }

    /// Creates a device, down.
    pub(crate) async fn create(
        &self,
        name: &str,
        attributes: Vec<LinkAttribute>,
        changed: &mut Vec<String>,
    ) -> Result<Link> {
        self.verbs.create_link(attributes).await.map_err(Error::device("create", name))?;
        changed.push(name.to_owned());
        self.required(name).await
    }

    /// MTU and quiet of a device.
    pub(crate) async fn ensure_basics(
        &self,
        link: Link,
        mtu: u32,
        role: Role,
        changed: &mut Vec<String>,
    ) -> Result<Link> {
        if link.mtu != mtu {
            let change = vec![LinkAttribute::Mtu(mtu)];
            self.verbs.change_link(link.index, change).await.map_err(Error::device("set the MTU of", &link.name))?;
            note(changed, &link.name);
        }
        if self.quieten(&link, role).await? {
            note(changed, &link.name);
        }
        Ok(link)
    }

    pub(crate) async fn ensure_up(&self, link: &Link, changed: &mut Vec<String>) -> Result<()> {
        if !link.up {
            self.verbs.set_up(link.index).await.map_err(Error::device("bring up", &link.name))?;
            note(changed, &link.name);
        }
        Ok(())
    }
}

/// Each device once.
pub(crate) fn note(changed: &mut Vec<String>, name: &str) {
    if changed.last().is_none_or(|last| last != name) {
        changed.push(name.to_owned());
    }
}

fn vxlan_attributes(name: &str, settings: VxlanSettings, mtu: u32) -> Vec<LinkAttribute> {
    let mut data = vec![
        InfoVxlan::Port(settings.port),
        InfoVxlan::Learning(settings.learning),
        InfoVxlan::Ttl(TTL),
        InfoVxlan::UDPCsum(false),
    ];
    if settings.external {
        data.push(InfoVxlan::CollectMetadata(true));
    } else {
        data.push(InfoVxlan::Id(settings.id));
    }
    data.extend(settings.local.map(InfoVxlan::Local));
    let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))];
    vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(mtu), LinkAttribute::LinkInfo(info)]
}
