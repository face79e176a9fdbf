//! Taps: what a guest reads its frames from, and the holds where frames wait for it.

use std::{
    ffi::c_uint,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use libc::{
    IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4,
    TUN_F_USO6, TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ,
};
use netlink_packet_route::link::LinkAttribute;
use throughline_cutover::{Mtu, Queues};

use crate::{Error, Netlink, Result, error::Cause, quiet::Role};

/// `struct virtio_net_hdr_mrg_rxbuf`, which QEMU sets too: every reader and writer of the ring must agree.
const VNET_HEADER: libc::c_int = 12;
const QDISC: &str = "noqueue";

/// A tap or hold to be made. Its own MAC address is the kernel's random choice: were it the guest's, the bridge would
/// take the guest's frames for its host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapConfig {
    /// Its name; see [`crate::names`].
    pub name: String,
    /// Largest payload of a frame, bytes.
    pub mtu: Mtu,
    /// Depth of its ring, frames; the kernel takes 8 bytes for each at once.
    pub queue_len: u32,
}

/// A tap that is up.
#[derive(Debug)]
pub struct Tap {
    /// Its queue, or the first of several: non-blocking and close-on-exec, each frame behind a virtio-net header of 12
    /// bytes. The device and the frames in its ring live as long as a descriptor of it.
    pub fd: OwnedFd,
    /// Its further queues, each with a ring of its own.
    pub further: Vec<OwnedFd>,
    /// Its interface index.
    pub index: u32,
}

impl Netlink {
    /// Makes a tap and brings it up: not in any bridge, quiet, taking super-frames whole, without a queueing
    /// discipline. So what its ring does not take is refused to the sender and counted in `tx_dropped`, never hidden.
    /// Of several queues the kernel chooses one for each frame, until it is told how.
    ///
    /// # Errors
    /// The name is taken (EBUSY); the kernel's refusal; [`Error::Setting`] if it reads back differently. The device is
    /// gone again.
    pub async fn create_tap(&self, config: &TapConfig, queues: Queues) -> Result<Tap> {
        let kind = if queues.are_several() { IFF_MULTI_QUEUE } else { 0 };
        let mut tap = self.make_tap(config, kind).await?;
        for _ in 1..queues.get() {
            tap.further.push(self.add_queue(&config.name)?);
        }
        Ok(tap)
    }

    async fn make_tap(&self, config: &TapConfig, kind: libc::c_int) -> Result<Tap> {
        let name = config.name.as_str();
        let queue = create_queue(name, kind).map_err(Cause::from).map_err(Error::device("create tap", name))?;
        let link = self.required(name).await?;
        self.quieten(&link, Role::Passage).await?;
        let change = vec![LinkAttribute::Mtu(config.mtu.get()), LinkAttribute::TxQueueLen(config.queue_len)];
        self.verbs.change_link(link.index, change).await.map_err(Error::device("set MTU and queue of", name))?;
        self.verbs.set_noqueue(link.index).await.map_err(Error::device("set qdisc noqueue on", name))?;
        self.verbs.set_up(link.index).await.map_err(Error::device("bring up", name))?;
        self.verify(config).await?;
        Ok(Tap { fd: queue.into(), further: Vec::new(), index: link.index })
    }

    /// Makes a hold: a tap of its own kind that is never put into a bridge. A program that diverts to it learns of a
    /// full ring only because it has no queueing discipline. It may get further queues.
    ///
    /// # Errors
    /// As [`Netlink::create_tap`].
    pub async fn create_hold(&self, config: &TapConfig) -> Result<Tap> {
        self.make_tap(config, IFF_MULTI_QUEUE).await
    }

    /// Gives a hold or tap one more queue, as deep as its first. It goes, and what waits in it, with its last descriptor;
    /// of several the latest has to go first, or another takes its number.
    ///
    /// # Errors
    /// The kernel's refusal: no such device, or it was made with one queue for good.
    pub fn add_queue(&self, device: &str) -> Result<OwnedFd> {
        let queue = open_queue(device, IFF_MULTI_QUEUE).map_err(Cause::from);
        queue.map(OwnedFd::from).map_err(Error::device("add a queue to", device))
    }

    async fn verify(&self, config: &TapConfig) -> Result<()> {
        let link = self.required(&config.name).await?;
        let setting = if link.qdisc != QDISC {
            format!("qdisc {QDISC} (it is {})", link.qdisc)
        } else if link.queue_len != config.queue_len {
            format!("queue length {} (it is {})", config.queue_len, link.queue_len)
        } else if link.mtu != config.mtu.get() {
            format!("MTU {} (it is {})", config.mtu, link.mtu)
        } else if !self.is_quiet(&link, Role::Passage)? {
            "quiet".to_owned()
        } else if !link.up {
            "up".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::Setting { device: config.name.clone(), setting })
    }
}

fn create_queue(name: &str, kind: libc::c_int) -> io::Result<File> {
    // A device with several queues would else take this for one more of them.
    let queue = open_queue(name, kind | libc::IFF_TUN_EXCL)?;
    let header = VNET_HEADER;
    // SAFETY: TUNSETVNETHDRSZ reads an int, which outlives the call.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header) })?;
    take_super_frames(&queue)?;
    Ok(queue)
}

fn open_queue(name: &str, kind: libc::c_int) -> io::Result<File> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device's name has 1 to 15 bytes"));
    }
    let queue = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | kind) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(queue)
}

/// Super-frames stay whole in the ring, as the guest's driver would take them; UDP ones where the kernel can (6.2).
fn take_super_frames(queue: &File) -> io::Result<()> {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    set_offload(queue, tcp | TUN_F_USO4 | TUN_F_USO6).or_else(|_| set_offload(queue, tcp))
}

fn set_offload(queue: &File, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
