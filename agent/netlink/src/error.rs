//! What can go wrong, with the kernel's own words.

use std::io;

use nix::errno::Errno;
use throughline_cutover::{MacAddr, Vni};

/// Why the kernel, or the way to it, failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused a message.
    #[error("{errno}{hint}")]
    Refused {
        /// Its error number.
        errno: Errno,
        /// What it adds in words (netlink's extended acknowledgement), in parentheses; may be empty.
        hint: String,
    },
    /// The netlink socket's task has ended; the process must open a new one.
    #[error("the netlink connection has ended; restart the agent")]
    Closed,
    /// A list changed each time it was read.
    #[error("the list changed while it was read, {0} times running; try again")]
    Torn(u32),
    /// An answer lacked what it must have.
    #[error("the kernel's answer has no {0}")]
    Answer(&'static str),
    /// A system call failed.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl Cause {
    /// The thing asked about, or the device it would be on, does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL, .. })
    }
}

/// What failed, and on which device, network or address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No way to the kernel.
    #[error("cannot open netlink: {0}; the agent needs CAP_NET_ADMIN and a kernel of 5.0 or later")]
    Open(#[source] Cause),
    /// A step on a device failed.
    #[error("cannot {doing} {device}: {source}")]
    Device {
        /// The step, an infinitive.
        doing: &'static str,
        /// Name of the device.
        device: String,
        /// Why.
        source: Cause,
    },
    /// A forwarding or neighbour entry could not be read or written.
    #[error("cannot {doing} {entry} in VNI {vni}: {source}")]
    Entry {
        /// The step, an infinitive.
        doing: &'static str,
        /// The entry, as `bridge fdb` and `ip neigh` would put it.
        entry: String,
        /// The network.
        vni: Vni,
        /// Why.
        source: Cause,
    },
    /// The device is not there.
    #[error("device {0} does not exist; what needs it must wait until it is created")]
    NoDevice(String),
    /// The network is not on this host.
    #[error("VNI {0} has no bridge and VXLAN device on this host; reconcile the network first")]
    NoNetwork(Vni),
    /// A device has one of our names and is something else.
    #[error("{device} exists but is not {expected}; someone else made it: remove or rename it")]
    Foreign {
        /// Name of the device.
        device: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The kernel accepted a binding and reads back differently.
    #[error("{mac} in VNI {vni} reads back as {found}, asked for {asked}; something else writes these entries")]
    NotAsAsked {
        /// The network.
        vni: Vni,
        /// The address.
        mac: MacAddr,
        /// What was asked for.
        asked: String,
        /// What the kernel has.
        found: String,
    },
    /// The kernel accepted a device's setting and reads back differently.
    #[error("{device}: {setting} did not take")]
    Setting {
        /// Name of the device.
        device: String,
        /// The setting, with the value asked for.
        setting: String,
    },
    /// Several steps failed; the others were done.
    #[error("{} steps failed: {}", .0.len(), joined(.0))]
    Several(Vec<Error>),
}

fn joined(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// Wraps the cause of a failed step on a device; for `map_err`.
    pub(crate) fn device(doing: &'static str, device: &str) -> impl FnOnce(Cause) -> Self {
        move |source| Self::Device { doing, device: device.to_owned(), source }
    }

    /// Nothing if nothing failed, the error itself if it is one, else all of them.
    pub(crate) fn collected(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.pop() {
            None => Ok(()),
            Some(only) if errors.is_empty() => Err(only),
            Some(last) => {
                errors.push(last);
                Err(Self::Several(errors))
            }
        }
    }

    /// A device this process knew by its index has gone or was replaced.
    pub(crate) fn is_stale(&self) -> bool {
        match self {
            Self::Device { source, .. } | Self::Entry { source, .. } => {
                matches!(source, Cause::Refused { errno: Errno::ENODEV | Errno::EINVAL, .. })
            }
            Self::Several(errors) => errors.iter().any(Self::is_stale),
            _ => false,
        }
    }
}
