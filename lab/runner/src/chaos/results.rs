//! What is kept of a matrix, cell by cell: a part of it may be played anew.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::report;
use super::run::Seen;

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
        Ok(Self {
            at: said("date", &["-u", "+%F %H:%M"])?,
            // Built from no checkout: then it has no name.
            version: said("git", &["describe", "--always", "--dirty"]).unwrap_or_default(),
            tries,
            seconds,
            seen,
            broken,
        })
    }
}

impl Results {
    /// What earlier runs left beside the table; nothing if there were none.
    pub(super) fn read(table: &Path) -> Result<Self> {
        let path = json_beside(table);
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).with_context(|| {
                format!("{} is of another version of the suite: remove it, and play anew", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes the table, and the figures behind it beside it. Cells that are no more are forgotten.
    pub(super) fn write(&mut self, table: &Path) -> Result<()> {
        let names: Vec<String> = Cell::all().iter().map(Cell::to_string).collect();
        self.cells.retain(|name, _| names.contains(name));
        if let Some(directory) = table.parent() {
            fs::create_dir_all(directory)?;
        }
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (path, text) in [(json_beside(table), json), (table.to_owned(), report::of(self))] {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn json_beside(table: &Path) -> PathBuf {
    table.with_extension("json")
}

/// The first line a command prints.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    anyhow::ensure!(output.status.success(), "{program} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// Where the agents' logs of cells that went wrong are put.
pub(super) fn evidence() -> PathBuf {
    let beside = env::current_exe().ok().and_then(|program| Some(program.parent()?.join("chaos")));
    beside.unwrap_or_else(|| env::temp_dir().join("throughline-chaos"))
}

#[cfg(test)]
mod tests {
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
