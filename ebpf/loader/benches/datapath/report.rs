//! Rows of measurements: a table for people, JSON for programs.

use std::{path::Path, process::Command};

use serde_json::json;

/// What was measured, several times.
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
    target: Option<Target>,
}

/// What the median must keep to.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {most}"),
            Self::AtLeast(least) => format!(">= {least}"),
        }
    }
}

impl Row {
    fn least(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// The middle one.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// All rows, with the machine they were measured on.
pub(crate) struct Report {
    rows: Vec<Row>,
    part: &'static str,
    commands: Vec<&'static str>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new(), part: "", commands: Vec::new() }
    }

    /// The rows that follow are of this part of the bench.
    pub(crate) fn part(&mut self, name: &'static str) {
        self.part = name;
    }

    pub(crate) fn row(&mut self, name: impl Into<String>, unit: &'static str, samples: Vec<f64>) {
        self.push(name.into(), unit, samples, None);
    }

    pub(crate) fn row_with_target(&mut self, name: &str, unit: &'static str, samples: Vec<f64>, target: Target) {
        self.push(name.into(), unit, samples, Some(target));
    }

    fn push(&mut self, name: String, unit: &'static str, samples: Vec<f64>, target: Option<Target>) {
        assert!(!samples.is_empty() && samples.iter().all(|s| s.is_finite()), "{name}: nothing was measured");
        self.commands.push(self.part);
        self.rows.push(Row { name, unit, samples, target });
    }

    pub(crate) fn print(&self) {
        let (cpus, kernel) = host();
        println!("\n{cpus} CPUs, Linux {kernel}\n");
        println!("{:<66} {:>10} {:>10} {:>10} {:>3}  target", "", "median", "least", "most", "n");
        for row in &self.rows {
            let middle = median(&row.samples);
            let verdict = row.target.map_or_else(String::new, |target| {
                format!("{} {}", target.text(), if target.is_met(middle) { "met" } else { "MISSED" })
            });
            println!(
                "{:<66} {:>10} {:>10} {:>10} {:>3}  {verdict}",
                format!("{}, {}", row.name, row.unit),
                figure(middle),
                figure(row.least()),
                figure(row.most()),
                row.samples.len(),
            );
        }
    }

    pub(crate) fn write(&self, path: &Path) {
        let (cpus, kernel) = host();
        let rows = self.rows.iter().zip(&self.commands).map(|(row, part)| {
            json!({
                "name": row.name,
                "unit": row.unit,
                "median": median(&row.samples),
                "min": row.least(),
                "max": row.most(),
                "samples": row.samples.len(),
                "target": row.target.map(Target::text),
                "command": format!("cargo bench -p throughline-loader --bench datapath -- {part}"),
            })
        });
        let date = output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]);
        let report =
            json!({ "host": { "cpus": cpus, "kernel": kernel, "date": date }, "rows": rows.collect::<Vec<_>>() });
        let text = serde_json::to_string_pretty(&report).unwrap();
        std::fs::write(path, text + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Enough digits to be read, and no more.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn host() -> (usize, String) {
    (std::thread::available_parallelism().unwrap().get(), output("uname", &["-r"]))
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
