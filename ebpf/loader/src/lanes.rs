//! A hold with several queues: one a lane, so that the gate can be emptied peer by peer.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use aya::{
    Ebpf,
    programs::{ProgramError, SocketFilter},
};
use nix::errno::Errno;

use crate::{Datapath, DatapathError};

/// The program that a hold asks which queue takes a frame.
const STEERING: &str = "lane";

/// Has the kernel verify it.
pub(crate) fn load(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    program(ebpf)?.load().map_err(refused)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SocketFilter, DatapathError> {
    let program = ebpf.program_mut(STEERING).ok_or(DatapathError::Object { name: STEERING })?;
    program.try_into().map_err(refused)
}

fn refused(source: ProgramError) -> DatapathError {
    DatapathError::Verify { program: STEERING, source }
}

impl Datapath {
    /// Has a hold with several queues (`IFF_MULTI_QUEUE`) put each frame into the queue of its lane: lane 0 into the one
    /// opened first, and so on in the order of their opening. `hold` is any of its descriptors. It stays so until the hold
    /// goes. A hold with one queue needs no steering and has one lane.
    ///
    /// # Errors
    /// [`DatapathError::Lanes`] if it is no tap.
    pub fn steer_lanes(&self, hold: BorrowedFd<'_>) -> Result<(), DatapathError> {
        let mut ebpf = self.kernel.ebpf();
        let program = program(&mut ebpf)?.fd().map_err(refused)?.as_fd().as_raw_fd();
        // SAFETY: the kernel reads one int, the descriptor of a program, which it takes a reference of.
        let set = unsafe { libc::ioctl(hold.as_raw_fd(), libc::TUNSETSTEERINGEBPF as _, &raw const program) };
        Errno::result(set).map(drop).map_err(|errno| DatapathError::Lanes { source: errno.into() })
    }
}
