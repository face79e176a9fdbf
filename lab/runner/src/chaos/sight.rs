//! What is seen of a world from outside: no daemon's word is taken but the record's, for the guest's state.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::world::World;
use crate::demo::cast;
use crate::demo::resources::{self, Usage};
use crate::play::{self, sibling};
use crate::signals;

/// How long a guest may take to answer an endpoint.
const ANSWER: u64 = 8;
/// How long what is left of a move may take to go once the move is over.
const GONE: Duration = Duration::from_secs(8);

impl<'a> World<'a> {
    /// The guest as the record has it: its host, its state and what is said of it.
    pub(super) fn guest(&self) -> Result<(String, String, String)> {
        let guest: Value = self.stage.operator.ask(&["guest", "get", cast::GUEST])?;
        let word = |key: &str| guest[key].as_str().unwrap_or_default().to_owned();
        Ok((word("host"), word("state"), word("detail")))
    }

    /// Ids of the guest's QEMUs on each hypervisor.
    pub(super) fn qemus(&self) -> Result<Vec<(&'a str, i32)>> {
        let mut found = Vec::new();
        for &host in &self.stage.hypervisors {
            for pid in self.stage.lab.processes(host)? {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if name.starts_with("qemu-system") {
                    found.push((host, pid));
                }
            }
        }
        Ok(found)
    }

    /// Which endpoints the guest does not answer.
    pub(super) fn deaf(&self) -> Result<Vec<String>> {
        let mut asked = Vec::new();
        for host in self.endpoints() {
            let mut command = self.stage.lab.namespace(host).command(sibling("throughline-probe")?)?;
            command.args(["ping", "--guest", cast::GUEST_ADDRESS, "--patience", &ANSWER.to_string()]);
            asked.push((host, command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
        }
        let mut deaf = Vec::new();
        for (host, mut child) in asked {
            if !child.wait()?.success() {
                deaf.push(host.to_owned());
            }
        }
        Ok(deaf)
    }

    /// What there is more of than usual with the guest where it is, in words. It is given some time to go.
    pub(super) fn residue(&self) -> Result<Vec<String>> {
        let usual = self.usual.get(&self.home).context("nobody knows what is usual")?;
        let deadline = Instant::now() + GONE;
        loop {
            let mut left = Vec::new();
            for (node, now) in self.usage()? {
                let before = usual.get(&node).copied().unwrap_or_default();
                left.extend(resources::surplus(&before, &now).into_iter().map(|what| format!("{node}: {what}")));
            }
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            signals::sleep(Duration::from_millis(300))?;
        }
    }

    /// What there is on each node.
    pub(super) fn usage(&self) -> Result<BTreeMap<String, Usage>> {
        let nodes = self.topology.nodes.iter().filter(|node| play::has_agent(node));
        nodes.map(|node| Ok((node.name.clone(), Usage::of(self.stage.lab, &node.name)?))).collect()
    }
}
