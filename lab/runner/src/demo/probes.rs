//! The probes, as programs of their own in the hosts' namespaces.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use throughline_probe::observe::Sightings;
use throughline_probe::peer::Report;

use super::cast;
use crate::lab::Lab;
use crate::play::sibling;
use crate::signals;

/// How long the guest may take to boot and answer.
const BOOT: Duration = Duration::from_secs(60);

/// How long a probe may take to answer a question.
const ANSWER: Duration = Duration::from_secs(20);

/// All probes of a demo.
#[derive(Debug)]
pub(super) struct Probes {
    peer: Probe,
    observers: HashMap<String, Probe>,
}

impl Probes {
    /// Starts an observer on every hypervisor, then the peer's probes, and waits until the guest answers.
    pub(super) fn start(lab: &Lab, hypervisors: &[&str], peer: &str, pps: u32) -> Result<Self> {
        let mut observers = HashMap::new();
        for &host in hypervisors {
            let mut command = lab.namespace(host).command(sibling("throughline-probe")?)?;
            command.args(["observe", "--mac", cast::GUEST_MAC, "--guest", cast::GUEST_ADDRESS]);
            observers.insert(host.to_owned(), Probe::start(command, ANSWER)?);
        }
        let mut command = lab.namespace(peer).command(sibling("throughline-probe")?)?;
        command.args(["peer", "--guest", cast::GUEST_ADDRESS, "--pps", &pps.to_string()]);
        command.args(["--patience", &BOOT.as_secs().to_string()]);
        Ok(Self { peer: Probe::start(command, BOOT + ANSWER)?, observers })
    }

    /// Ends one window and begins the next.
    pub(super) fn mark(&mut self) -> Result<usize> {
        self.peer.ask("mark", ANSWER)
    }

    /// What happened between two marks.
    pub(super) fn report(&mut self, from: usize, to: usize) -> Result<Report> {
        self.peer.ask(&format!("report {from} {to}"), ANSWER)
    }

    /// What was put on the guest's tap on a host since this was last asked.
    pub(super) fn sightings(&mut self, host: &str) -> Result<Sightings> {
        let observer = self.observers.get_mut(host).with_context(|| format!("nobody observes {host}"))?;
        let seen: Sightings = observer.ask("take", ANSWER)?;
        ensure!(seen.missed == 0, "the observer on {host} missed {} frames: this machine is too busy", seen.missed);
        Ok(seen)
    }
}

/// One probe: a question is a line to its standard input, an answer a line of JSON.
#[derive(Debug)]
struct Probe {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    fn start(mut command: Command, patience: Duration) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start a probe")?;
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both were asked for")
        };
        let mut probe = Self { child, questions, answers: BufReader::new(answers) };
        let ready: String = probe.answer(patience)?;
        ensure!(ready == "ready", "a probe began with {ready:?}");
        Ok(probe)
    }

    fn ask<T: DeserializeOwned>(&mut self, question: &str, patience: Duration) -> Result<T> {
        writeln!(self.questions, "{question}").context("a probe has ended")?;
        self.answer(patience)
    }

    fn answer<T: DeserializeOwned>(&mut self, patience: Duration) -> Result<T> {
        let deadline = Instant::now() + patience;
        while !self.has_answer()? {
            signals::check()?;
            ensure!(Instant::now() < deadline, "a probe did not answer within {patience:?}");
        }
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "a probe has ended; its last words are above");
        serde_json::from_str(&line).with_context(|| format!("a probe answered {line:?}"))
    }

    /// Waits a little for an answer (or the probe's end) so that signals are noticed meanwhile.
    fn has_answer(&self) -> Result<bool> {
        let mut answers = [PollFd::new(self.answers.get_ref().as_fd(), PollFlags::POLLIN)];
        match poll(&mut answers, PollTimeout::from(100u16)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Both only fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
