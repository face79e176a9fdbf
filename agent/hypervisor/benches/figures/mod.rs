//! What a bench is told, and what it tells.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// One figure of many samples; `target`: what the median must keep to.
pub(crate) fn row(command: &str, name: &str, unit: &str, mut values: Vec<f64>, target: Option<&str>) -> Value {
    values.sort_unstable_by(f64::total_cmp);
    json!({
        "name": name, "unit": unit, "median": values[values.len() / 2], "min": values[0],
        "max": values[values.len() - 1], "samples": values.len(), "target": target, "command": command,
    })
}

/// What `part` is of `whole`, percent, round by round.
pub(crate) fn shares(part: &[f64], whole: &[f64]) -> Vec<f64> {
    whole.iter().zip(part).map(|(whole, part)| part / whole * 100.0).collect()
}

/// Prints the figures, and writes them to `json` if there is to be a file.
pub(crate) fn tell(rows: &[Value], json: Option<&Path>) {
    for row in rows {
        println!("{row}");
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(&json!({ "rows": rows })).unwrap()).unwrap();
    }
}

/// File for the results, and how many rounds.
pub(crate) fn arguments() -> (Option<PathBuf>, u32) {
    let (mut json, mut rounds) = (None, 7);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            // What cargo says to every bench.
            "--bench" => {}
            "--json" => json = Some(PathBuf::from(value())),
            "--rounds" => rounds = value().parse().unwrap(),
            other => panic!("unknown argument {other}: [--json FILE] [--rounds N]"),
        }
    }
    (json, rounds)
}
