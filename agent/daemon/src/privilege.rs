//! What an agent may do on its host, and why. Everything else is given up before its second thread begins.
//!
//! The systemd unit grants the same (`tests/tests/packaging.rs`), and a process that was given less is told what is missing and
//! what for. Together they are still much: who takes an agent over has the host's network, and with `CAP_SYS_PTRACE` every
//! process on it. What they cannot do is load a module, touch raw devices, change the clock or reboot; and a host that only
//! reaches guests (`--peer-only`) keeps the network alone.

use throughline_confine::{CapabilitySet, Keep};

/// What every agent needs.
pub const EVERY_AGENT: [Keep; 4] = [
    Keep {
        capability: CapabilitySet::NET_ADMIN,
        what_for: "to make bridges, tunnels and taps, write FDB and neighbour entries and attach programs",
    },
    Keep { capability: CapabilitySet::NET_RAW, what_for: "to send markers and announcements, which are whole frames" },
    Keep { capability: CapabilitySet::BPF, what_for: "to load the programs that hold and carry frames" },
    Keep {
        capability: CapabilitySet::PERFMON,
        what_for: "to have the kernel accept what those programs reckon with pointers into its maps",
    },
];

/// What an agent needs besides where guests run.
pub const WHERE_GUESTS_RUN: [Keep; 8] = [
    Keep {
        capability: CapabilitySet::SYS_PTRACE,
        what_for: "to take frames back from a QEMU that has kept them, by pidfd_getfd",
    },
    Keep {
        capability: CapabilitySet::SYS_ADMIN,
        what_for: "to start each QEMU in an empty network namespace; the kernel asks for no less",
    },
    Keep { capability: CapabilitySet::SETUID, what_for: "to start each QEMU as a user that is not root" },
    Keep { capability: CapabilitySet::SETGID, what_for: "to start each QEMU in that user's group and in no other" },
    Keep { capability: CapabilitySet::SETPCAP, what_for: "to start each QEMU without capabilities it could ever get" },
    Keep {
        capability: CapabilitySet::CHOWN,
        what_for: "to give each QEMU its run directory, and its tools the disks they make",
    },
    Keep {
        capability: CapabilitySet::DAC_OVERRIDE,
        what_for: "to reach the monitor and the logs in that directory, which is QEMU's own",
    },
    Keep { capability: CapabilitySet::KILL, what_for: "to end a QEMU, which is another user's" },
];

/// What this agent keeps.
pub fn kept(peer_only: bool) -> Vec<Keep> {
    let guests: &[Keep] = if peer_only { &[] } else { &WHERE_GUESTS_RUN };
    [&EVERY_AGENT, guests].concat()
}
