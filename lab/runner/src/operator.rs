//! The operator's command, used as an operator would: as a program, on the controller's node.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::play::sibling;
use crate::signals;
use crate::topology::Topology;

/// Longest a command of the operator may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Someone with a shell on the controller's node.
#[derive(Debug, Clone)]
pub(crate) struct Operator {
    namespace: Namespace,
    controller: String,
}

impl Operator {
    /// The operator of a lab.
    pub(crate) fn new(lab: &Lab, topology: &Topology) -> Result<Self> {
        let namespace = lab.namespace(&topology.controller()?.name);
        Ok(Self { namespace, controller: topology.controller_url()? })
    }

    /// Runs a command to its end; it must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        self.output(arguments).map(drop)
    }

    /// Runs a command that shows what it does on this terminal; it must succeed.
    pub(crate) fn run_here(&self, arguments: &[&str]) -> Result<()> {
        let child = self.command(arguments)?.spawn()?;
        let output = finish(child, arguments)?;
        ensure!(output.status.success(), "`throughline {}` ended with {}", arguments.join(" "), output.status);
        Ok(())
    }

    /// Runs a command and reads its JSON.
    pub(crate) fn ask<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--output", "json"]);
        let output = self.output(&arguments)?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let text = String::from_utf8_lossy(&output.stdout);
            format!("`throughline {}` printed something else than was expected: {text}", arguments.join(" "))
        })
    }

    /// How many hosts' agents are connected.
    pub(crate) fn connected_hosts(&self) -> Result<usize> {
        let list: Value = self.ask(&["host", "list"])?;
        let hosts = list["hosts"].as_array().context("`throughline host list` has no hosts in it")?;
        Ok(hosts.iter().filter(|host| host["connected"] == true).count())
    }

    fn output(&self, arguments: &[&str]) -> Result<Output> {
        let child = self.command(arguments)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = finish(child, arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`throughline {}`: {}: {}", arguments.join(" "), output.status, said.trim());
        Ok(output)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.namespace.command(sibling("throughline")?)?;
        command.args(["--controller", &self.controller]).args(arguments).stdin(Stdio::null());
        Ok(command)
    }
}

/// Waits for a child, unless a signal comes. What it prints fits into a pipe: answers are short.
fn finish(mut child: Child, arguments: &[&str]) -> Result<Output> {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        let interrupted = signals::sleep(Duration::from_millis(10));
        if interrupted.is_err() || Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            interrupted?;
            bail!("`throughline {}` did not end within {PATIENCE:?}", arguments.join(" "));
        }
    }
    Ok(child.wait_with_output()?)
}
