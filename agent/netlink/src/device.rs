//! Single devices: finding, plugging in, counting, deleting.

use netlink_packet_route::link::LinkAttribute;
use throughline_cutover::Vni;

use crate::{
    Error, Netlink, Result,
    error::Cause,
    link::{Link, PortSettings},
    netlink::Segment,
};

/// A port whose addresses are programmed: it learns nothing and hides nothing.
pub(crate) const PLAIN_PORT: PortSettings = PortSettings { learning: false, neigh_suppress: false };

impl Netlink {
    /// Interface index of a device.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; the kernel's refusal.
    pub async fn link_index(&self, name: &str) -> Result<u32> {
        Ok(self.required(name).await?.index)
    }

    /// Frames a device dropped instead of sending; on a tap: those its full ring did not take.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; the kernel's refusal.
    pub async fn tx_dropped(&self, name: &str) -> Result<u64> {
        let link = self.verbs.link_with_statistics(name).await.map_err(Error::device("read counters of", name))?;
        let link = link.ok_or_else(|| Error::NoDevice(name.to_owned()))?;
        link.tx_dropped.ok_or(Cause::Answer("statistics")).map_err(Error::device("read counters of", name))
    }

    /// Sets a device's queue length, frames; on a tap: the depth of its ring, what is in it stays.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; the kernel's refusal (no memory for the ring); [`Error::Setting`] if it reads back differently.
    pub async fn set_queue_len(&self, name: &str, frames: u32) -> Result<()> {
        let index = self.link_index(name).await?;
        let change = vec![LinkAttribute::TxQueueLen(frames)];
        self.verbs.change_link(index, change).await.map_err(Error::device("set the queue length of", name))?;
        if self.required(name).await?.queue_len == frames {
            Ok(())
        } else {
            Err(Error::Setting { device: name.to_owned(), setting: format!("queue length {frames}") })
        }
    }

    /// Deletes a device; one that does not exist is as good as deleted. Returns whether there was one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn delete_link(&self, name: &str) -> Result<bool> {
        let Some(link) = self.find(name).await? else { return Ok(false) };
        match self.verbs.delete_link(link.index).await {
            Ok(()) => Ok(true),
            Err(cause) if cause.is_absent() => Ok(false),
            Err(cause) => Err(Error::device("delete", name)(cause)),
        }
    }

    /// Puts a device into a network's bridge, learning off. Done already: nothing changes.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NoNetwork`], [`Error::Setting`]; the kernel's refusal.
    pub async fn attach_to_bridge(&self, index: u32, vni: Vni) -> Result<()> {
        let link = self.verbs.link_at(index).await;
        let link = link.map_err(Error::device("look up", &format!("interface {index}")))?;
        let link = link.ok_or_else(|| Error::NoDevice(format!("with interface index {index}")))?;
        match self.plug(&link, self.segment(vni).await?, PLAIN_PORT).await {
            Err(error) if error.is_stale() => {
                self.forget(vni);
                self.plug(&link, self.segment(vni).await?, PLAIN_PORT).await.map(drop)
            }
            done => done.map(drop),
        }
    }

    /// Makes `link` a port of the network's bridge with these settings, and looks; whether anything had to change.
    pub(crate) async fn plug(&self, link: &Link, segment: Segment, settings: PortSettings) -> Result<bool> {
        let name = link.name.as_str();
        let moved = link.master != Some(segment.bridge);
        if moved {
            let change = vec![LinkAttribute::Controller(segment.bridge)];
            self.verbs.change_link(link.index, change).await.map_err(Error::device("put into its bridge", name))?;
        }
        if !moved && link.port == settings {
            return Ok(false);
        }
        self.verbs.set_port(link.index, settings).await.map_err(Error::device("set bridge port options of", name))?;
        let now = self.required(name).await?;
        if now.master == Some(segment.bridge) && now.port == settings {
            Ok(true)
        } else {
            Err(Error::Setting { device: name.to_owned(), setting: format!("{settings:?} in its bridge") })
        }
    }

    pub(crate) async fn find(&self, name: &str) -> Result<Option<Link>> {
        self.verbs.link(name).await.map_err(Error::device("look up", name))
    }

    pub(crate) async fn required(&self, name: &str) -> Result<Link> {
        self.find(name).await?.ok_or_else(|| Error::NoDevice(name.to_owned()))
    }
}
