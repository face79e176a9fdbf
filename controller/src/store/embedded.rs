//! The store on this machine's disk: one redb file.

use std::{fs, path::Path};

use redb::{Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde_json::Value;

use super::{Change, Store, StoreError, Table};

/// Version of what the tables hold. A change that old values cannot be read with makes it one more.
const SCHEMA: u64 = 1;
const SCHEMA_KEY: &str = "schema";
const FILE: &str = "record.redb";

const fn definition(table: Table) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(table.name())
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}

/// A record in one file, for a fabric with one controller.
#[derive(Debug)]
pub(crate) struct EmbeddedStore {
    database: Database,
}

impl EmbeddedStore {
    /// Opens, or creates, the record in a directory.
    ///
    /// # Errors
    /// [`StoreError::Directory`], [`StoreError::InUse`], [`StoreError::Schema`], or the database's own.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Directory { path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(unusable)?;
        let database = match Database::create(directory.join(FILE)) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::InUse { path: directory.to_owned() }),
            Err(error) => return Err(failed(error)),
        };
        let mut store = Self { database };
        store.create_tables()?;
        store.check_schema()?;
        Ok(store)
    }

    fn create_tables(&self) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        for table in Table::ALL {
            transaction.open_table(definition(table)).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    fn check_schema(&mut self) -> Result<(), StoreError> {
        let meta = self.load(Table::Meta)?;
        let found = meta.iter().find(|(key, _)| key == SCHEMA_KEY).and_then(|(_, value)| value.as_u64());
        match found {
            Some(found) if found > SCHEMA => Err(StoreError::Schema { found, known: SCHEMA }),
            Some(_) => Ok(()),
            None => {
                let value = Some(Value::from(SCHEMA));
                self.commit(&[Change { table: Table::Meta, key: SCHEMA_KEY.to_owned(), value }])
            }
        }
    }
}

impl Store for EmbeddedStore {
    fn load(&self, table: Table) -> Result<Vec<(String, Value)>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let rows = transaction.open_table(definition(table)).map_err(failed)?;
        let mut values = Vec::new();
        for row in rows.iter().map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let key = key.value().to_owned();
            match serde_json::from_slice(value.value()) {
                Ok(value) => values.push((key, value)),
                Err(source) => return Err(StoreError::Value { table: table.name(), key, source }),
            }
        }
        Ok(values)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().map_err(failed)?;
        transaction.set_durability(Durability::Immediate).map_err(failed)?;
        for change in changes {
            let mut table = transaction.open_table(definition(change.table)).map_err(failed)?;
            match &change.value {
                Some(value) => {
                    let bytes = value.to_string().into_bytes();
                    table.insert(change.key.as_str(), bytes.as_slice()).map_err(failed)?;
                }
                None => {
                    table.remove(change.key.as_str()).map_err(failed)?;
                }
            }
        }
        transaction.commit().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("throughline-store-test-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn put(key: &str, value: impl Into<Value>) -> Change {
        Change { table: Table::Meta, key: key.to_owned(), value: Some(value.into()) }
    }

    #[test]
    fn what_was_committed_is_there_after_reopening() {
        let directory = Directory::new("reopen");
        let mut store = EmbeddedStore::open(&directory.0).unwrap();
        store.commit(&[put("a", 1), put("b", 2)]).unwrap();
        store.commit(&[Change { value: None, ..put("a", 0) }]).unwrap();
        assert!(matches!(EmbeddedStore::open(&directory.0), Err(StoreError::InUse { .. })));
        drop(store);
        let rows = EmbeddedStore::open(&directory.0).unwrap().load(Table::Meta).unwrap();
        assert_eq!(rows, [("b".to_owned(), 2.into()), (SCHEMA_KEY.to_owned(), SCHEMA.into())]);
    }

    #[test]
    fn a_newer_record_is_left_alone() {
        let directory = Directory::new("newer");
        let mut store = EmbeddedStore::open(&directory.0).unwrap();
        store.commit(&[put(SCHEMA_KEY, SCHEMA + 1)]).unwrap();
        drop(store);
        let refused = EmbeddedStore::open(&directory.0);
        assert!(matches!(refused, Err(StoreError::Schema { found: 2, known: 1 })), "{refused:?}");
    }

    #[test]
    fn a_directory_that_cannot_be_is_named() {
        let refused = EmbeddedStore::open(Path::new("/proc/throughline")).unwrap_err();
        assert!(refused.to_string().contains("/proc/throughline"), "{refused}");
    }
}
