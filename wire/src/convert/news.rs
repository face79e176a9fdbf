//! What the ends of a migration tell, and what is told of it.

use throughline_cutover::{CutoverReport, Generation, News, Phase, Progress, Role, Step};

use super::field::{InvalidField, Problem};
use crate::v1;

impl TryFrom<v1::MigrationUpdate> for News {
    type Error = InvalidField;
    fn try_from(update: v1::MigrationUpdate) -> Result<Self, InvalidField> {
        Ok(Self {
            role: Role::try_from(update.role())?,
            step: Step::try_from(update.step())?,
            progress: update.progress.map(Progress::from),
            failure: update.failure.map(Into::into),
            report: update.report.map(CutoverReport::from).unwrap_or_default(),
            generation: (update.generation != 0).then_some(Generation(update.generation)),
        })
    }
}

impl TryFrom<v1::Role> for Role {
    type Error = InvalidField;
    fn try_from(role: v1::Role) -> Result<Self, InvalidField> {
        match role {
            v1::Role::Unspecified => Err(InvalidField::new("role", Problem::Missing)),
            v1::Role::Source => Ok(Self::Source),
            v1::Role::Destination => Ok(Self::Destination),
        }
    }
}

impl TryFrom<v1::Step> for Step {
    type Error = InvalidField;
    fn try_from(step: v1::Step) -> Result<Self, InvalidField> {
        match step {
            v1::Step::Unspecified => Err(InvalidField::new("step", Problem::Missing)),
            v1::Step::Expecting => Ok(Self::Expecting),
            v1::Step::Precopy => Ok(Self::Precopy),
            v1::Step::Progress => Ok(Self::Progress),
            v1::Step::Armed => Ok(Self::Armed),
            v1::Step::Paused => Ok(Self::Paused),
            v1::Step::Committed => Ok(Self::Committed),
            v1::Step::Running => Ok(Self::Running),
            v1::Step::LineEmpty => Ok(Self::LineEmpty),
            v1::Step::GateOpen => Ok(Self::GateOpen),
            v1::Step::Settled => Ok(Self::Settled),
            v1::Step::Aborted => Ok(Self::Aborted),
            v1::Step::Stalled => Ok(Self::Stalled),
        }
    }
}

impl From<Phase> for v1::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Stopping => Self::Stopping,
            Phase::Preparing => Self::Preparing,
            Phase::Precopy => Self::Precopy,
            Phase::Armed => Self::Armed,
            Phase::Paused => Self::Paused,
            Phase::Committed => Self::Committed,
            Phase::Settling => Self::Settling,
            Phase::Done => Self::Done,
            Phase::Aborted => Self::Aborted,
        }
    }
}

impl From<v1::Progress> for Progress {
    fn from(p: v1::Progress) -> Self {
        Self {
            transferred: p.transferred,
            remaining: p.remaining,
            total: p.total,
            rate: p.rate,
            dirty_rate: p.dirty_rate,
            expected_pause_us: p.expected_pause_us,
            passes: p.passes,
            throttle_percent: p.throttle_percent,
            disk_copied: p.disk_copied,
            disk_total: p.disk_total,
        }
    }
}

/// Both structs have the same fields under the same names.
macro_rules! same_fields {
    ($from:ty => $to:ty { $($field:ident),* $(,)? }) => {
        impl From<$from> for $to {
            fn from(report: $from) -> Self {
                Self { $($field: report.$field),* }
            }
        }
        impl From<$to> for $from {
            fn from(report: $to) -> Self {
                Self { $($field: report.$field),* }
            }
        }
    };
}

same_fields!(v1::CutoverReport => CutoverReport {
    armed_at_ns, stopped_at_ns, committed_at_ns, running_at_ns, gate_open_at_ns, line_empty_at_ns, settled_at_ns,
    held, carried, gated, overflowed, markers_in, markers_missed, markers_cold, refused, qemu_downtime_ms, memory_bytes,
    pre_switchover_at_ns, continued_at_ns, memory_in_at_ns, decided_at_ns, cont_at_ns,
});
