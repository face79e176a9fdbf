//! Where a demo plays: a lab that is up, with a network and an endpoint in it, and a guest once there is one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::cast;
use super::image::Image;
use crate::lab::Lab;
use crate::operator::Operator;
use crate::play;
use crate::signals;
use crate::teardown::Guard;
use crate::topology::{Role, Topology};

/// A lab that is up.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) operator: Operator,
    pub(crate) hypervisors: Vec<&'a str>,
    /// The hosts that stay, each with an endpoint that talks to the guest.
    pub(crate) peers: Vec<&'a str>,
    image: Image,
}

impl<'a> Stage<'a> {
    /// Brings the lab up, plays, and takes it down whatever happens, unless it is to be kept. What the lab's daemons and
    /// the guest said last is shown if anything failed: it goes with the lab.
    pub(crate) fn play<T>(
        lab: &'a Lab,
        topology: &'a Topology,
        keep: bool,
        play: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let _lock = lab.lock()?;
        let image = Image::find()?;
        let guard = Guard::new(lab.clone());
        let played = Self::set_up(lab, topology, image).and_then(|stage| {
            play(&stage).inspect_err(|_| {
                play::show_logs(lab, topology);
                stage.show_serial_logs();
            })
        });
        if keep {
            guard.keep();
            println!("lab {} stays up; take it down with: throughline-lab down", lab.name());
        } else {
            guard.finish()?;
        }
        played
    }

    fn set_up(lab: &'a Lab, topology: &'a Topology, image: Image) -> Result<Self> {
        println!("bringing up lab {}", lab.name());
        Self::over(lab, topology, image, play::up)
    }

    /// A stage on a lab that `up` brings up.
    pub(crate) fn over(
        lab: &'a Lab,
        topology: &'a Topology,
        image: Image,
        up: impl FnOnce(&Lab, &Topology) -> Result<Operator>,
    ) -> Result<Self> {
        let names = |role| topology.with_role(role).map(|node| node.name.as_str());
        let hypervisors: Vec<&str> = names(Role::Hypervisor).collect();
        ensure!(hypervisors.len() >= 2, "two hypervisors are needed, {} has {}", lab.name(), hypervisors.len());
        let peers: Vec<&str> = names(Role::Peer).collect();
        ensure!(!peers.is_empty(), "a node with the role peer is needed");
        let operator = up(lab, topology)?;
        Ok(Self { lab, operator, hypervisors, peers, image })
    }

    /// From which host to which the guest moves in a run, counting from 0: there and back in turn.
    pub(crate) fn way(&self, run: usize) -> (&'a str, &'a str) {
        (self.hypervisors[run % 2], self.hypervisors[(run + 1) % 2])
    }

    /// Creates the network, the peers' endpoints and the guest; `parameters` are added to its kernel's command line, `flags` to the
    /// operator's.
    pub(crate) fn create_guest(&self, parameters: &str, flags: &[&str]) -> Result<()> {
        self.operator.run(&["network", "create", cast::NETWORK, "--vni", cast::VNI])?;
        for (index, host) in self.peers.iter().enumerate() {
            self.create_endpoint(index, host)?;
        }
        self.boot_guest(self.hypervisors[0], parameters, flags)
    }

    /// Creates an endpoint on a host, counting from 0.
    pub(crate) fn create_endpoint(&self, index: usize, host: &str) -> Result<()> {
        let (name, mac, ip) = (cast::endpoint(index), cast::endpoint_mac(index), cast::endpoint_address(index));
        let words =
            ["endpoint", "create", &name, "--network", cast::NETWORK, "--host", host, "--mac", &mac, "--ip", &ip];
        self.operator.run(&words)
    }

    /// Creates the guest on a host, in a network that is there.
    pub(crate) fn boot_guest(&self, host: &str, parameters: &str, flags: &[&str]) -> Result<()> {
        let (kernel, initrd) = (self.image.kernel(), self.image.initrd());
        let cmdline = cast::cmdline(parameters);
        let words = [
            "guest",
            "create",
            cast::GUEST,
            "--network",
            cast::NETWORK,
            "--host",
            host,
            "--memory",
            cast::GUEST_MEMORY,
            "--vcpus",
            "1",
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--cmdline",
            &cmdline,
            "--mac",
            cast::GUEST_MAC,
            "--ip",
            cast::GUEST_ADDRESS,
        ];
        self.operator.run(&[&words, flags].concat())
    }

    /// Shows the end of what the guest wrote to its console, on every host that has it.
    fn show_serial_logs(&self) {
        if signals::interrupted() {
            return;
        }
        for host in &self.hypervisors {
            for log in serial_logs(&self.lab.node_state(host).join("state")) {
                play::show_log(&log);
            }
        }
    }
}

/// Where an agent with this state directory has its guests write their consoles to.
fn serial_logs(state: &Path) -> Vec<PathBuf> {
    let Ok(guests) = fs::read_dir(state.join("guests")) else { return Vec::new() };
    guests.flatten().map(|guest| guest.path().join("serial.log")).filter(|log| log.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_console_is_found() {
        let state = std::env::temp_dir().join(format!("throughline-lab-state-{}", std::process::id()));
        assert_eq!(serial_logs(&state), Vec::<PathBuf>::new());
        let log = state.join("guests/web-1/serial.log");
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::create_dir_all(state.join("guests/gone")).unwrap();
        fs::write(&log, "init: eth0 has 10.7.0.10/24").unwrap();
        let found = serial_logs(&state);
        fs::remove_dir_all(&state).unwrap();
        assert_eq!(found, [log]);
    }
}
