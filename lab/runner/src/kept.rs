//! Results that are kept in a file from run to run, and what is said of where they come from.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What an earlier run left in a file; nothing if there was none. `again`: what to do about one that does not read.
pub(crate) fn read<T: DeserializeOwned + Default>(path: &Path, again: &str) -> Result<T> {
    match fs::read(path) {
        Ok(json) => serde_json::from_slice(&json)
            .with_context(|| format!("{} is of another version: remove it, and {again}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes results, and the text made of them; their directories are made.
pub(crate) fn write(results: &impl Serialize, json: &Path, text: &str, table: &Path) -> Result<()> {
    let figures = serde_json::to_string_pretty(results)? + "\n";
    for (path, contents) in [(json, figures.as_str()), (table, text)] {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The time, UTC.
pub(crate) fn now() -> Result<String> {
    said("date", &["-u", "+%F %H:%M"])
}

/// The checkout this was built from; built from none it has no name.
pub(crate) fn version() -> String {
    said("git", &["describe", "--always", "--dirty"]).unwrap_or_default()
}

/// The first line a command prints.
pub(crate) fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}
