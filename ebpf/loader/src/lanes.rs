//! Who takes a frame where there are several queues. Of a hold each is a lane's, so that the gate can be emptied peer by
//! peer; of a tap each takes flows of its own.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use aya::{
    Ebpf,
    programs::{ProgramError, SocketFilter},
};
use nix::errno::Errno;

use crate::{Datapath, DatapathError};

/// A program that a device asks which queue takes a frame.
#[derive(Clone, Copy)]
enum Steering {
    /// Of a hold.
    Lane,
    /// Of a tap.
    Flow,
}

impl Steering {
    const fn name(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Flow => "flow",
        }
    }

    fn of(self, ebpf: &mut Ebpf) -> Result<&mut SocketFilter, DatapathError> {
        let name = self.name();
        let program = ebpf.program_mut(name).ok_or(DatapathError::Object { name })?;
        program.try_into().map_err(|source| self.refused(source))
    }

    fn refused(self, source: ProgramError) -> DatapathError {
        DatapathError::Verify { program: self.name(), source }
    }
}

/// Has the kernel verify them.
pub(crate) fn load(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    [Steering::Lane, Steering::Flow]
        .into_iter()
        .try_for_each(|steering| steering.of(ebpf)?.load().map_err(|source| steering.refused(source)))
}

impl Datapath {
    /// Has a hold with several queues (`IFF_MULTI_QUEUE`) put each frame into the queue of its lane: lane 0 into the one
    /// opened first, and so on in the order of their opening. `hold` is any of its descriptors. It stays so until the hold
    /// goes. A hold with one queue needs no steering and has one lane.
    ///
    /// # Errors
    /// [`DatapathError::Queues`] if it is no tap.
    pub fn steer_lanes(&self, hold: BorrowedFd<'_>) -> Result<(), DatapathError> {
        self.have_ask(hold, Steering::Lane)
    }

    /// Has a tap with several queues put frames of one flow into one queue. `tap` is any of its descriptors. Left to itself the
    /// kernel has a flow follow the queue its guest last answered from, and a frame there overtakes those that still wait in
    /// another: seldom at rest, surely while a line is poured into the tap. QEMU takes it back when it resets the guest's
    /// card, and when the guest's driver says how many queues it uses; to do it again changes nothing.
    ///
    /// # Errors
    /// [`DatapathError::Queues`] if it is no tap.
    pub fn keep_flows(&self, tap: BorrowedFd<'_>) -> Result<(), DatapathError> {
        self.have_ask(tap, Steering::Flow)
    }

    fn have_ask(&self, device: BorrowedFd<'_>, steering: Steering) -> Result<(), DatapathError> {
        let mut ebpf = self.kernel.ebpf();
        let program = steering.of(&mut ebpf)?.fd().map_err(|source| steering.refused(source))?;
        let program = program.as_fd().as_raw_fd();
        // SAFETY: the kernel reads one int, the descriptor of a program, which it takes a reference of.
        let set = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETSTEERINGEBPF as _, &raw const program) };
        Errno::result(set).map(drop).map_err(|errno| DatapathError::Queues { source: errno.into() })
    }
}
