//! What the operator decides about one agent.

use std::{net::Ipv4Addr, net::SocketAddr, path::PathBuf};

use clap::Parser;
use throughline_cutover::{FabricId, HostName, PlaceName};
use throughline_hypervisor::{AcceleratorChoice, QemuUser};
use throughline_identity::DAEMON_DIRECTORY;

use crate::disks::Elsewhere;

/// The agent of one host: runs its guests, keeps its networks, moves both.
#[derive(Debug, Clone, Parser)]
#[command(name = "throughline-agent", version, after_help = EXAMPLES)]
pub struct Config {
    /// Name of this host in the fabric.
    #[arg(long, env = "THROUGHLINE_HOST")]
    pub host: HostName,
    /// Where the controller listens; default: https://127.0.0.1:7700.
    #[arg(long, env = "THROUGHLINE_CONTROLLER", value_name = "URL")]
    pub controller: Option<String>,
    /// Directory of ca.pem, cert.pem (of `agent/HOST`), key.pem and crl.pem; changed files are used without a restart.
    #[arg(long, value_name = "DIR", default_value = DAEMON_DIRECTORY, env = "THROUGHLINE_TLS")]
    pub tls: PathBuf,
    /// Speak plaintext with everybody and let everybody do anything; refused unless all addresses are loopback ones.
    #[arg(long)]
    pub insecure: bool,
    /// This host's tunnel end point: an address of its underlay interface.
    #[arg(long)]
    pub vtep: Ipv4Addr,
    /// Where other agents reach this one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub peer_listen: SocketAddr,
    /// Journal, sockets and logs of guests live here.
    #[arg(long, default_value = "/var/lib/throughline")]
    pub state_dir: PathBuf,
    /// Guests' disks live here, for this agent alone; default: `disks` in the state directory.
    #[arg(long, value_name = "DIR")]
    pub disk_dir: Option<PathBuf>,
    /// Block devices that may be guests' disks are in this directory, by name or as links (/dev/VOLUME-GROUP, say); default: none may be.
    #[arg(long, value_name = "DIR")]
    pub device_dir: Option<PathBuf>,
    /// Storage that other hosts have, too, under the same name; a directory on it, for agents alone. Repeat for more.
    #[arg(long, value_name = "NAME=DIR", value_parser = storage)]
    pub shared: Vec<(PlaceName, PathBuf)>,
    /// A folder on a mounted BPF file system, this agent's own: what is pinned there outlives the agent.
    #[arg(long, default_value = "/sys/fs/bpf/throughline")]
    pub bpffs: PathBuf,
    /// Give this host to another fabric: the id is in that controller's log and in its refusal. Nothing here ends by it; the
    /// new controller finds the guests that run here as ones it does not know. No effect on a host that is of that fabric.
    #[arg(long, value_name = "FABRIC")]
    pub join: Option<FabricId>,
    /// Runs no guests, only reaches them.
    #[arg(long)]
    pub peer_only: bool,
    /// How guests' processors are run; auto tries whether KVM really can run a 64-bit guest.
    #[arg(long, default_value = "auto", value_name = "auto|kvm|tcg")]
    pub accel: AcceleratorChoice,
    /// Whose processes guests' QEMUs are: a user's name, UID, UID:GID, or FIRST-LAST for a user to each guest. If /etc/subuid
    /// reserves users for the one named, each guest has one of those.
    #[arg(long, default_value = "throughline-qemu", value_name = "USER")]
    pub qemu_user: QemuUser,
    /// Where guests' control groups are made, below the mount point of cgroup2.
    #[arg(long, default_value = "throughline", value_name = "PATH")]
    pub cgroup: PathBuf,
    /// Guests' memory crosses the wire in the clear, where the other host's agent is told so too: for an underlay that nobody
    /// else can read or write.
    #[arg(long)]
    pub memory_plaintext: bool,
    /// Memory for guests, MiB; default: three quarters of what the host has.
    #[arg(long, value_name = "MIB")]
    pub memory_mib: Option<u64>,
    /// Most bytes that may wait for one port while its guest moves, MiB, 1 to 4096; what comes beyond is dropped and counted.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub hold_mib: u32,
    /// Most of it for all ports that move at one time, MiB; default: a sixteenth of the host's memory. A move that finds too
    /// little left is refused.
    #[arg(long, value_name = "MIB")]
    pub hold_budget_mib: Option<u32>,
    /// How fast frames that waited are sent after a guest, Mbit/s; 0: as fast as they can; default: nine tenths of what the
    /// underlay interface says of its speed. Not more than the underlay takes, or frames are lost there.
    #[arg(long, value_name = "MBIT")]
    pub release_mbit: Option<u32>,
    /// Log as text for people or as JSON for machines.
    #[arg(long, default_value = "text", value_name = "text|json")]
    pub log: LogFormat,
}

const EXAMPLES: &str = "EXAMPLES:
  throughline-agent --host h1 --controller https://192.0.2.10:7700 --vtep 192.0.2.1 --peer-listen 192.0.2.1:7701
  throughline-agent --host gw --peer-only --controller https://192.0.2.10:7700 --vtep 192.0.2.3 --peer-listen 192.0.2.3:7701";

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl Config {
    /// Where the controller listens.
    pub fn controller(&self) -> String {
        let default = || format!("{}://127.0.0.1:7700", if self.insecure { "http" } else { "https" });
        self.controller.clone().unwrap_or_else(default)
    }

    /// Where guests' disks live.
    pub fn disk_dir(&self) -> PathBuf {
        self.disk_dir.clone().unwrap_or_else(|| self.state_dir.join("disks"))
    }

    /// Where guests' disks are that are not in that directory.
    pub fn elsewhere(&self) -> Elsewhere {
        Elsewhere::new(self.host.clone(), self.device_dir.clone(), self.shared.iter().cloned().collect())
    }

    /// Memory for guests, KiB.
    pub fn memory_kib(&self) -> u64 {
        match self.memory_mib {
            Some(mib) => mib.saturating_mul(1024),
            None => host_memory() / 1024 / 4 * 3,
        }
    }

    /// Most bytes that may wait for one port.
    pub fn hold_bytes(&self) -> u64 {
        u64::from(self.hold_mib) << 20
    }

    /// MiB that may wait for all ports together; never less than one port may have.
    pub fn hold_budget_mib(&self) -> u32 {
        let sixteenth = || u32::try_from(host_memory() / (16 << 20)).unwrap_or(u32::MAX);
        self.hold_budget_mib.unwrap_or_else(sixteenth).max(self.hold_mib)
    }
}

/// Reads `NAME=DIR`.
fn storage(text: &str) -> Result<(PlaceName, PathBuf), String> {
    let (name, directory) = text.split_once('=').ok_or("give NAME=DIR")?;
    let directory = PathBuf::from(directory);
    if !directory.is_absolute() {
        return Err(format!("{} is not a path from the root", directory.display()));
    }
    Ok((name.parse().map_err(|error| format!("{name:?} {error}"))?, directory))
}

/// Bytes.
fn host_memory() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total())
}
