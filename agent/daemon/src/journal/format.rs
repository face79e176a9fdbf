//! Which version wrote the journal.

use std::path::Path;

use redb::{Database, ReadableDatabase as _, TableDefinition, TableError, TableHandle as _, WriteTransaction};

use super::{GUESTS, JournalError};

/// What is neither a guest nor a move.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const KEY: &str = "format";

/// Format of what the store holds. A change that an older agent must not work with makes it one more.
///
/// 1: guests and moves. 2: whom this host obeys, and guests that are gone. 3: guests' disks, which an older agent would forget.
/// 4: guests that were stopped, which an older agent would take for lost. 5: where disks are kept and what they are over, and guests with a
/// channel to an agent of their own, which it would begin without. What is older reads as it is.
const FORMAT: u64 = 5;
const OLDEST: u64 = 1;

/// Refuses a store that is not to be read, before anything is written to it.
pub(super) fn check(database: &Database, path: &Path) -> Result<(), JournalError> {
    match found(database)? {
        Some(found) if !(OLDEST..=FORMAT).contains(&found) => {
            Err(JournalError::Format { path: path.to_owned(), found, oldest: OLDEST, known: FORMAT })
        }
        Some(_) | None => Ok(()),
    }
}

/// From now on the store is of this format.
pub(super) fn put(write: &WriteTransaction) -> Result<(), JournalError> {
    write.open_table(META)?.insert(KEY, serde_json::to_vec(&FORMAT)?.as_slice())?;
    Ok(())
}

/// `None`: nothing was ever written.
fn found(database: &Database) -> Result<Option<u64>, JournalError> {
    let read = database.begin_read()?;
    match read.open_table(META) {
        Ok(meta) => match meta.get(KEY)? {
            Some(value) => Ok(Some(serde_json::from_slice(value.value())?)),
            None => Ok(Some(0)),
        },
        // The first format did not say.
        Err(TableError::TableDoesNotExist(_)) => {
            let has_guests = read.list_tables()?.any(|table| table.name() == GUESTS.name());
            Ok(has_guests.then_some(1))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use throughline_cutover::{Generation, OwnedGuest};

    use super::{super::Journal, *};

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("throughline-journal-{}-{test}", std::process::id()));
            let _ = std::fs::remove_dir_all(&directory);
            std::fs::create_dir_all(&directory).unwrap();
            Self(directory)
        }

        fn journal(&self) -> std::path::PathBuf {
            self.0.join("journal.redb")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn write(path: &Path, work: impl FnOnce(&WriteTransaction)) {
        let database = Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        work(&transaction);
        transaction.commit().unwrap();
    }

    #[test]
    fn a_journal_of_another_format_is_left_alone() {
        for format in [OLDEST - 1, FORMAT + 1] {
            let scratch = Scratch::new(&format!("format-{format}"));
            drop(Journal::open(&scratch.journal()).unwrap());
            write(&scratch.journal(), |write| {
                let value = serde_json::to_vec(&format).unwrap();
                write.open_table(META).unwrap().insert(KEY, value.as_slice()).unwrap();
            });
            let refused = Journal::open(&scratch.journal()).unwrap_err().to_string();
            let parts = [
                scratch.journal().display().to_string(),
                format!("format {format}"),
                format!("{OLDEST} to {FORMAT}"),
                "start the agent that wrote it".to_owned(),
            ];
            for part in parts {
                assert!(refused.contains(&part), "{refused}");
            }
            assert!(Journal::open(&scratch.journal()).is_err(), "it was not changed");
        }
    }

    #[test]
    fn the_first_format_is_taken_over() {
        let scratch = Scratch::new("first");
        let boot = throughline_cutover::Boot { kernel: "/k".into(), initrd: String::new(), cmdline: String::new() };
        let (name, queues) = ("web-1".parse().unwrap(), throughline_cutover::Queues::ONE);
        let spec = throughline_cutover::GuestSpec {
            name,
            vcpus: 1,
            queues,
            memory_kib: 262_136,
            boot,
            ports: Vec::new(),
            disks: Vec::new(),
            guest_agent: false,
        };
        let guest = OwnedGuest { spec, generation: Generation(3), vnis: Vec::new(), stopped: false, asked: false };
        write(&scratch.journal(), |write| {
            let value = serde_json::to_vec(&guest).unwrap();
            write.open_table(GUESTS).unwrap().insert("web-1", value.as_slice()).unwrap();
        });
        let journal = Journal::open(&scratch.journal()).unwrap();
        assert_eq!(journal.guests().unwrap(), [guest]);
        assert_eq!(journal.mandate().unwrap(), None, "it belongs to no fabric yet");
        drop(journal);
        assert_eq!(found(&Database::create(scratch.journal()).unwrap()).unwrap(), Some(FORMAT));
    }

    #[test]
    fn a_file_of_commits_of_another_format_is_left_alone() {
        use std::os::unix::fs::FileExt as _;
        let scratch = Scratch::new("commits");
        drop(Journal::open(&scratch.journal()).unwrap());
        let commits = scratch.journal().with_extension("commits");
        let file = std::fs::OpenOptions::new().write(true).open(&commits).unwrap();
        file.write_all_at(b"TLc7", 4096).unwrap();
        let refused = Journal::open(&scratch.journal()).unwrap_err().to_string();
        assert!(refused.contains(&commits.display().to_string()) && refused.contains("format 7"), "{refused}");
        file.write_all_at(b"junk", 4096).unwrap();
        Journal::open(&scratch.journal()).expect("a page that was not written whole does not read");
    }

    #[test]
    fn what_this_host_obeys_and_what_is_gone_are_remembered() {
        use throughline_cutover::{Mandate, Term};
        let scratch = Scratch::new("memory");
        let journal = Journal::open(&scratch.journal()).unwrap();
        let mandate = Mandate { fabric: "f-1".parse().unwrap(), term: Term(4), life: 9, proof: vec![7; 32] };
        journal.obey(&mandate).unwrap();
        let web_1 = "web-1".parse().unwrap();
        assert_eq!(journal.gone(&web_1).unwrap(), None);
        journal.ended(&web_1, Generation(5)).unwrap();
        journal.ended(&web_1, Generation(3)).unwrap();
        drop(journal);
        let journal = Journal::open(&scratch.journal()).unwrap();
        assert_eq!(journal.mandate().unwrap(), Some(mandate.clone()));
        assert_eq!(journal.gone(&web_1).unwrap(), Some(Generation(5)));
        assert!(!journal.join(&mandate.fabric).unwrap(), "it is of that fabric already");
        assert_eq!(journal.mandate().unwrap(), Some(mandate));
        let other = "f-2".parse().unwrap();
        assert!(journal.join(&other).unwrap());
        assert_eq!(journal.mandate().unwrap(), Some(Mandate::to_join(other)));
    }
}
