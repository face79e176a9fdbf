//! The probes, as programs of their own in the hosts' namespaces.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use throughline_probe::control::Client;
use throughline_probe::observe::Sightings;
use throughline_probe::peer::Report;

use super::cast;
use super::probe::Probe;
use crate::lab::Lab;
use crate::play::sibling;

/// How long the guest may take to boot and answer.
pub(crate) const BOOT: Duration = Duration::from_secs(60);

/// How long a probe may take to answer a question: longer than it goes on asking the guest.
const ANSWER: Duration = Client::PATIENCE.saturating_add(Duration::from_secs(20));

/// All probes of a demo.
#[derive(Debug)]
pub(crate) struct Probes {
    peer: Probe,
    observers: HashMap<String, Probe>,
}

impl Probes {
    /// Starts an observer on every hypervisor, then the peer's probes, and waits until the guest answers.
    pub(crate) fn start(lab: &Lab, hypervisors: &[&str], peer: &str, pps: u32) -> Result<Self> {
        let mut observers = HashMap::new();
        for &host in hypervisors {
            let mut command = lab.namespace(host).command(sibling("throughline-probe")?)?;
            command.args(["observe", "--mac", cast::GUEST_MAC, "--guest", cast::GUEST_ADDRESS]);
            observers.insert(host.to_owned(), Probe::start(format!("the observer on {host}"), command, ANSWER)?);
        }
        let mut command = lab.namespace(peer).command(sibling("throughline-probe")?)?;
        command.args(["peer", "--guest", cast::GUEST_ADDRESS, "--pps", &pps.to_string()]);
        command.args(["--patience", &BOOT.as_secs().to_string()]);
        let peer = Probe::start(format!("the probe of {} on {peer}", cast::GUEST), command, BOOT + ANSWER)?;
        Ok(Self { peer, observers })
    }

    /// Ends one window and begins the next.
    pub(crate) fn mark(&mut self) -> Result<usize> {
        self.peer.ask("mark", ANSWER)
    }

    /// What happened between two marks.
    pub(crate) fn report(&mut self, from: usize, to: usize) -> Result<Report> {
        self.peer.ask(&format!("report {from} {to}"), ANSWER)
    }

    /// What was put on the guest's tap on a host since this was last asked.
    pub(crate) fn sightings(&mut self, host: &str) -> Result<Sightings> {
        let observer = self.observers.get_mut(host).with_context(|| format!("nobody observes {host}"))?;
        let seen: Sightings = observer.ask("take", ANSWER)?;
        ensure!(seen.missed == 0, "the observer on {host} missed {} frames: this machine is too busy", seen.missed);
        Ok(seen)
    }
}
