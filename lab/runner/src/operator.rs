//! The operator's command, used as an operator would: as a program, on the controller's node.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
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
    credentials: PathBuf,
}

impl Operator {
    /// The operator of a lab.
    pub(crate) fn new(lab: &Lab, topology: &Topology) -> Result<Self> {
        let node = &topology.controller()?.name;
        let (namespace, credentials) = (lab.namespace(node), lab.operator_credentials(node));
        Ok(Self { namespace, controller: topology.controller_url()?, credentials })
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
        command.args(["--controller", &self.controller]).arg("--tls").arg(&self.credentials);
        command.args(arguments).stdin(Stdio::null());
        Ok(command)
    }
}

/// Waits for a child, unless a signal comes. It is read while it runs: a long answer is more than a pipe takes.
fn finish(mut child: Child, arguments: &[&str]) -> Result<Output> {
    let (stdout, stderr) = (listen(child.stdout.take()), listen(child.stderr.take()));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let interrupted = signals::sleep(Duration::from_millis(10));
        if interrupted.is_err() || Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            interrupted?;
            bail!("`throughline {}` did not end within {PATIENCE:?}", arguments.join(" "));
        }
    };
    Ok(Output { status, stdout: heard(stdout)?, stderr: heard(stderr)? })
}

type Listener = thread::JoinHandle<io::Result<Vec<u8>>>;

fn listen(pipe: Option<impl Read + Send + 'static>) -> Option<Listener> {
    pipe.map(|mut pipe| {
        thread::spawn(move || {
            let mut said = Vec::new();
            pipe.read_to_end(&mut said).map(|_| said)
        })
    })
}

fn heard(listener: Option<Listener>) -> Result<Vec<u8>> {
    let Some(listener) = listener else { return Ok(Vec::new()) };
    let said = listener.join().map_err(|_| anyhow!("the thread that reads a command's output panicked"))?;
    said.context("cannot read what a command prints")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_longer_than_a_pipe_is_read_whole() {
        let mut command = Command::new("head");
        command.args(["-c", "1000000", "/dev/zero"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(command.spawn().unwrap(), &["head"]).unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout.len(), 1_000_000);
    }
}
