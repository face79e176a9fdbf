//! What is kept of a bench: each part with its command, its time and its machine.

use std::env;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::continuity::Continuity;
use super::cost::Cost;
use super::disks::Disks;
use super::hostile::Hostile;
use super::report;
use crate::demo::budget;
use crate::kept;

const JSON: &str = "results.json";
const TEXT: &str = "results.md";

/// All parts that were ever measured; an absent one was not.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Results {
    pub(super) continuity: Option<Part<Continuity>>,
    pub(super) load: Option<Part<Continuity>>,
    pub(super) budget: Option<Part<Vec<budget::Row>>>,
    pub(super) hostile: Option<Part<Hostile>>,
    pub(super) cost: Option<Part<Cost>>,
    pub(super) stream: Option<Part<Cost>>,
    pub(super) disks: Option<Part<Disks>>,
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
        kept::read(&directory.join(JSON), "measure anew")
    }

    /// Writes both files.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        kept::write(self, &directory.join(JSON), &report::of(self), &directory.join(TEXT))
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
            at: kept::now()?,
            minutes: began.elapsed().as_secs_f64() / 60.0,
            machine: Machine {
                kernel: kept::said("uname", &["-r"])?,
                cpus: thread::available_parallelism()?.get(),
                qemu: kept::said("qemu-system-x86_64", &["--version"])?,
                version: kept::version(),
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

#[cfg(test)]
mod tests {
    use std::fs;

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
