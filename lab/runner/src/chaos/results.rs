//! What is kept of a matrix, cell by cell: a part of it may be played anew.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::report;
use super::run::Seen;
use crate::kept;

/// All cells that were ever played; an absent one was not.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Results {
    pub(super) cells: BTreeMap<String, Played>,
}

/// A cell, and how it went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Played {
    /// When it was done, UTC.
    pub(super) at: String,
    /// The checkout it was built from.
    pub(super) version: String,
    /// How often it was played to be struck where it was to be.
    pub(super) tries: u32,
    /// How long that took.
    pub(super) seconds: f64,
    /// What was seen the last time.
    pub(super) seen: Seen,
    /// What was broken of the promise; empty if it held.
    pub(super) broken: Vec<String>,
}

impl Played {
    pub(super) fn new(tries: u32, seconds: f64, seen: Seen, broken: Vec<String>) -> Result<Self> {
        Ok(Self { at: kept::now()?, version: kept::version(), tries, seconds, seen, broken })
    }
}

impl Results {
    /// What earlier runs left beside the table; nothing if there were none.
    pub(super) fn read(table: &Path) -> Result<Self> {
        kept::read(&json_beside(table), "play anew")
    }

    /// How a cell went, if it was played.
    pub(super) fn of(&self, cell: &Cell) -> Option<&Played> {
        self.cells.get(&cell.to_string())
    }

    /// Writes the table, and the figures behind it beside it. Cells that are no more are forgotten.
    pub(super) fn write(&mut self, table: &Path) -> Result<()> {
        let names: Vec<String> = Cell::all().iter().map(Cell::to_string).collect();
        self.cells.retain(|name, _| names.contains(name));
        kept::write(self, &json_beside(table), &report::of(self), table)
    }
}

fn json_beside(table: &Path) -> PathBuf {
    table.with_extension("json")
}

/// Where the agents' logs of cells that went wrong are put.
pub(super) fn evidence() -> PathBuf {
    let beside = env::current_exe().ok().and_then(|program| Some(program.parent()?.join("chaos")));
    beside.unwrap_or_else(|| env::temp_dir().join("throughline-chaos"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_not_played_again_stays_and_what_is_no_cell_goes() {
        let directory = env::temp_dir().join(format!("throughline-chaos-{}", std::process::id()));
        let table = directory.join("faults.md");
        let played = || Played {
            at: String::new(),
            version: String::new(),
            tries: 1,
            seconds: 5.0,
            seen: Seen::default(),
            broken: Vec::new(),
        };
        let names = ["source-agent/kill/arm", "controller/stop/carry", "no/such/cell"];
        for name in names {
            let mut results = Results::read(&table).unwrap();
            results.cells.insert(name.to_owned(), played());
            results.write(&table).unwrap();
        }
        let results = Results::read(&table).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(results.cells.keys().collect::<Vec<_>>(), [names[1], names[0]]);
    }
}
