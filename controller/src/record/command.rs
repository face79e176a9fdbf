//! By what right this controller commands.

use serde::{Deserialize, Serialize};
use throughline_cutover::{FabricId, Mandate, Term};
use uuid::Uuid;

use super::{Record, one};
use crate::store::{Store, StoreError, Table};

const KEY: &str = "mandate";

/// What of a mandate outlives a controller.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    fabric: FabricId,
    term: Term,
}

/// Whether a value reads as what is kept of a mandate.
pub(super) fn reads(value: &[u8]) -> bool {
    serde_json::from_slice::<Kept>(value).is_ok()
}

/// The mandate on record, in a new life; a record without one begins a fabric.
pub(super) fn load(store: &impl Store) -> Result<Mandate, StoreError> {
    let new = || Kept { fabric: Uuid::new_v4().to_string().parse().expect("a UUID is a name"), term: Term(0) };
    let Kept { fabric, term } = one(store, KEY)?.unwrap_or_else(new);
    Ok(Mandate { fabric, term, life: rand::random() })
}

impl Record {
    /// By what right this controller commands.
    pub(crate) fn mandate(&self) -> &Mandate {
        &self.mandate
    }

    /// Takes command, in a term above `above` and above its own. Nobody may be commanded before that is durable.
    pub(crate) fn take_command(&mut self, above: Term) {
        self.mandate.term = self.mandate.term.max(above).next();
        let Mandate { fabric, term, .. } = self.mandate.clone();
        self.put(Table::Meta, KEY, &Kept { fabric, term });
    }
}
