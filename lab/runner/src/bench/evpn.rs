//! BGP EVPN by FRR: zebra and bgpd on every host, a full mesh of iBGP sessions.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::today::{Host, VXLAN};
use crate::lab::Lab;
use crate::namespace::run;
use crate::play::{show_log, start_apart};
use crate::signals;

/// Where Debian has the daemons.
const DAEMONS: &str = "/usr/lib/frr";

/// How long it may take until every host floods to every other.
const CONVERGED: Duration = Duration::from_secs(60);

/// Whether FRR is installed.
pub(super) fn is_installed() -> bool {
    Path::new(DAEMONS).join("bgpd").exists()
}

/// Starts the daemons, and waits until they have told each other of every VTEP.
pub(super) fn start(lab: &Lab, hosts: &[Host]) -> Result<Vec<Child>> {
    let mut daemons = Vec::new();
    for host in hosts {
        let directory = lab.node_state(host.name).join("frr");
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("zebra.conf"), "")?;
        fs::write(directory.join("bgpd.conf"), bgpd(host, hosts))?;
        // The daemons give up root, and must still be able to write there.
        run(Command::new("chown").args(["-R", "frr:frr"]).arg(&directory))?;
        daemons.push(daemon(lab, host, &directory, "zebra", &[])?);
        wait_for(&directory.join("zserv.api"))?;
        daemons.push(daemon(lab, host, &directory, "bgpd", &["-p", "179"])?);
    }
    converged(lab, hosts).inspect_err(|_| {
        for host in hosts {
            show_log(&lab.node_state(host.name).join("frr/bgpd.log"));
        }
    })?;
    Ok(daemons)
}

/// `no dup-addr-detection`: a guest that moves five times in three minutes is what is measured here.
fn bgpd(host: &Host, hosts: &[Host]) -> String {
    let others = || hosts.iter().filter(|other| other.vtep != host.vtep);
    let mut text = format!("router bgp 65000\n bgp router-id {}\n no bgp default ipv4-unicast\n", host.vtep);
    for other in others() {
        text += &format!(" neighbor {0} remote-as 65000\n neighbor {0} timers connect 1\n", other.vtep);
    }
    text += " address-family l2vpn evpn\n";
    for other in others() {
        text += &format!("  neighbor {} activate\n", other.vtep);
    }
    text + "  advertise-all-vni\n  no dup-addr-detection\n exit-address-family\n"
}

fn daemon(lab: &Lab, host: &Host, directory: &Path, name: &str, more: &[&str]) -> Result<Child> {
    let log = File::create(directory.join(format!("{name}.log")))?;
    let mut command = lab.namespace(host.name).command(Path::new(DAEMONS).join(name))?;
    command.arg("-f").arg(directory.join(format!("{name}.conf")));
    command.arg("-i").arg(directory.join(format!("{name}.pid")));
    command.arg("-z").arg(directory.join("zserv.api")).arg("--vty_socket").arg(directory);
    command.args(["-P", "0", "-u", "frr", "-g", "frr", "--log", "stdout"]).args(more);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    start_apart(lab, command).with_context(|| format!("cannot start {name} on {}", host.name))
}

fn wait_for(path: &Path) -> Result<()> {
    let deadline = Instant::now() + CONVERGED;
    while !path.exists() {
        ensure!(Instant::now() < deadline, "zebra does not open {}", path.display());
        signals::sleep(Duration::from_millis(20))?;
    }
    Ok(())
}

/// Waits until every host has an entry that floods to every other.
fn converged(lab: &Lab, hosts: &[Host]) -> Result<()> {
    let deadline = Instant::now() + CONVERGED;
    for host in hosts {
        loop {
            let mut command = lab.namespace(host.name).command("bridge")?;
            let output = command.args(["fdb", "show", "dev", VXLAN]).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let known = |other: &&Host| text.lines().any(|line| line.contains(&format!("dst {} ", other.vtep)));
            let missing: Vec<_> =
                hosts.iter().filter(|other| other.vtep != host.vtep && !known(other)).map(|other| other.name).collect();
            if missing.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "BGP on {} does not know of {missing:?}", host.name);
            signals::sleep(Duration::from_millis(100))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_host_is_a_neighbour() {
        let host = |name, vtep| Host::named(name, vtep);
        let hosts = [host("h1", "192.0.2.11"), host("h2", "192.0.2.12"), host("p1", "192.0.2.21")];
        let text = bgpd(&hosts[0], &hosts);
        assert!(text.contains("router-id 192.0.2.11\n"), "{text}");
        assert!(!text.contains("neighbor 192.0.2.11"), "{text}");
        assert_eq!(text.matches("remote-as 65000").count(), 2, "{text}");
        assert_eq!(text.matches(" activate").count(), 2, "{text}");
    }
}
