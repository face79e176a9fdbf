//! The ways in which networks are moved today: the same hosts, links and guest, without any daemon of ours.

use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};

use anyhow::{Context, Result, ensure};

use super::evpn;
use super::qemu::{Qemu, TAP};
use super::way::{Ground, Moved, Way};
use crate::demo::cast;
use crate::lab::Lab;
use crate::play;
use crate::signals;
use crate::topology::{Node, Role, Topology};

/// The tenant network's devices, on every host.
const BRIDGE: &str = "br0";
pub(super) const VXLAN: &str = "vx0";

/// Stands for all MACs in an FDB: where to flood.
const EVERYBODY: &str = "00:00:00:00:00:00";

/// A host of the fabric.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) name: &'a str,
    pub(super) vtep: &'a str,
    /// Its number among the peers, if it is one.
    peer: Option<usize>,
}

impl<'a> Host<'a> {
    /// A host that is no peer.
    #[cfg(test)]
    pub(super) fn named(name: &'a str, vtep: &'a str) -> Self {
        Self { name, vtep, peer: None }
    }
}

/// Hosts with a guest on one of them.
#[derive(Debug)]
pub(super) struct Today<'a> {
    lab: &'a Lab,
    way: Way,
    hosts: Vec<Host<'a>>,
    guest: Option<Qemu>,
    controller: Vec<Scribe>,
    /// They end with the lab.
    _daemons: Vec<Child>,
}

impl<'a> Today<'a> {
    /// Brings up the hosts and the fabric, and boots the guest on the first hypervisor. To be taken down by the caller.
    pub(super) fn up(lab: &'a Lab, topology: &'a Topology, way: Way) -> Result<Self> {
        play::hosts_up(lab, topology)?;
        let host = |node: &'a Node, peer| Ok(Host { name: &node.name, vtep: topology.vtep(node)?, peer });
        let hypervisors = topology.with_role(Role::Hypervisor).map(|node| host(node, None));
        let peers = topology.with_role(Role::Peer).enumerate().map(|(index, node)| host(node, Some(index)));
        let hosts: Vec<Host> = hypervisors.chain(peers).collect::<Result<_>>()?;
        let first = hosts[0].name;
        let mut today = Self { lab, way, hosts, guest: None, controller: Vec::new(), _daemons: Vec::new() };
        for host in &today.hosts {
            today.set_up(host).with_context(|| format!("cannot set up the network on {}", host.name))?;
        }
        today.add_tap(first)?;
        match way {
            Way::Learning | Way::Throughline => {}
            Way::Rewriting => today.write_everything()?,
            Way::Evpn => today._daemons = evpn::start(lab, &today.hosts)?,
        }
        today.guest = Some(Qemu::start(lab, first, None)?);
        Ok(today)
    }

    /// Shows the end of what the guest and its QEMU said on every host.
    pub(super) fn show_logs(&self) {
        if signals::interrupted() {
            return;
        }
        for host in &self.hosts {
            let directory = self.lab.node_state(host.name).join("guest");
            for log in ["qemu.log", "serial.log"] {
                play::show_log(&directory.join(log));
            }
        }
    }

    fn set_up(&self, host: &Host) -> Result<()> {
        let ip = |line: &str| self.lab.namespace(host.name).ip(&line.split_whitespace().collect::<Vec<_>>());
        ip(&format!("link add {BRIDGE} mtu 1450 type bridge stp_state 0 forward_delay 0"))?;
        let learning = if self.way == Way::Learning { "learning" } else { "nolearning" };
        let vxlan = format!("id {} dstport 4789 local {} {learning}", cast::VNI, host.vtep);
        ip(&format!("link add {VXLAN} mtu 1450 type vxlan {vxlan}"))?;
        self.plug(host, VXLAN)?;
        if self.way == Way::Evpn {
            ip(&format!("link set {VXLAN} type bridge_slave neigh_suppress on learning off"))?;
        } else {
            for other in self.others(host) {
                self.bridge(host, &format!("fdb append {EVERYBODY} dev {VXLAN} dst {} self permanent", other.vtep))?;
            }
        }
        ip(&format!("link set {BRIDGE} up"))?;
        if let Some(peer) = host.peer {
            let (name, mac, address) = (cast::endpoint(peer), cast::endpoint_mac(peer), cast::endpoint_address(peer));
            ip(&format!("link add {name} address {mac} mtu 1450 type veth peer name {name}-b mtu 1450"))?;
            self.plug(host, &format!("{name}-b"))?;
            ip(&format!("address add {address}/24 dev {name}"))?;
            ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// Makes a device a port of the bridge, as it is by default or, where a controller writes all entries, without learning.
    fn plug(&self, host: &Host, device: &str) -> Result<()> {
        let namespace = self.lab.namespace(host.name);
        namespace.ip(&["link", "set", device, "master", BRIDGE, "up"])?;
        if self.way == Way::Rewriting {
            namespace.ip(&["link", "set", device, "type", "bridge_slave", "learning", "off"])?;
        }
        Ok(())
    }

    fn bridge(&self, host: &Host, line: &str) -> Result<()> {
        let mut command = self.lab.namespace(host.name).command("bridge")?;
        crate::namespace::run(command.args(line.split_whitespace()))
    }

    fn others(&self, host: &Host) -> impl Iterator<Item = &Host<'a>> {
        self.hosts.iter().filter(move |other| other.vtep != host.vtep)
    }

    fn host(&self, name: &str) -> Result<&Host<'a>> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| format!("there is no host {name}"))
    }

    fn add_tap(&self, host: &str) -> Result<()> {
        self.lab.namespace(host).ip(&["tuntap", "add", TAP, "mode", "tap", "vnet_hdr"])?;
        self.plug(self.host(host)?, TAP)
    }

    /// Someone on every host who will write at once. New ones for each move: they remember devices, and taps come and go.
    fn start_scribes(&mut self) -> Result<()> {
        self.controller = self.hosts.iter().map(|host| Scribe::start(self.lab, host.name)).collect::<Result<_>>()?;
        Ok(())
    }

    /// Every entry on every host.
    fn write_everything(&mut self) -> Result<()> {
        self.start_scribes()?;
        for (host, scribe) in self.hosts.iter().zip(&mut self.controller) {
            for owner in self.hosts.iter().filter(|owner| owner.peer.is_some()) {
                let peer = owner.peer.unwrap_or_default();
                scribe.lead(&cast::endpoint_mac(peer), host, owner, &format!("{}-b", cast::endpoint(peer)))?;
            }
            scribe.lead(cast::GUEST_MAC, host, &self.hosts[0], TAP)?;
        }
        Ok(())
    }

    /// What the controller does when it learns that the guest runs elsewhere.
    fn rewrite(&mut self, to: &str) -> Result<()> {
        let (hosts, controller) = (&self.hosts, &mut self.controller);
        let owner = hosts.iter().find(|host| host.name == to).with_context(|| format!("there is no host {to}"))?;
        for (host, scribe) in hosts.iter().zip(controller) {
            scribe.lead(cast::GUEST_MAC, host, owner, TAP)?;
        }
        Ok(())
    }
}

impl Ground for Today<'_> {
    fn move_guest(&mut self, from: &str, to: &str) -> Result<Moved> {
        let address = self.host(to)?.vtep.to_owned();
        self.add_tap(to)?;
        let mut destination = Qemu::start(self.lab, to, Some(&address))?;
        if self.way == Way::Rewriting {
            self.start_scribes()?;
        }
        let mut source = self.guest.take().context("the guest is gone")?;
        source.migrate(&address)?;
        let running_at_ns = destination.event("RESUME")?;
        if self.way == Way::Rewriting {
            self.rewrite(to)?;
        }
        let stopped_at_ns = source.event("STOP")?;
        source.migrated()?;
        source.quit()?;
        self.lab.namespace(from).ip(&["link", "del", TAP])?;
        self.guest = Some(destination);
        ensure!(running_at_ns > stopped_at_ns, "the guest ran at {to} before it stood at {from}");
        signals::check()?;
        Ok(Moved { stopped_at_ns, running_at_ns, ..Moved::default() })
    }
}

/// Writes FDB entries on one host, a line each, without starting anything first.
#[derive(Debug)]
struct Scribe {
    child: Child,
    lines: ChildStdin,
}

impl Scribe {
    fn start(lab: &Lab, host: &str) -> Result<Self> {
        let mut command = lab.namespace(host).command("bridge")?;
        let mut child = command.args(["-force", "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let lines = child.stdin.take().context("it was asked for")?;
        Ok(Self { child, lines })
    }

    /// Leads a MAC to `owner`, or to the port `local` where that is this host itself.
    fn lead(&mut self, mac: &str, here: &Host, owner: &Host, local: &str) -> Result<()> {
        let lines = if here.vtep == owner.vtep {
            format!("fdb replace {mac} dev {local} master static\n")
        } else {
            format!(
                "fdb replace {mac} dev {VXLAN} dst {} self permanent\nfdb replace {mac} dev {VXLAN} master static\n",
                owner.vtep
            )
        };
        Ok(self.lines.write_all(lines.as_bytes())?)
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        // Both only fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
