//! A lab on this machine: where it keeps what it has to remember.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::topology::check_name;

/// Directory of all labs. On a tmpfs: namespaces and processes do not outlive a reboot either.
const ROOT: &str = "/run/throughline-lab";

/// One lab, up or not.
#[derive(Debug, Clone)]
pub(crate) struct Lab {
    name: String,
    state: PathBuf,
}

impl Lab {
    /// The lab of this name.
    pub(crate) fn named(name: &str) -> Result<Self> {
        check_name("the lab's name", name, 32)?;
        Ok(Self { name: name.to_owned(), state: Path::new(ROOT).join(name) })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its directory; one directory a node is in it.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// A node's directory: its daemon's state.
    pub(crate) fn node_state(&self, node: &str) -> PathBuf {
        self.state.join(node)
    }

    /// Where a node's BPF file system is mounted.
    pub(crate) fn bpffs(&self, node: &str) -> PathBuf {
        self.node_state(node).join("bpf")
    }

    /// Where a node has its block devices that may be guests' disks.
    pub(crate) fn devices(&self, node: &str) -> PathBuf {
        self.node_state(node).join("devices")
    }

    /// Storage that all nodes have in common.
    pub(crate) fn shared(&self) -> PathBuf {
        self.state.join("shared")
    }

    /// What a node's daemon prints.
    pub(crate) fn log(&self, node: &str) -> PathBuf {
        self.node_state(node).join("log")
    }

    /// What a node's daemon proves itself by.
    pub(crate) fn credentials(&self, node: &str) -> PathBuf {
        self.node_state(node).join("tls")
    }

    /// What the operator proves himself by, on the controller's node.
    pub(crate) fn operator_credentials(&self, controller: &str) -> PathBuf {
        self.node_state(controller).join("operator")
    }

    /// The lab's own CA, on the controller's node.
    pub(crate) fn authority(&self, controller: &str) -> PathBuf {
        self.node_state(controller).join("pki")
    }

    /// The record of processes the runner started in it.
    pub(crate) fn record(&self) -> PathBuf {
        self.state.join("processes")
    }

    /// A node's namespace.
    pub(crate) fn namespace(&self, node: &str) -> Namespace {
        Namespace::of(&self.name, node)
    }

    /// A node's daemons and what else is in its namespace, and its guests' QEMUs, which are in none of the lab's: they run in the
    /// directories the node's agent has for them.
    pub(crate) fn processes(&self, node: &str) -> Result<Vec<i32>> {
        let guests = self.node_state(node).join("state/guests");
        let mut found = self.namespace(node).processes()?;
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let runs_there = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&guests));
            if runs_there && !found.contains(&pid) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Below cgroup2's mount point, where a node's agent makes groups for its guests.
    pub(crate) fn cgroup(&self, node: &str) -> PathBuf {
        Path::new("throughline-lab").join(&self.name).join(node)
    }

    /// Nodes it was ever given; none if it is down.
    pub(crate) fn nodes(&self) -> Result<Vec<String>> {
        let mut nodes = Vec::new();
        let entries = match fs::read_dir(&self.state) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nodes),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.state.display())),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() && entry.path() != self.shared() {
                nodes.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        nodes.sort();
        Ok(nodes)
    }

    /// Keeps everyone else from bringing it up or down for as long as the lock lives. An abstract socket: it dies with its
    /// process, however that ends, and leaves no file.
    pub(crate) fn lock(&self) -> Result<UnixListener> {
        let address = SocketAddr::from_abstract_name(format!("throughline-lab/{}", self.name))?;
        UnixListener::bind_addr(&address)
            .with_context(|| format!("lab {} is in use by another throughline-lab: end that one first", self.name))
    }

    /// Makes its directory.
    pub(crate) fn make_state(&self) -> Result<()> {
        loop {
            match fs::create_dir_all(&self.state) {
                // Another lab took the common directory along just when this one's was to be made in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                made => return made.with_context(|| format!("cannot make {}", self.state.display())),
            }
        }
    }

    /// Forgets it, once nothing is left of it.
    pub(crate) fn remove_state(&self) -> Result<()> {
        match fs::remove_dir_all(&self.state) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", self.state.display())),
        }
        // The last lab takes the common directory along; while there are others it is not empty.
        let _ = fs::remove_dir(ROOT);
        Ok(())
    }
}
