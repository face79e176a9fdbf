//! What is left of a migration that was over long ago: enough to recognise its request when it comes again, and to say what came
//! of it.

use serde::{Deserialize, Serialize};
use throughline_cutover::{
    Failure, Generation, HostName, Limits, OperatorName, Phase, StopFirst, admission::MigrationRequest,
};

use super::{MigrationRecord, Record};
use crate::store::Table;

/// Most that are kept; the oldest go first.
const KEPT: usize = 10_000;

/// A migration without what happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outline {
    /// The order of migrations.
    pub(super) number: u64,
    /// Its id.
    pub(crate) id: String,
    /// As asked for.
    pub(crate) request: MigrationRequest,
    /// By which operator.
    pub(crate) requested_by: Option<OperatorName>,
    /// Where the guest was.
    pub(crate) source: HostName,
    /// Where it was to go.
    pub(crate) destination: HostName,
    /// Generation at which the source owned it.
    pub(crate) generation: Generation,
    /// Its limits.
    pub(crate) limits: Limits,
    /// How its guest was stopped to be moved, if it was.
    #[serde(default)]
    pub(crate) stop_first: Option<StopFirst>,
    /// How it ended.
    pub(crate) phase: Phase,
    /// Why it was aborted, or what was lost.
    pub(crate) failure: Option<Failure>,
    /// When it was accepted, milliseconds since 1970.
    pub(crate) created_at_ms: u64,
    /// When it ended, milliseconds since 1970.
    pub(crate) ended_at_ms: u64,
}

impl From<&MigrationRecord> for Outline {
    fn from(migration: &MigrationRecord) -> Self {
        let plan = migration.plan();
        Self {
            number: migration.number,
            id: plan.id.clone(),
            request: migration.request.clone(),
            requested_by: migration.requested_by.clone(),
            source: plan.source.host.clone(),
            destination: plan.destination.host.clone(),
            generation: plan.generation,
            limits: plan.limits,
            stop_first: migration.stopped_first(),
            phase: migration.coordinator.phase(),
            failure: migration.coordinator.failure().cloned(),
            created_at_ms: migration.created_at_ms,
            ended_at_ms: migration.ended_at_ms,
        }
    }
}

/// A migration, as much as is left of it.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// All of it.
    Whole(Box<MigrationRecord>),
    /// How it ended.
    Outline(Box<Outline>),
}

impl Record {
    /// A migration by its id, as much as is left of it.
    pub(crate) fn known(&self, id: &str) -> Option<Known> {
        let whole = self.migrations.get(id).map(|it| Known::Whole(Box::new(it.clone())));
        whole.or_else(|| {
            let outline = self.outlines.values().find(|it| it.id == id);
            outline.map(|it| Known::Outline(Box::new(it.clone())))
        })
    }

    /// The migration that a request began: its id, and what was asked for.
    pub(crate) fn begun_by(&self, request_id: &str) -> Option<(&str, &MigrationRequest)> {
        let whole = self.migrations.values().find(|it| it.request.request_id == request_id);
        whole.map(|it| (it.id(), &it.request)).or_else(|| {
            let outline = self.outlines.values().find(|it| it.request.request_id == request_id);
            outline.map(|it| (it.id.as_str(), &it.request))
        })
    }

    /// Keeps only the newest migrations that are over whole, of the others the outline, and of outlines the newest.
    pub(crate) fn outline_oldest(&mut self, keep: usize) {
        let ended = self.migrations.values().filter(|it| it.has_ended());
        let mut ended: Vec<_> = ended.map(|it| (it.number, it.id().to_owned())).collect();
        ended.sort_unstable();
        for (number, id) in &ended[..ended.len().saturating_sub(keep)] {
            if let Some(outline) = self.migrations.get(id).map(Outline::from) {
                self.put(Table::Outlines, key(*number), &outline);
                self.outlines.insert(*number, outline);
            }
            self.remove_migration(id);
        }
        while self.outlines.len() > KEPT {
            let Some((number, _)) = self.outlines.pop_first() else { break };
            self.remove(Table::Outlines, key(number));
        }
    }
}

/// Sorts as the numbers do.
fn key(number: u64) -> String {
    format!("{number:020}")
}
