//! Where results go: stdout, as a table for people or as JSON for machines.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::{failure::Failure, table};

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON document; streams are one object a line.
    Json,
}

/// A message of the protocol that can be shown: in a row of a table, or alone.
pub(crate) trait Show<const COLUMNS: usize>: Serialize {
    /// Heading of a table of these.
    const HEADING: [&'static str; COLUMNS];

    /// Its row in that table.
    fn row(&self) -> [String; COLUMNS];

    /// All of it, label and value.
    fn properties(&self) -> Vec<(&'static str, String)>;
}

impl Format {
    /// Shows one thing.
    pub(crate) fn one<const N: usize>(self, thing: &impl Show<N>) -> Result<(), Failure> {
        match self {
            Self::Table => print(&table::properties(&thing.properties())),
            Self::Json => self.document(thing),
        }
    }

    /// Shows many things; JSON is the whole list response.
    pub(crate) fn list<const N: usize, T: Show<N>>(
        self,
        things: &[T],
        response: &impl Serialize,
    ) -> Result<(), Failure> {
        match self {
            Self::Table => print(&table::table(T::HEADING, &things.iter().map(T::row).collect::<Vec<_>>())),
            Self::Json => self.document(response),
        }
    }

    /// Says that something without a result is done; JSON is the response, empty as it is.
    pub(crate) fn done(self, text: &str, response: &impl Serialize) -> Result<(), Failure> {
        match self {
            Self::Table => print(&format!("{text}\n")),
            Self::Json => self.document(response),
        }
    }

    fn document(self, document: &impl Serialize) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(document).map_err(io::Error::from)?;
        print(&format!("{json}\n"))
    }
}

/// Writes to stdout.
///
/// # Errors
/// stdout is closed or full. `print!` would panic.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
