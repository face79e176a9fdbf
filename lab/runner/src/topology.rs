//! Topologies: containerlab files, or rather the part of their format that network namespaces can play.
//!
//! What cannot be played is refused, not passed over: a lab that silently differs from its file shows nothing.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Label that says what a node is in the fabric.
const ROLE: &str = "throughline.role";
/// Longest file, bytes.
const LONGEST: usize = 64 << 10;
/// Brackets in brackets: what reads YAML takes time by their square.
const DEEPEST: usize = 32;
/// Most nodes, and most links: each is a namespace or a pair of devices of this machine.
const MOST: usize = 256;
/// What a veth may have (RFC 791's least datagram; the kernel's most).
const MTUS: std::ops::RangeInclusive<u32> = 68..=65_535;

/// A topology that can be played.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Topology {
    /// Name of the lab.
    pub(crate) name: String,
    /// Nodes with a namespace of their own, by name.
    pub(crate) nodes: Vec<Node>,
    /// Bridges inside nodes.
    pub(crate) bridges: Vec<Bridge>,
    /// Links between interfaces.
    pub(crate) links: Vec<Link>,
}

/// A node with a namespace of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: String,
    /// What it is in the fabric.
    pub(crate) role: Role,
    /// Its daemon and arguments; empty if it has none.
    pub(crate) daemon: Vec<String>,
    /// Commands that set it up, as words: there is no shell.
    pub(crate) exec: Vec<Vec<String>>,
}

/// What a node is in the fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Connects the others.
    Underlay,
    /// Runs the controller.
    Controller,
    /// Runs an agent with guests.
    Hypervisor,
    /// Runs an agent without guests.
    Peer,
}

/// A bridge inside a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bridge {
    /// Name of the device.
    pub(crate) name: String,
    /// Node it is in.
    pub(crate) node: String,
}

/// A veth pair.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its two ends.
    pub(crate) ends: [Interface; 2],
    /// Largest packet, bytes.
    pub(crate) mtu: u32,
}

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Interface {
    /// Node it is in.
    pub(crate) node: String,
    /// Bridge there that it is a port of.
    pub(crate) bridge: Option<String>,
    /// Its name.
    pub(crate) name: String,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bridge {
            Some(bridge) => write!(f, "{bridge}|{}:{}", self.node, self.name),
            None => write!(f, "{}:{}", self.node, self.name),
        }
    }
}

impl Topology {
    /// Reads a topology file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the topology {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("cannot play the topology {}", path.display()))
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        ensure!(text.len() <= LONGEST, "it has {} bytes; at most {LONGEST} are read", text.len());
        ensure!(depth(text) <= DEEPEST, "it has more than {DEEPEST} brackets in brackets");
        let file: File = serde_norway::from_str(text)?;
        for (what, count) in [("nodes", file.topology.nodes.len()), ("links", file.topology.links.len())] {
            ensure!(count <= MOST, "topology.{what}: {count} of them; at most {MOST} are played");
        }
        check_name("the lab's name", &file.name, 32)?;
        let mut topology = Self { name: file.name, nodes: Vec::new(), bridges: Vec::new(), links: Vec::new() };
        for (name, definition) in file.topology.nodes {
            topology.add(&name, definition).with_context(|| format!("node {name:?}"))?;
        }
        for link in file.topology.links {
            let link = topology.link(&link).with_context(|| format!("link {:?}", link.endpoints))?;
            topology.links.push(link);
        }
        topology.check_uniqueness()?;
        topology.controller_url()?;
        Ok(topology)
    }

    /// Where the controller listens, as its own command line says.
    pub(crate) fn controller_url(&self) -> Result<String> {
        let controller = self.controller()?;
        let words = &controller.daemon;
        let address = words.iter().position(|word| word == "--listen").and_then(|index| words.get(index + 1));
        let address =
            address.with_context(|| format!("the cmd of {:?} has no --listen ADDRESS:PORT", controller.name))?;
        Ok(format!("https://{address}"))
    }

    /// The node that runs the controller.
    pub(crate) fn controller(&self) -> Result<&Node> {
        let mut controllers = self.with_role(Role::Controller);
        match (controllers.next(), controllers.next()) {
            (Some(controller), None) => Ok(controller),
            _ => bail!("exactly one node must have the label {ROLE}: controller"),
        }
    }

    /// The address a node's agent has its tunnels at, as its own command line says.
    pub(crate) fn vtep<'a>(&self, node: &'a Node) -> Result<&'a str> {
        let words = &node.daemon;
        let vtep = words.iter().position(|word| word == "--vtep").and_then(|index| words.get(index + 1));
        vtep.map(String::as_str).with_context(|| format!("the cmd of {:?} has no --vtep ADDRESS", node.name))
    }

    /// Nodes of one role, in the order of their names.
    pub(crate) fn with_role(&self, role: Role) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.role == role)
    }

    fn add(&mut self, name: &str, definition: Definition) -> Result<()> {
        match definition.kind.as_str() {
            "linux" => {
                check_name("the node's name", name, 32)?;
                ensure!(definition.network_mode.is_none(), "network-mode is for bridges");
                let exec = definition.exec.iter().map(|line| words(line)).collect();
                let daemon = definition.cmd.as_deref().map(words).unwrap_or_default();
                self.nodes.push(Node { name: name.to_owned(), role: role(&definition.labels)?, daemon, exec });
            }
            "bridge" => {
                let (bridge, node) = name.split_once('|').context(
                    "a bridge of the host itself would be outside the lab: name it BRIDGE|NODE with network-mode: container:NODE",
                )?;
                check_interface(bridge)?;
                let mode = definition.network_mode.unwrap_or_default();
                ensure!(mode == format!("container:{node}"), "network-mode must be container:{node}, not {mode:?}");
                self.bridges.push(Bridge { name: bridge.to_owned(), node: node.to_owned() });
            }
            other => bail!("kind {other:?} needs a container engine; here: linux, bridge"),
        }
        Ok(())
    }

    fn link(&self, link: &LinkDefinition) -> Result<Link> {
        ensure!(MTUS.contains(&link.mtu), "mtu {} is not {} to {}", link.mtu, MTUS.start(), MTUS.end());
        let [first, second] = link.endpoints.as_slice() else { bail!("a link has two endpoints") };
        Ok(Link { ends: [self.interface(first)?, self.interface(second)?], mtu: link.mtu })
    }

    fn interface(&self, endpoint: &str) -> Result<Interface> {
        let (place, name) = endpoint.split_once(':').with_context(|| format!("{endpoint:?} is not NODE:INTERFACE"))?;
        check_interface(name)?;
        let (bridge, node) = match place.split_once('|') {
            Some((bridge, node)) => (Some(bridge.to_owned()), node),
            None => (None, place),
        };
        ensure!(self.nodes.iter().any(|known| known.name == node), "there is no node {node:?}");
        if let Some(bridge) = &bridge {
            let known = self.bridges.iter().any(|known| known.name == *bridge && known.node == node);
            ensure!(known, "there is no bridge {bridge:?} in {node:?}");
        }
        Ok(Interface { node: node.to_owned(), bridge, name: name.to_owned() })
    }

    fn check_uniqueness(&self) -> Result<()> {
        let mut taken = HashSet::new();
        for bridge in &self.bridges {
            ensure!(self.nodes.iter().any(|node| node.name == bridge.node), "bridge {:?} is in no node", bridge.name);
            taken.insert((&bridge.node, &bridge.name));
        }
        for end in self.links.iter().flat_map(|link| &link.ends) {
            ensure!(taken.insert((&end.node, &end.name)), "the interface {end} is there twice");
        }
        Ok(())
    }
}

/// How deep brackets are in brackets, those in text counted too.
fn depth(text: &str) -> usize {
    let step = |depth: &mut usize, c| {
        *depth = match c {
            '[' | '{' => *depth + 1,
            ']' | '}' => depth.saturating_sub(1),
            _ => *depth,
        };
        Some(*depth)
    };
    text.chars().scan(0, step).max().unwrap_or(0)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn role(labels: &BTreeMap<String, String>) -> Result<Role> {
    match labels.get(ROLE).map(String::as_str) {
        Some("underlay") => Ok(Role::Underlay),
        Some("controller") => Ok(Role::Controller),
        Some("hypervisor") => Ok(Role::Hypervisor),
        Some("peer") => Ok(Role::Peer),
        other => bail!("label {ROLE} is {other:?}; it must be underlay, controller, hypervisor or peer"),
    }
}

/// Names become names of namespaces and directories.
pub(crate) fn check_name(what: &str, name: &str, longest: usize) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = !name.is_empty() && name.len() <= longest && name.chars().all(good) && !name.starts_with('-');
    ensure!(fits, "{what} {name:?} must be 1 to {longest} characters of a-z, 0-9 and '-', not beginning with '-'");
    Ok(())
}

/// The kernel's own rules (dev_valid_name), less the characters `ip` has other uses for.
fn check_interface(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '@' | '|');
    let fits = !name.is_empty() && name.len() <= 15 && name != "." && name != ".." && name.chars().all(good);
    ensure!(fits, "{name:?} is no name for an interface: 1 to 15 characters, without '/', ':', '@', '|'");
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    topology: Body,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Images, for the container engine.
    #[serde(default, rename = "kinds")]
    _kinds: serde_norway::Value,
    nodes: BTreeMap<String, Definition>,
    #[serde(default)]
    links: Vec<LinkDefinition>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Definition {
    kind: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    network_mode: Option<String>,
    cmd: Option<String>,
    #[serde(default)]
    exec: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkDefinition {
    endpoints: Vec<String>,
    #[serde(default = "default_mtu")]
    mtu: u32,
}

/// containerlab's own default.
fn default_mtu() -> u32 {
    9500
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = include_str!("../../three-hosts.clab.yml");

    fn refused(change: (&str, &str)) -> String {
        assert!(FILE.contains(change.0), "the file has changed: {:?}", change.0);
        format!("{:#}", Topology::parse(&FILE.replacen(change.0, change.1, 1)).unwrap_err())
    }

    #[test]
    fn three_hosts_can_be_played() {
        let topology = Topology::parse(FILE).unwrap();
        assert_eq!(topology.name, "three-hosts");
        assert_eq!(topology.controller_url().unwrap(), "https://192.0.2.1:7700");
        let hypervisors: Vec<_> = topology.with_role(Role::Hypervisor).map(|node| node.name.as_str()).collect();
        assert_eq!(hypervisors, ["h1", "h2"]);
        assert_eq!(topology.links[1].ends[0].to_string(), "h1:eth1");
        assert_eq!(topology.links[1].ends[1].to_string(), "br0|fabric:h1");
        assert_eq!(topology.links[1].mtu, 1500);
        let peer = topology.with_role(Role::Peer).next().unwrap();
        assert_eq!(peer.exec[0], ["ip", "address", "add", "192.0.2.21/24", "dev", "eth1"]);
    }

    #[test]
    fn five_hosts_can_be_played() {
        let topology = Topology::parse(include_str!("../../five-hosts.clab.yml")).unwrap();
        let peers: Vec<_> = topology.with_role(Role::Peer).map(|node| topology.vtep(node).unwrap()).collect();
        assert_eq!(peers, ["192.0.2.21", "192.0.2.22", "192.0.2.23"]);
        assert_eq!(topology.with_role(Role::Hypervisor).count(), 2);
    }

    #[test]
    fn malformed_endpoints_are_refused_with_their_reason() {
        for (endpoint, reason) in [
            ("h1", "not NODE:INTERFACE"),
            ("h9:eth1", "no node \"h9\""),
            ("br9|fabric:h1", "no bridge \"br9\""),
            ("h1:", "no name for an interface"),
            ("h1:eth/1", "no name for an interface"),
            ("h1:an-interface-name-too-long", "no name for an interface"),
            ("h2:eth1", "twice"),
        ] {
            let why = refused(("h1:eth1", endpoint));
            assert!(why.contains(reason), "{endpoint}: {why}");
        }
        let why = refused((r#"["h1:eth1", "br0|fabric:h1"]"#, r#"["h1:eth1"]"#));
        assert!(why.contains("two endpoints"), "{why}");
    }

    #[test]
    fn what_is_too_much_is_refused_with_its_name() {
        let long = format!("# {}\n{FILE}", "x".repeat(LONGEST));
        let why = format!("{:#}", Topology::parse(&long).unwrap_err());
        assert!(why.contains("bytes; at most"), "{why}");
        let node = |n: usize| format!("    n{n}: {{kind: linux, labels: {{throughline.role: peer}}}}\n");
        let many = (0..=MOST).map(node).collect::<String>();
        let why = refused(("  nodes:\n", &format!("  nodes:\n{many}")));
        assert!(why.contains("topology.nodes"), "{why}");
        let link = "    - endpoints: [\"h1:eth9\", \"h2:eth9\"]\n";
        let why = refused(("  links:\n", &format!("  links:\n{}", link.repeat(MOST + 1))));
        assert!(why.contains("topology.links"), "{why}");
        let why = refused(("  links:\n", "  links:\n    - {endpoints: [\"h1:eth9\", \"h2:eth9\"], mtu: 4000000000}\n"));
        assert!(why.contains("mtu 4000000000"), "{why}");
        let why = format!("{:#}", Topology::parse(&"[".repeat(LONGEST)).unwrap_err());
        assert!(why.contains("brackets in brackets"), "{why}");
        Topology::parse(&"- ".repeat(LONGEST / 2)).expect_err("nested without end");
    }

    #[test]
    fn what_cannot_be_played_is_refused() {
        for (change, reason) in [
            (("name: three-hosts", "name: ../etc"), "the lab's name"),
            (("kind: linux\n", "kind: nokia_srlinux\n"), "needs a container engine"),
            (("container:fabric", "container:h1"), "network-mode must be"),
            (("throughline.role: hypervisor", "throughline.role: king"), "it must be underlay"),
            (("throughline.role: controller", "throughline.role: peer"), "exactly one node"),
            (("--listen 192.0.2.1:7700", ""), "no --listen"),
            (("      exec:", "      binds: [a:b]\n      exec:"), "unknown field `binds`"),
        ] {
            let why = refused(change);
            assert!(why.contains(reason), "{change:?}: {why}");
        }
    }
}
