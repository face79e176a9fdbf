//! A guest's disks, all of them together: the source's mirrors and the destination's exports, which are the QEMUs' and outlive
//! the agents; what the agents' hands do with them; and whether the destination's have all that the guest wrote.
//!
//! That is the case from when they are mirrored for as long as the guest runs only with its mirrors. What it writes without
//! them, for they failed or ended, is missing over there.

use crate::{
    destination, source,
    state::{DestinationVm, SourceVm, State},
    system::{Hands, Seeded},
};
use throughline_cutover::SourcePhase;

/// What becomes of the guest's writes besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Mirrors {
    /// There are no mirrors.
    #[default]
    None,
    /// They go to the destination too, and so does the rest.
    Copying,
    /// They go to the destination too, which has everything else.
    Mirrored,
    /// The mirrors finished: every write is over.
    Ended,
    /// A write did not get to the destination.
    Failed,
}

impl Mirrors {
    fn write(self) -> bool {
        matches!(self, Self::Copying | Self::Mirrored)
    }
}

/// Without disks nothing here ever changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Disks {
    /// The guest has some.
    pub(crate) there: bool,
    pub(crate) mirrors: Mirrors,
    /// The destination's QEMU lets others write.
    pub(crate) open: bool,
    /// The destination's have all that was ever written.
    pub(crate) whole: bool,
}

impl State {
    /// Nobody writes to the destination's disks but the guest that runs there.
    pub(crate) fn disks_have_one_writer(&self) -> bool {
        self.destination.vm != DestinationVm::Runs || !(self.disks.open || self.disks.mirrors.write())
    }

    /// A guest that runs at the destination finds there what it wrote.
    pub(crate) fn disks_are_whole(&self) -> bool {
        self.destination.vm != DestinationVm::Runs || !self.disks.there || self.disks.whole
    }

    /// Nobody writes from one host to the other any more.
    pub(crate) fn disks_are_at_rest(&self) -> bool {
        self.disks.mirrors == Mirrors::None && !self.disks.open
    }
}

impl Hands<'_> {
    /// `MirrorDisks`.
    pub(crate) fn mirror_disks(&mut self) -> Option<source::On> {
        if self.state.source.vm == SourceVm::Gone {
            return Some(source::On::MirrorFailed);
        }
        self.state.disks.mirrors = Mirrors::Copying;
        None
    }

    /// The rest is over.
    pub(crate) fn disks_are_over(&mut self) {
        (self.state.disks.mirrors, self.state.disks.whole) = (Mirrors::Mirrored, true);
    }

    /// What `EndMirrors` comes to. They finish if the destination takes the last of it.
    pub(crate) fn mirrors_end(&mut self) {
        self.state.source.agent.as_mut().expect("alive").ending_mirrors = false;
        let disks = &mut self.state.disks;
        let on = if self.fabric.seeded == Seeded::CutsMirrors {
            (disks.mirrors, disks.whole) = (Mirrors::None, false);
            source::On::MirrorsEnded
        } else if disks.mirrors == Mirrors::Mirrored && disks.open {
            disks.mirrors = Mirrors::Ended;
            source::On::MirrorsEnded
        } else {
            source::On::MirrorFailed
        };
        self.drive_source(on, crate::machines::When::Now);
    }

    /// Part of undoing.
    pub(crate) fn abandon_mirrors(&mut self) {
        if self.state.disks.there && self.part() {
            self.state.disks.mirrors = Mirrors::None;
        }
    }

    /// What `CloseDisks` comes to.
    pub(crate) fn disks_close(&mut self) {
        self.state.destination.agent.as_mut().expect("alive").closing_disks = false;
        let there = !matches!(self.state.destination.vm, DestinationVm::None | DestinationVm::Gone);
        self.state.disks.open &= self.fabric.seeded == Seeded::LeavesDisksOpen;
        let on = if there { destination::On::DisksClosed } else { destination::On::MemoryFailed };
        self.drive_destination(on, crate::machines::When::Now);
    }

    /// What is a QEMU's goes with it, and what the guest writes without mirrors is missing at the destination.
    pub(crate) fn disks_follow(&mut self) {
        let State { disks, source, destination, .. } = &mut self.state;
        if source.vm == SourceVm::Gone {
            disks.mirrors = Mirrors::None;
        }
        disks.open &= !matches!(destination.vm, DestinationVm::None | DestinationVm::Gone);
        disks.whole &= !source.vm.runs() || disks.mirrors == Mirrors::Mirrored;
    }

    /// The rest can get over.
    pub(crate) fn disks_can_be_over(&self) -> bool {
        self.state.disks.mirrors == Mirrors::Copying && self.state.disks.open
    }

    /// A write finds nobody at the destination.
    pub(crate) fn mirrors_can_fail(&self) -> bool {
        self.state.disks.mirrors.write() && !self.state.disks.open
    }

    /// The connections of the mirrors can break.
    pub(crate) fn mirrors_can_break(&self) -> bool {
        self.state.disks.mirrors.write() && self.state.disks.open
    }

    pub(crate) fn source_sees_disks_over(&self, phase: SourcePhase) -> bool {
        phase == SourcePhase::Mirroring && self.state.disks.mirrors == Mirrors::Mirrored
    }

    /// Until it has them end the agent looks whether they live.
    pub(crate) fn source_sees_mirrors_failed(&self, phase: SourcePhase) -> bool {
        use SourcePhase::{Arming, Mirroring, Pausing, Precopy, Switching};
        let looks = matches!(phase, Mirroring | Precopy | Arming | Pausing | Switching);
        let ending = self.state.source.agent.as_ref().is_some_and(|agent| agent.ending_mirrors);
        looks && !ending && self.state.disks.mirrors == Mirrors::Failed
    }
}
