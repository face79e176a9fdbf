//! What the programs cost a frame and what the hold bears, what the seal of a memory stream costs, and how fast a
//! disk is copied: measured by the crates' own benchmarks, quoted here.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// A crate's benchmark: package and name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Benchmark(&'static str, &'static str);

/// Of the programs and the hold.
pub(super) const DATAPATH: Benchmark = Benchmark("throughline-loader", "datapath");
/// Of the copy of a disk.
pub(super) const DISKS: Benchmark = Benchmark("throughline-hypervisor", "disks");
/// Of the memory stream.
pub(super) const STREAM: Benchmark = Benchmark("throughline-hypervisor", "stream");

/// The benchmark's results.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Cost {
    /// What was measured.
    pub(super) rows: Vec<Row>,
}

/// One figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    /// What.
    pub(super) name: String,
    /// In which unit.
    pub(super) unit: String,
    /// Of all samples the one in the middle.
    pub(super) median: f64,
    /// The smallest.
    pub(super) min: f64,
    /// The largest.
    pub(super) max: f64,
    /// How many.
    pub(super) samples: u64,
    /// What the median must keep to, if anything.
    #[serde(default)]
    pub(super) target: Option<String>,
    /// What repeats it.
    pub(super) command: String,
}

/// Runs a benchmark.
pub(super) fn measure(Benchmark(package, name): Benchmark) -> Result<Cost> {
    let file = env::temp_dir().join(format!("throughline-{name}-{}.json", std::process::id()));
    let command = ["bench", "-p", package, "--bench", name, "--", "--json"];
    let status = Command::new("cargo").args(command).arg(&file).status().context("cannot run cargo")?;
    ensure!(status.success(), "`cargo {} FILE` ended with {status}", command.join(" "));
    let text = fs::read_to_string(&file).context("the benchmark wrote no results");
    // It may not be there.
    let _ = fs::remove_file(&file);
    read(&text?)
}

fn read(text: &str) -> Result<Cost> {
    serde_json::from_str(text).context("the benchmark's results are not what was expected")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_with_and_without_a_target() {
        let row = r#"{"name": "steer, pass", "unit": "ns", "median": 30.5, "min": 30, "max": 31, "samples": 5, "command": "c""#;
        let cost = read(&format!(r#"{{"host": {{}}, "rows": [{row}}}, {row}, "target": "<= 35"}}]}}"#)).unwrap();
        assert_eq!(cost.rows.iter().map(|row| row.target.as_deref()).collect::<Vec<_>>(), [None, Some("<= 35")]);
        assert!(read("{}").is_err());
    }
}
