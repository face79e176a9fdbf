//! Keeping the host out of the tenants' segment: on devices of a network the kernel neither speaks of itself nor answers.
//!
//! By default it would: neighbour solicitations (DAD), router solicitations and MLD reports on every new device, from
//! which switches learn a MAC address too early; addresses taken from a tenant's router advertisement; ARP replies for
//! the host's own addresses. There are no netlink attributes for most of this. `/proc/sys/net` shows the namespace of
//! the thread that opens it.

use std::{fs, io, path::PathBuf};

use crate::{Error, Netlink, Result, error::Cause, link::Link};

/// What a device is, as far as the host's own protocols go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Frames only pass through.
    Passage,
    /// Holds the network's neighbours, so IPv6 cannot be off altogether.
    Bridge,
}

/// A value under `/proc/sys/net/<family>/conf/<device>`.
#[derive(Debug, Clone, Copy)]
struct Sysctl {
    family: &'static str,
    key: &'static str,
    value: &'static str,
}

const fn ipv4(key: &'static str, value: &'static str) -> Sysctl {
    Sysctl { family: "ipv4", key, value }
}

const fn ipv6(key: &'static str, value: &'static str) -> Sysctl {
    Sysctl { family: "ipv6", key, value }
}

/// No ARP replies for this host's addresses; nothing accepted from addresses that are not routed there.
const IPV4: [Sysctl; 2] = [ipv4("arp_ignore", "8"), ipv4("rp_filter", "1")];
const IPV6_PASSAGE: &[Sysctl] = &[ipv6("disable_ipv6", "1")];
/// A router joins a group, hence MLD reports; what is no router takes addresses and routes from advertisements. Under
/// MLD version 1 leaving the router's group unreported is silent; under 2 it would be reported once the device is up.
const IPV6_BRIDGE: &[Sysctl] = &[ipv6("force_mld_version", "1"), ipv6("forwarding", "0"), ipv6("accept_ra", "0")];

impl Sysctl {
    fn path(self, device: &str) -> PathBuf {
        ["/proc/sys/net", self.family, "conf", device, self.key].iter().collect()
    }

    fn is_set(self, device: &str) -> io::Result<bool> {
        Ok(fs::read_to_string(self.path(device))?.trim_end() == self.value)
    }

    fn set(self, device: &str) -> io::Result<()> {
        fs::write(self.path(device), self.value)
    }
}

/// What has to hold on a device; a kernel without IPv6 has nothing to say in it.
fn sysctls(link: &Link, role: Role) -> impl Iterator<Item = Sysctl> {
    let ipv6 = match role {
        _ if link.no_addresses.is_none() => &[],
        Role::Passage => IPV6_PASSAGE,
        Role::Bridge => IPV6_BRIDGE,
    };
    IPV4.iter().chain(ipv6).copied()
}

impl Netlink {
    /// Makes a device quiet if it is not; whether anything had to change. To be called before the device goes up.
    pub(crate) async fn quieten(&self, link: &Link, role: Role) -> Result<bool> {
        if self.is_quiet(link, role)? {
            return Ok(false);
        }
        let name = link.name.as_str();
        if link.no_addresses == Some(false) {
            let done = self.verbs.stop_address_generation(link.index).await;
            done.map_err(Error::device("turn off IPv6 address generation on", name))?;
        }
        for sysctl in sysctls(link, role) {
            let done = sysctl.set(name).map_err(Cause::from);
            done.map_err(Error::device("write its sysctls to quieten", name))?;
        }
        Ok(true)
    }

    /// Whether the kernel neither speaks of itself nor answers on a device, as `link` and `/proc/sys` have it.
    pub(crate) fn is_quiet(&self, link: &Link, role: Role) -> Result<bool> {
        let mut quiet = link.no_addresses != Some(false);
        for sysctl in sysctls(link, role) {
            let set = sysctl.is_set(&link.name).map_err(Cause::from);
            quiet &= set.map_err(Error::device("read the sysctls of", &link.name))?;
        }
        Ok(quiet)
    }
}
