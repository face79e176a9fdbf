//! Where the record is kept: named values in tables, changed by durable, all-or-nothing commits.

mod embedded;
mod writer;

use std::{fmt::Debug, path::PathBuf};

pub(crate) use embedded::EmbeddedStore;
use serde_json::Value;
use throughline_confine::NotPrivate;
pub(crate) use writer::{Batch, Writer};

/// A table of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// Counters, and the version of the schema.
    Meta,
    /// Networks by name.
    Networks,
    /// Hosts by name.
    Hosts,
    /// Guests by name.
    Guests,
    /// Endpoints by name.
    Endpoints,
    /// Migrations by id.
    Migrations,
    /// What is left of migrations that were over long ago, by number.
    Outlines,
    /// What hosts are still to be rid of.
    Removals,
    /// Replicas by guest and host.
    Replicas,
}

impl Table {
    /// Every table.
    pub(crate) const ALL: [Self; 9] = [
        Self::Meta,
        Self::Networks,
        Self::Hosts,
        Self::Guests,
        Self::Endpoints,
        Self::Migrations,
        Self::Outlines,
        Self::Removals,
        Self::Replicas,
    ];

    /// Its name on disk.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Networks => "networks",
            Self::Hosts => "hosts",
            Self::Guests => "guests",
            Self::Endpoints => "endpoints",
            Self::Migrations => "migrations",
            Self::Outlines => "outlines",
            Self::Removals => "removals",
            Self::Replicas => "replicas",
        }
    }
}

/// One value put or removed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// Where.
    pub(crate) table: Table,
    /// Under which key.
    pub(crate) key: String,
    /// The new value; `None`: removed.
    pub(crate) value: Option<Value>,
}

/// Keeps the record. Calls may block.
pub(crate) trait Store: Debug + Send + 'static {
    /// Everything in a table, by key.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read or is not what was written.
    fn load(&self, table: Table) -> Result<Vec<(String, Value)>, StoreError>;

    /// Applies all changes or none. When it returns `Ok` they survive a crash of the machine.
    ///
    /// # Errors
    /// [`StoreError`] when nothing was applied.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError>;
}

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory, or the record in it, cannot be used.
    #[error("--state-dir cannot be used: {0}")]
    Files(#[from] NotPrivate),
    /// Opened by another process.
    #[error("the record in {path} is in use by another controller; stop that one or give another --state-dir", path = path.display())]
    InUse {
        /// The state directory.
        path: PathBuf,
    },
    /// The database failed.
    #[error("the record's database failed: {0}; check the disk, then start the controller again")]
    Database(#[from] Box<redb::Error>),
    /// A value is not what this version writes.
    #[error("value {key} of table {table} cannot be read: {source}; restore the state directory from a copy")]
    Value {
        /// Table it is in.
        table: &'static str,
        /// Its key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Written by another version.
    #[error(
        "the record {path} has format {found}, this controller reads {oldest} to {known}; nothing was changed; start the \
         controller that wrote it, or give another --state-dir",
        path = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// As found.
        found: u64,
        /// The oldest that is still read.
        oldest: u64,
        /// The newest that is known.
        known: u64,
    },
    /// The thread that writes is gone.
    #[error("the record's writer has stopped; start the controller again")]
    WriterStopped,
}
