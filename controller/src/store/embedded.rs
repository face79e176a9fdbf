//! The store on this machine's disk: one redb file.

use std::path::Path;

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError,
    backends::FileBackend,
};
use serde_json::Value;
use throughline_confine::{private_dir, private_file};

use super::{Change, Store, StoreError, Table};

/// Format of what the tables hold. A change that an older controller must not work with makes it one more.
///
/// 1: the first. 2: a mandate, and removals by name. 3: guests' disks, which an older controller would forget. 4: replicas, and
/// guests that are to begin as one, which it would begin blank. 5: where disks are kept and what they are over, which it would look for elsewhere. What is older
/// reads as it is.
const FORMAT: u64 = 5;
const OLDEST: u64 = 1;
const FORMAT_KEY: &str = "schema";
const FILE: &str = "record.redb";
/// Pages of the file kept in memory, bytes. What is read is read once, at the start; unless told otherwise the store would go on
/// to keep a gigabyte of what was written.
const CACHE: usize = 4 << 20;

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
    /// [`StoreError::Files`], [`StoreError::InUse`], [`StoreError::Format`], or the database's own.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        private_dir(directory)?;
        let path = directory.join(FILE);
        let backend = FileBackend::new(private_file(&path)?);
        let database = match backend
            .and_then(|file| Database::builder().set_cache_size(CACHE).create_with_backend(file))
        {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::InUse { path: directory.to_owned() }),
            Err(error) => return Err(failed(error)),
        };
        let mut store = Self { database };
        if let Some(found) = store.format()?.filter(|found| !(OLDEST..=FORMAT).contains(found)) {
            return Err(StoreError::Format { path, found, oldest: OLDEST, known: FORMAT });
        }
        store.create_tables()?;
        let value = Some(Value::from(FORMAT));
        store.commit(&[Change { table: Table::Meta, key: FORMAT_KEY.to_owned(), value }])?;
        Ok(store)
    }

    /// The format on disk; `None`: nothing was ever written.
    fn format(&self) -> Result<Option<u64>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let meta = match transaction.open_table(definition(Table::Meta)) {
            Ok(meta) => meta,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let Some(value) = meta.get(FORMAT_KEY).map_err(failed)? else { return Ok(None) };
        match serde_json::from_slice(value.value()) {
            Ok(found) => Ok(Some(found)),
            Err(source) => Err(StoreError::Value { table: Table::Meta.name(), key: FORMAT_KEY.to_owned(), source }),
        }
    }

    fn create_tables(&self) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        for table in Table::ALL {
            transaction.open_table(definition(table)).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
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
    use std::{fs, path::PathBuf};

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
        assert_eq!(rows, [("b".to_owned(), 2.into()), (FORMAT_KEY.to_owned(), FORMAT.into())]);
    }

    /// A record as another version wrote it.
    fn of_format(directory: &Directory, format: u64) {
        let mut store = EmbeddedStore::open(&directory.0).unwrap();
        store.commit(&[put(FORMAT_KEY, format), put("a", 1)]).unwrap();
    }

    #[test]
    fn a_record_of_another_format_is_left_alone() {
        for format in [OLDEST - 1, FORMAT + 1] {
            let directory = Directory::new(&format!("format-{format}"));
            of_format(&directory, format);
            let file = directory.0.join(FILE);
            let refused = EmbeddedStore::open(&directory.0).unwrap_err();
            let StoreError::Format { path, found, .. } = &refused else { panic!("{refused:?}") };
            assert_eq!((path, *found), (&file, format));
            for part in [file.display().to_string(), format!("format {format}"), format!("{OLDEST} to {FORMAT}")] {
                assert!(refused.to_string().contains(&part), "{refused}");
            }
            assert!(EmbeddedStore::open(&directory.0).is_err(), "it was not changed");
        }
    }

    #[test]
    fn an_older_record_is_taken_over() {
        let directory = Directory::new("older");
        of_format(&directory, OLDEST);
        let store = EmbeddedStore::open(&directory.0).unwrap();
        let rows = store.load(Table::Meta).unwrap();
        assert_eq!(rows, [("a".to_owned(), 1.into()), (FORMAT_KEY.to_owned(), FORMAT.into())]);
        assert_eq!(store.load(Table::Removals).unwrap(), []);
    }

    #[test]
    fn a_directory_that_cannot_be_is_named() {
        let refused = EmbeddedStore::open(Path::new("/proc/throughline")).unwrap_err();
        assert!(refused.to_string().contains("/proc/throughline"), "{refused}");
    }
}
