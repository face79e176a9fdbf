//! What is kept of a bench: each part with its command, its time and its machine.

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::continuity::Continuity;
use super::cost::Cost;
use super::report;
use crate::demo::budget;

const JSON: &str = "results.json";
const TEXT: &str = "results.md";

/// All parts that were ever measured; an absent one was not.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Results {
    pub(super) continuity: Option<Part<Continuity>>,
    pub(super) load: Option<Part<Continuity>>,
    pub(super) budget: Option<Part<Vec<budget::Row>>>,
    pub(super) cost: Option<Part<Cost>>,
}

/// A part, and how it came about.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part<T> {
    /// The command that measured it.
    pub(super) command: String,
    /// When it was done, UTC.
    pub(super) at: String,
    /// How long it took.
    pub(super) minutes: f64,
    /// Where.
    pub(super) machine: Machine,
    /// What came out.
    pub(super) result: T,
}

/// The machine all hosts of the lab share.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    /// Release of its kernel.
    pub(super) kernel: String,
    /// Processors.
    pub(super) cpus: usize,
    /// QEMU's version, in its own words.
    pub(super) qemu: String,
    /// The checkout it was built from.
    pub(super) version: String,
}

impl Results {
    /// What an earlier bench left; nothing if there was none.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(JSON);
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).with_context(|| {
                format!("{} is of another version of the bench: remove it, and measure anew", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes both files.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (name, text) in [(JSON, json), (TEXT, report::of(self))] {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

impl<T> Part<T> {
    /// A part that was just measured, by this very command.
    pub(super) fn new(began: Instant, result: T) -> Result<Self> {
        // As `make bench` would be called: what it calls is `throughline-lab bench`, and passes on the rest.
        let words: Vec<String> = env::args().skip_while(|word| word != "bench").skip(1).collect();
        let command = match words.join(" ") {
            words if words.is_empty() => "make bench".to_owned(),
            words => format!("make bench ARGS=\"{words}\""),
        };
        Ok(Self {
            command,
            at: said("date", &["-u", "+%F %H:%M"])?,
            minutes: began.elapsed().as_secs_f64() / 60.0,
            machine: Machine {
                kernel: said("uname", &["-r"])?,
                cpus: thread::available_parallelism()?.get(),
                qemu: said("qemu-system-x86_64", &["--version"])?,
                // Built from no checkout: then it has no name.
                version: said("git", &["describe", "--always", "--dirty"]).unwrap_or_default(),
            },
            result,
        })
    }

    #[cfg(test)]
    pub(super) fn for_test(result: T) -> Self {
        let machine =
            Machine { kernel: "6.1".to_owned(), cpus: 2, qemu: "QEMU 7.2".to_owned(), version: "abc".to_owned() };
        Self { command: "make bench".to_owned(), at: "2026-01-01 12:00".to_owned(), minutes: 3.0, machine, result }
    }
}

/// The first line a command prints.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    anyhow::ensure!(output.status.success(), "{program} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_stays_as_it_was() {
        let directory = env::temp_dir().join(format!("throughline-bench-{}", std::process::id()));
        let mut results = Results::read(&directory).unwrap();
        results.budget = Some(Part::for_test(Vec::new()));
        results.write(&directory).unwrap();
        let mut results = Results::read(&directory).unwrap();
        results.cost = Some(Part::for_test(Cost { rows: Vec::new() }));
        results.write(&directory).unwrap();
        let results = Results::read(&directory).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert!(results.budget.is_some() && results.cost.is_some() && results.load.is_none());
    }
}
