//! A guest's disks, as its source moves them: all of them are mirrored before its memory moves, and the mirrors end while it
//! stands, before the destination is told.
//!
//! ```text
//! Preparing ─ ready, peer prepared ─► Mirroring ─ mirrored ─► Precopy ─ ... ─► Switching ─ pre-switchover: end the mirrors
//!                                         │                                                    │ ended: told, continue
//!                                         └── a copy failed, cancelled, late ──► Undoing ◄─────┘ failed
//! ```
//!
//! A disk has one writer at any time. Until the mirrors have ended that is the source's guest, to both copies; the destination
//! is told after that, and commits only when nobody can write to its disks from outside any more. A guest that resumes here
//! writes to the source's disks alone, which have had every write first.

use serde::{Deserialize, Serialize};

use super::{Source, SourceEffect, SourcePhase, SourceReport};
use crate::{Failure, Progress};

/// How far the disks are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disks {
    /// The guest has some.
    there: bool,
    /// Bytes that are over.
    copied: u64,
    /// Bytes to copy.
    total: u64,
    /// The mirrors were told to finish.
    ending: bool,
}

impl Disks {
    pub(super) fn new(there: bool) -> Self {
        Self { there, ..Self::default() }
    }

    pub(super) fn are_there(&self) -> bool {
        self.there
    }

    pub(super) fn are_ending(&self) -> bool {
        self.ending
    }

    /// Progress of memory, with theirs.
    pub(super) fn told_with(&self, progress: Progress) -> Progress {
        Progress { disk_copied: self.copied, disk_total: self.total, ..progress }
    }

    pub(super) fn late(&self) -> Failure {
        let Self { copied, total, .. } = self;
        let message = format!(
            "the disks were not over in time: {copied} of {total} bytes were; allow more time or bandwidth; the guest runs on here"
        );
        Failure::new("DEADLINE_EXCEEDED", message)
    }
}

impl Source {
    pub(super) fn mirror(&mut self) -> SourceEffect {
        self.phase = SourcePhase::Mirroring;
        SourceEffect::MirrorDisks
    }

    pub(super) fn disk_progress(&mut self, copied: u64, total: u64) -> Vec<SourceEffect> {
        (self.disks.copied, self.disks.total) = (copied, total);
        let progress = self.disks.told_with(Progress::default());
        vec![SourceEffect::Report(SourceReport::Progress(progress))]
    }

    pub(super) fn disks_mirrored(&mut self) -> Vec<SourceEffect> {
        self.disks.copied = self.disks.total;
        vec![self.precopy()]
    }

    /// Once: QEMU's word may come again.
    pub(super) fn end_mirrors(&mut self) -> Vec<SourceEffect> {
        if std::mem::replace(&mut self.disks.ending, true) { vec![] } else { vec![SourceEffect::EndMirrors] }
    }
}
