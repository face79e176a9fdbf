//! The matrix: what is done, to whom, and when.

use std::fmt;

use super::phase::Phase;

/// To whom something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    SourceAgent,
    DestinationAgent,
    Controller,
    SourceQemu,
    DestinationQemu,
    PeerAgent,
    /// Agent and QEMU together: as if the host lost its power, but for its kernel, which all hosts of a lab share.
    SourceHost,
    DestinationHost,
    SourceLink,
    DestinationLink,
    PeerLink,
    ControllerLink,
    /// The file system that keeps the destination's disks.
    DestinationStorage,
}

impl Victim {
    const PROCESSES: [Self; 6] = [
        Self::SourceAgent,
        Self::DestinationAgent,
        Self::Controller,
        Self::SourceQemu,
        Self::DestinationQemu,
        Self::PeerAgent,
    ];
    const HOSTS: [Self; 2] = [Self::SourceHost, Self::DestinationHost];
    const LINKS: [Self; 4] = [Self::SourceLink, Self::DestinationLink, Self::PeerLink, Self::ControllerLink];

    /// Its name in a cell's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SourceAgent => "source-agent",
            Self::DestinationAgent => "destination-agent",
            Self::Controller => "controller",
            Self::SourceQemu => "source-qemu",
            Self::DestinationQemu => "destination-qemu",
            Self::PeerAgent => "peer-agent",
            Self::SourceHost => "source-host",
            Self::DestinationHost => "destination-host",
            Self::SourceLink => "source-link",
            Self::DestinationLink => "destination-link",
            Self::PeerLink => "peer-link",
            Self::ControllerLink => "controller-link",
            Self::DestinationStorage => "destination",
        }
    }

    /// How it is called in a sentence.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::SourceAgent => "the source's agent",
            Self::DestinationAgent => "the destination's agent",
            Self::Controller => "the controller",
            Self::SourceQemu => "the source's QEMU",
            Self::DestinationQemu => "the destination's QEMU",
            Self::PeerAgent => "a peer's agent",
            Self::SourceHost => "everything of ours on the source",
            Self::DestinationHost => "everything of ours on the destination",
            Self::SourceLink => "the source's link",
            Self::DestinationLink => "the destination's link",
            Self::PeerLink => "the peer's link",
            Self::ControllerLink => "the controller's link",
            Self::DestinationStorage => "the destination's storage",
        }
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL; a daemon is started again soon.
    Kill,
    /// SIGKILL; the daemon stays away for a minute.
    Away,
    /// SIGSTOP, and SIGCONT after 2 s.
    Stop,
    /// The link is down for 2 s.
    Cut,
    /// No write to a file succeeds for 2 s.
    Full,
    /// The file system has no block left for 2 s.
    StorageFull,
    /// Its wall clock is set an hour ahead and it is killed; it is started again at that time, and the clock set right later.
    Ahead,
    /// The same, an hour back.
    Behind,
}

impl Fault {
    /// Whether it kills.
    pub(super) fn kills(self) -> bool {
        matches!(self, Self::Kill | Self::Away | Self::Ahead | Self::Behind)
    }

    /// Its name in a cell's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Away => "kill-60s",
            Self::Stop => "stop",
            Self::Cut => "cut",
            Self::Full => "disk-full",
            Self::StorageFull => "storage-full",
            Self::Ahead => "clock-ahead",
            Self::Behind => "clock-behind",
        }
    }
}

/// What guest moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One without disks.
    Bare,
    /// One with disks.
    Disks,
    /// The same, shut off.
    Stopped,
}

impl Kind {
    /// The part of the matrix that it is moved in; nothing: the first.
    fn part(self) -> &'static str {
        match self {
            Self::Bare => "",
            Self::Disks => "disks/",
            Self::Stopped => "cold/",
        }
    }
}

/// One square of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) kind: Kind,
    pub(super) victim: Victim,
    pub(super) fault: Fault,
    pub(super) phase: Phase,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/{}/{}", self.kind.part(), self.victim.name(), self.fault.name(), self.phase.name())
    }
}

impl Cell {
    /// The whole matrix. Cells in which the guest dies are last in their row, for they cost a new guest each.
    pub(super) fn all() -> Vec<Self> {
        let cell = |victim, fault, phase| Self { kind: Kind::Bare, victim, fault, phase };
        let mut cells = Vec::new();
        for victim in Victim::PROCESSES {
            for fault in [Fault::Kill, Fault::Stop] {
                cells.extend(Phase::ALL.map(|phase| cell(victim, fault, phase)));
            }
        }
        for victim in Victim::HOSTS {
            cells.extend(Phase::ALL.map(|phase| cell(victim, Fault::Kill, phase)));
        }
        // Two seconds are longer than most moments: these are those that differ.
        let cut_at = [Phase::Precopy, Phase::Arm, Phase::Told, Phase::Carry, Phase::Settle];
        for victim in Victim::LINKS {
            cells.extend(cut_at.map(|phase| cell(victim, Fault::Cut, phase)));
        }
        // Each is at the last moment before a journal write of that daemon's.
        let writes = [
            (Victim::SourceAgent, [Phase::Prepare, Phase::Precopy, Phase::Carry].as_slice()),
            (Victim::DestinationAgent, &[Phase::Prepare, Phase::Told, Phase::Committed]),
            (Victim::Controller, &[Phase::Precopy, Phase::Told, Phase::Carry]),
        ];
        for (victim, phases) in writes {
            cells.extend(phases.iter().map(|phase| cell(victim, Fault::Full, *phase)));
        }
        for victim in [Victim::SourceAgent, Victim::DestinationAgent, Victim::Controller] {
            for fault in [Fault::Ahead, Fault::Behind] {
                cells.extend([Phase::Precopy, Phase::Told, Phase::Carry].map(|phase| cell(victim, fault, phase)));
            }
        }
        cells.push(cell(Victim::Controller, Fault::Away, Phase::Committed));
        cells.extend(Self::with_disks());
        cells.extend(Self::cold());
        cells
    }

    /// The part of it in which the guest has disks.
    pub(super) fn with_disks() -> impl Iterator<Item = Self> {
        let struck = [
            (Victim::SourceAgent, Fault::Kill),
            (Victim::DestinationAgent, Fault::Kill),
            (Victim::SourceQemu, Fault::Kill),
            (Victim::DestinationQemu, Fault::Kill),
            (Victim::SourceLink, Fault::Cut),
            (Victim::DestinationStorage, Fault::StorageFull),
        ];
        let moments = |(victim, fault)| Phase::OF_DISKS.map(|phase| Self { kind: Kind::Disks, victim, fault, phase });
        struck.into_iter().flat_map(moments)
    }

    /// The part of it in which the guest is stopped.
    pub(super) fn cold() -> impl Iterator<Item = Self> {
        let copying = [Phase::MirrorBegin, Phase::MirrorMiddle, Phase::GiveUp].as_slice();
        let all = Phase::OF_COLD_MOVES.as_slice();
        let struck = [
            (Victim::SourceAgent, Fault::Kill, all),
            (Victim::DestinationAgent, Fault::Kill, all),
            (Victim::Controller, Fault::Kill, all),
            (Victim::SourceLink, Fault::Cut, copying),
            (Victim::DestinationStorage, Fault::StorageFull, copying),
        ];
        let moments = |(victim, fault, phases): (_, _, &'static [Phase])| {
            phases.iter().map(move |phase| Self { kind: Kind::Stopped, victim, fault, phase: *phase })
        };
        struck.into_iter().flat_map(moments)
    }

    /// What a next try has to copy at most, percent: what this one did not, and what was written since. None: all of it, for
    /// something happened that may have cost some of what was copied.
    pub(super) fn left_percent(&self) -> Option<u64> {
        if self.kind == Kind::Stopped {
            return match self.phase {
                Phase::MirrorMiddle => Some(70),
                Phase::GiveUp | Phase::Told => Some(20),
                _ => None,
            };
        }
        let kept = match self.fault {
            Fault::Kill => self.victim != Victim::SourceQemu,
            Fault::Cut => true,
            _ => false,
        };
        match self.phase {
            Phase::MirrorMiddle if kept => Some(80),
            Phase::MirrorEnd if kept => Some(50),
            _ => None,
        }
    }

    /// Whether a pattern picks it: a part of its name, `*` standing for anything.
    pub(super) fn is_picked_by(&self, pattern: &str) -> bool {
        let name = self.to_string();
        let mut rest = name.as_str();
        for part in pattern.split('*') {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cell_has_a_name_of_its_own() {
        let cells = Cell::all();
        let names: BTreeSet<String> = cells.iter().map(Cell::to_string).collect();
        assert_eq!(names.len(), cells.len());
        assert!(names.contains("disks/destination/storage-full/mirror-middle"));
        assert!(names.contains("cold/source-agent/kill/mirror-middle"));
        let of = |part| names.iter().filter(|name| name.starts_with(part)).count();
        assert_eq!((of("disks/"), of("cold/")), (18, 27));
        for victim in Victim::PROCESSES {
            for phase in Phase::ALL {
                for fault in [Fault::Kill, Fault::Stop] {
                    let cell = Cell { kind: Kind::Bare, victim, fault, phase };
                    assert!(names.contains(&cell.to_string()));
                }
            }
        }
    }

    #[test]
    fn patterns_pick() {
        let cell = Cell { kind: Kind::Bare, victim: Victim::SourceAgent, fault: Fault::Kill, phase: Phase::Precopy };
        for pattern in ["source-agent/kill/precopy", "kill", "source*precopy", "*"] {
            assert!(cell.is_picked_by(pattern), "{pattern}");
        }
        for pattern in ["destination", "precopy*kill", "source-agent/stop"] {
            assert!(!cell.is_picked_by(pattern), "{pattern}");
        }
    }
}
