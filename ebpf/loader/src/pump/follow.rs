//! On the CPU where the port's frames are received.
//!
//! `write()` returning is not delivery: past the hold a frame may wait in its CPU's backlog, or go to that CPU's transmit
//! queue. A frame that goes straight on waits in the same ones only if it is handled by the same CPU.

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::PortHandle;

#[derive(Debug, Default)]
pub(super) struct Follow {
    current: Option<usize>,
}

impl Follow {
    /// Moves the calling thread to the CPU that diverted the port's latest frame.
    pub(super) fn follow(&mut self, port: &PortHandle) {
        let latest = port.diverting_cpu();
        if latest.is_none() || latest == self.current {
            return;
        }
        self.current = latest;
        let Some(cpu) = latest else { return };
        let mut set = CpuSet::new();
        let moved = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(errno) = moved {
            // A cpuset may forbid it. Order then rests on the underlay's queues.
            tracing::warn!(cpu, %errno, tap = port.tap_ifindex(), "cannot run where the port's frames are received");
        }
    }
}
