//! What this agent must not forget: which guests it owns, what it promised in a migration. On disk before it is acted on.

mod commits;
mod format;
mod memory;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use redb::{
    Builder, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
    backends::FileBackend,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use throughline_confine::{NotPrivate, private_file};
use throughline_cutover::{Failure, GuestName, MigrationPlan, OwnedGuest};

use commits::{Commit, Commits};
pub use commits::{PAGE, PendingCommit, read_page};

const GUESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("guests");
const MOVES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("moves");
/// Ended moves kept, so that a source that asks late gets the answer it would have got in time.
const ENDED_KEPT: usize = 1024;
/// Words on moves that may be written before the old ones are cleared out.
const CLEAR_OUT_AFTER: u64 = 256;

/// Pages of the store kept in memory, bytes. Unless told otherwise the store would come to keep a gigabyte of what was written.
const CACHE: usize = 1 << 20;

/// What a migration's destination owns.
fn owned_by_destination(plan: &MigrationPlan) -> OwnedGuest {
    let vnis = plan.ports.iter().map(|port| port.vni).collect();
    OwnedGuest { spec: plan.guest.clone(), generation: plan.generation.next(), vnis, stopped: plan.cold, asked: false }
}

/// How far this host has bound itself in a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Promise {
    /// Source: takes part, has given nothing up.
    Sending,
    /// Source: gave the guest up; only the destination's word returns it.
    GivenUp,
    /// Destination: takes part, has not committed.
    Receiving,
    /// Destination: owns the guest.
    Committed,
    /// Destination: did not take it and never will. Source: kept it.
    Declined,
    /// Source: the guest and all that was its are gone from here.
    Left,
}

impl Promise {
    fn ended(self) -> bool {
        matches!(self, Self::Committed | Self::Declined | Self::Left)
    }
}

/// A migration as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Its plan; `None` for one only heard of by a question.
    pub plan: Option<MigrationPlan>,
    /// How far this host is bound.
    pub promise: Promise,
    /// When it was last written, milliseconds since 1970, and always later than what was written before: the order of moves
    /// is read from it, whatever the clock was set to.
    pub at_ms: u64,
}

impl MoveRecord {
    /// The same, its commit being on disk though not in the store. One that was decided otherwise stays so.
    fn committed(self) -> Self {
        match self.promise {
            Promise::Receiving => Self { promise: Promise::Committed, ..self },
            _ => self,
        }
    }
}

/// Why the journal failed. All of it is fatal to the step that needed it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store itself.
    #[error("the agent's journal failed ({0}); nothing was promised; check space and permissions of --state-dir")]
    Store(#[from] redb::Error),
    /// The commits' file.
    #[error(
        "the agent's file of commits failed ({0}); nothing was promised; check space and permissions of --state-dir"
    )]
    Commits(#[from] io::Error),
    /// A file of it that is not for this agent alone.
    #[error("the agent's journal is not used: {0}")]
    NotPrivate(#[from] NotPrivate),
    /// A value that does not read.
    #[error("the agent's journal holds a value this version cannot read ({0}); was it written by a newer agent?")]
    Value(#[from] serde_json::Error),
    /// Written by another version.
    #[error(
        "{path} has format {found}, this agent reads {oldest} to {known}; nothing was changed, guests run on; start the agent \
         that wrote it",
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
}

/// As the fabric reports it.
impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Self::new("JOURNAL", error.to_string())
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => { $(impl From<$error> for JournalError {
        fn from(error: $error) -> Self { Self::Store(error.into()) }
    })* };
}
from_redb!(redb::DatabaseError, redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// The journal. Every method that writes returns once the bytes are on disk.
#[derive(Debug, Clone)]
pub struct Journal {
    path: PathBuf,
    /// None: it could not be opened again.
    database: Arc<RwLock<Option<Database>>>,
    commits: Arc<Commits>,
    latest_ms: Arc<AtomicU64>,
    /// Moves written since the last clearing out.
    written: Arc<AtomicU64>,
}

impl Journal {
    /// Opens or creates it: a store at `path`, and beside it the file of commits. What committed before a crash is taken
    /// into the store.
    ///
    /// # Errors
    /// When it cannot be opened, is locked by another agent, is damaged, or was written by another version: see
    /// [`JournalError::Format`].
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let database = open_store(path)?;
        format::check(&database, path)?;
        let commits = Commits::open(&path.with_extension("commits"))?;
        let journal = Self {
            path: path.to_owned(),
            database: Arc::new(RwLock::new(Some(database))),
            commits: Arc::new(commits),
            latest_ms: Arc::default(),
            written: Arc::default(),
        };
        journal.write(|write| {
            write.open_table(GUESTS)?;
            write.open_table(MOVES)?;
            write.open_table(memory::GONE)?;
            format::put(write)
        })?;
        let latest = journal.moves()?.iter().map(|(_, record)| record.at_ms).max();
        journal.latest_ms.store(latest.unwrap_or_default(), Relaxed);
        Ok(journal)
    }

    /// Forgets what need not be kept, now and then. Owed after each move: an agent may run for years.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn clear_out_now_and_then(&self) -> Result<(), JournalError> {
        if self.written.load(Relaxed) < CLEAR_OUT_AFTER {
            return Ok(());
        }
        self.written.store(0, Relaxed);
        self.clear_out()
    }

    /// The time, or a little more where that would not be later than the last.
    fn stamp(&self) -> u64 {
        self.written.fetch_add(1, Relaxed);
        let now = now_ms();
        let later = |latest: u64| now.max(latest + 1);
        self.latest_ms.fetch_update(Relaxed, Relaxed, |latest| Some(later(latest))).map_or(now, later)
    }

    /// Works on the store. After a failed write, of a full disk above all, the store refuses everything until it is opened
    /// anew; what it had not made durable is not there then.
    fn on_store<T>(&self, work: impl Fn(&Database) -> Result<T, JournalError>) -> Result<T, JournalError> {
        match self.try_on_store(&work) {
            Err(JournalError::Store(redb::Error::PreviousIo | redb::Error::Corrupted(_))) => {
                self.open_again()?;
                self.try_on_store(&work)
            }
            done => done,
        }
    }

    fn try_on_store<T>(&self, work: impl Fn(&Database) -> Result<T, JournalError>) -> Result<T, JournalError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map_or(Err(JournalError::Store(redb::Error::PreviousIo)), work)
    }

    fn open_again(&self) -> Result<(), JournalError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: the file is locked for as long as it is open.
        *database = None;
        *database = Some(open_store(&self.path)?);
        Ok(())
    }

    /// One transaction, on disk when it returns. It first follows the commits that are not in the store yet, so that it
    /// sees them and comes after them.
    fn write<T>(&self, work: impl Fn(&WriteTransaction) -> Result<T, JournalError>) -> Result<T, JournalError> {
        self.on_store(|database| {
            let write = database.begin_write()?;
            let outstanding = self.commits.outstanding();
            for commit in &outstanding {
                follow(&write, commit)?;
            }
            let done = work(&write)?;
            write.commit()?;
            self.commits.followed(&outstanding);
            Ok(done)
        })
    }

    /// Guests this host owns.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn guests(&self) -> Result<Vec<OwnedGuest>, JournalError> {
        self.all(GUESTS).map(|all| all.into_iter().map(|(_, guest)| guest).collect())
    }

    /// Moves on record, by id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn moves(&self) -> Result<Vec<(String, MoveRecord)>, JournalError> {
        self.all(MOVES)
    }

    /// One move.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn find_move(&self, id: &str) -> Result<Option<MoveRecord>, JournalError> {
        // Asked first: what the store has followed by then is in the store.
        let committed = self.commits.has(id);
        let record: Option<MoveRecord> = self.one(MOVES, id)?;
        Ok(record.map(|record| if committed { record.committed() } else { record }))
    }

    /// This host owns the guest.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn own(&self, guest: &OwnedGuest) -> Result<(), JournalError> {
        self.write(|write| own(write, guest))
    }

    /// What this host has of a guest, if it owns it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn find_guest(&self, name: &GuestName) -> Result<Option<OwnedGuest>, JournalError> {
        self.one(GUESTS, name.as_str())
    }

    /// A guest of this host was stopped, or runs again. Of one that is not this host's nothing is noted.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn note_power(&self, name: &GuestName, runs: bool) -> Result<(), JournalError> {
        self.write(|write| match read_guest(write, name)? {
            Some(guest) if guest.stopped == runs => own(write, &OwnedGuest { stopped: !runs, ..guest }),
            Some(_) | None => Ok(()),
        })
    }

    /// A guest of this host is asked to shut down. Of one that is not this host's nothing is noted.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn note_asked(&self, name: &GuestName) -> Result<(), JournalError> {
        self.write(|write| match read_guest(write, name)? {
            Some(guest) if !guest.asked => own(write, &OwnedGuest { asked: true, ..guest }),
            Some(_) | None => Ok(()),
        })
    }

    /// This host owns a guest of its own at another generation. What was noted of its stop stands: that is another's to note.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn raise(&self, guest: &OwnedGuest) -> Result<(), JournalError> {
        self.write(|write| {
            let noted = read_guest(write, &guest.spec.name)?.map(|noted| (noted.stopped, noted.asked));
            let (stopped, asked) = noted.unwrap_or((guest.stopped, guest.asked));
            own(write, &OwnedGuest { stopped, asked, ..guest.clone() })
        })
    }

    /// This host does not own the guest after all: it never ran.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn disown(&self, name: &GuestName) -> Result<(), JournalError> {
        self.write(|write| disown(write, name))
    }

    /// Binds this host to `promise` in a move. A leaving gives up ownership of the guest in the same transaction; a give-up
    /// that comes when the move was undone meanwhile is none. A commit is for [`Journal::commit`].
    ///
    /// # Errors
    /// When it could not be made durable: then nothing was promised.
    pub fn promise(&self, id: &str, plan: Option<&MigrationPlan>, promise: Promise) -> Result<(), JournalError> {
        self.write(|write| {
            if promise == Promise::GivenUp && was_undone(write, id)? {
                return Ok(());
            }
            let record = MoveRecord { plan: plan.cloned(), promise, at_ms: self.stamp() };
            put_move(write, id, &record)?;
            match (promise, plan) {
                (Promise::Left, Some(plan)) => {
                    disown(write, &plan.guest.name)?;
                    memory::note_gone(write, &plan.guest.name, plan.generation.next())
                }
                _ => Ok(()),
            }
        })
    }

    /// The first word on a move binds this host. If one is on record already, gives that, and nothing is written: an answer
    /// once given does not change.
    ///
    /// # Errors
    /// When it could not be made durable: then nothing was promised.
    pub fn begin(
        &self,
        id: &str,
        plan: Option<&MigrationPlan>,
        promise: Promise,
    ) -> Result<Option<MoveRecord>, JournalError> {
        self.write(|write| {
            let known = read_move(write, id)?;
            if known.is_none() {
                put_move(write, id, &MoveRecord { plan: plan.cloned(), promise, at_ms: self.stamp() })?;
            }
            Ok(known)
        })
    }

    /// The destination's commit of a move it is [`Promise::Receiving`] in, with all done that need not wait for the decision.
    /// Dropped, it was nothing.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn begin_commit(&self, plan: &MigrationPlan) -> Result<PendingCommit, JournalError> {
        Ok(self.commits.begin(Commit { id: plan.id.clone(), generation: plan.generation.next() })?)
    }

    /// Takes commits into the store. Nobody waits for it: what it has not done a later transaction does.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn follow_commits(&self) -> Result<(), JournalError> {
        self.write(|_| Ok(()))
    }

    /// Forgets all but the newest ended moves, and of guests that are gone all but the newest.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn clear_out(&self) -> Result<(), JournalError> {
        self.forget_oldest_gone()?;
        let mut ended: Vec<_> = self.moves()?.into_iter().filter(|(_, record)| record.promise.ended()).collect();
        if ended.len() <= ENDED_KEPT {
            return Ok(());
        }
        ended.sort_by_key(|(_, record)| std::cmp::Reverse(record.at_ms));
        self.write(|write| {
            let mut moves = write.open_table(MOVES)?;
            for (id, _) in &ended[ENDED_KEPT..] {
                moves.remove(id.as_str())?;
            }
            Ok(())
        })
    }

    /// One value of a table. The table stays until it is read: a value of redb's does not keep the transaction, and without one a
    /// write takes the page from under it.
    fn one<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        key: &str,
    ) -> Result<Option<T>, JournalError> {
        self.on_store(|database| {
            let table = database.begin_read()?.open_table(table)?;
            let value = table.get(key)?;
            Ok(value.map(|value| serde_json::from_slice(value.value())).transpose()?)
        })
    }

    fn all<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
    ) -> Result<Vec<(String, T)>, JournalError> {
        self.on_store(|database| {
            let table = database.begin_read()?.open_table(table)?;
            let mut found = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                found.push((key.value().to_owned(), serde_json::from_slice(value.value())?));
            }
            Ok(found)
        })
    }
}

fn open_store(path: &Path) -> Result<Database, JournalError> {
    Ok(Builder::new().set_cache_size(CACHE).create_with_backend(FileBackend::new(private_file(path)?)?)?)
}

/// A commit that is on disk, into the store: a move this host was receiving is committed and its guest is this host's. Of
/// anything else the page is an old one.
fn follow(write: &WriteTransaction, commit: &Commit) -> Result<(), JournalError> {
    let record = read_move(write, &commit.id)?;
    let Some(MoveRecord { plan: Some(plan), promise: Promise::Receiving, at_ms }) = record else { return Ok(()) };
    if plan.generation.next() != commit.generation {
        return Ok(());
    }
    own(write, &owned_by_destination(&plan))?;
    put_move(write, &commit.id, &MoveRecord { plan: Some(plan), promise: Promise::Committed, at_ms })
}

fn own(write: &WriteTransaction, guest: &OwnedGuest) -> Result<(), JournalError> {
    write.open_table(GUESTS)?.insert(guest.spec.name.as_str(), encode(guest)?.as_slice())?;
    Ok(())
}

fn read_guest(write: &WriteTransaction, name: &GuestName) -> Result<Option<OwnedGuest>, JournalError> {
    let guests = write.open_table(GUESTS)?;
    let value = guests.get(name.as_str())?;
    Ok(value.map(|value| serde_json::from_slice(value.value())).transpose()?)
}

fn disown(write: &WriteTransaction, name: &GuestName) -> Result<(), JournalError> {
    write.open_table(GUESTS)?.remove(name.as_str())?;
    Ok(())
}

fn put_move(write: &WriteTransaction, id: &str, record: &MoveRecord) -> Result<(), JournalError> {
    write.open_table(MOVES)?.insert(id, encode(record)?.as_slice())?;
    Ok(())
}

fn read_move(write: &WriteTransaction, id: &str) -> Result<Option<MoveRecord>, JournalError> {
    let moves = write.open_table(MOVES)?;
    let value = moves.get(id)?;
    Ok(value.map(|value| serde_json::from_slice(value.value())).transpose()?)
}

fn was_undone(write: &WriteTransaction, id: &str) -> Result<bool, JournalError> {
    Ok(read_move(write, id)?.is_some_and(|record| record.promise == Promise::Declined))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, JournalError> {
    Ok(serde_json::to_vec(value)?)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_moves_outlives_a_clock_that_is_set_back() {
        let path = std::env::temp_dir().join(format!("throughline-journal-{}.redb", std::process::id()));
        let of = |journal: &Journal, id| journal.find_move(id).expect("read").expect("on record").at_ms;
        let ahead = now_ms() + 3_600_000;
        let journal = Journal::open(&path).expect("opened");
        let written = journal.write(|write| {
            put_move(write, "first", &MoveRecord { plan: None, promise: Promise::Declined, at_ms: ahead })
        });
        written.expect("written an hour ahead");
        drop(journal);
        let journal = Journal::open(&path).expect("opened again");
        for id in ["second", "third"] {
            journal.promise(id, None, Promise::Sending).expect("promised");
        }
        let order = [of(&journal, "first"), of(&journal, "second"), of(&journal, "third")];
        std::fs::remove_file(&path).expect("removed");
        std::fs::remove_file(path.with_extension("commits")).expect("removed");
        assert!(order.is_sorted_by(|before, after| before < after), "{order:?}");
    }

    #[test]
    fn old_moves_are_forgotten_while_the_agent_runs() {
        let directory = std::env::temp_dir().join(format!("throughline-journal-old-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let journal = Journal::open(&directory.join("journal.redb")).unwrap();
        let id = |n: usize| format!("m-{n}");
        let all = ENDED_KEPT + 2 * CLEAR_OUT_AFTER as usize;
        journal.promise("open", None, Promise::Sending).unwrap();
        let many = |from: usize, to: usize| {
            journal.write(|write| {
                for n in from..to {
                    put_move(
                        write,
                        &id(n),
                        &MoveRecord { plan: None, promise: Promise::Left, at_ms: journal.stamp() },
                    )?;
                }
                Ok(())
            })
        };
        many(0, all - 1).unwrap();
        journal.promise(&id(all - 1), None, Promise::Declined).unwrap();
        journal.clear_out_now_and_then().unwrap();
        let kept = journal.moves().unwrap();
        assert_eq!(kept.len(), ENDED_KEPT + 1);
        let has = |wanted: &str| kept.iter().any(|(id, _)| id == wanted);
        assert!(has("open") && has(&id(all - 1)) && !has(&id(0)), "what is open and what is new");
        journal.promise("one more", None, Promise::Left).unwrap();
        journal.clear_out_now_and_then().unwrap();
        assert_eq!(journal.moves().unwrap().len(), ENDED_KEPT + 2, "not each time");
        drop(journal);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_is_read_stays_while_it_is_overwritten() {
        let directory = std::env::temp_dir().join(format!("throughline-journal-race-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let journal = Journal::open(&directory.join("journal.redb")).unwrap();
        journal.promise("m", None, Promise::Sending).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..500 {
                    journal.promise("m", None, Promise::Sending).expect("written");
                }
            });
            while !writer.is_finished() {
                assert!(journal.find_move("m").expect("read").is_some());
            }
        });
        drop(journal);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_is_noted_of_a_stop_stands_until_the_guest_boots() {
        let directory = std::env::temp_dir().join(format!("throughline-journal-stop-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let journal = Journal::open(&directory.join("journal.redb")).unwrap();
        let boot = throughline_cutover::Boot { kernel: "/k".into(), initrd: String::new(), cmdline: String::new() };
        let (name, queues) = (&"web-1".parse::<GuestName>().unwrap(), throughline_cutover::Queues::ONE);
        let (ports, disks) = (Vec::new(), Vec::new());
        let spec = throughline_cutover::GuestSpec {
            name: name.clone(),
            vcpus: 1,
            queues,
            memory_kib: 262_136,
            boot,
            ports,
            disks,
            guest_agent: true,
        };
        let booted = OwnedGuest {
            spec,
            generation: throughline_cutover::Generation(3),
            vnis: Vec::new(),
            stopped: false,
            asked: false,
        };
        let noted = || journal.find_guest(name).unwrap().map(|it| (it.generation, it.stopped, it.asked));
        journal.note_asked(name).unwrap();
        assert_eq!(noted(), None, "it is nobody's");
        journal.own(&booted).unwrap();
        journal.note_asked(name).unwrap();
        let next = booted.generation.next();
        journal.raise(&OwnedGuest { generation: next, ..booted.clone() }).unwrap();
        assert_eq!(noted(), Some((next, false, true)));
        journal.note_power(name, false).unwrap();
        journal.raise(&OwnedGuest { generation: next.next(), ..booted.clone() }).unwrap();
        assert_eq!(noted(), Some((next.next(), true, true)));
        journal.own(&booted).unwrap();
        assert_eq!(noted(), Some((booted.generation, false, false)));
        drop(journal);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn the_first_word_on_a_move_stands() {
        let directory = std::env::temp_dir().join(format!("throughline-journal-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let journal = Journal::open(&directory.join("journal.redb")).unwrap();
        assert_eq!(journal.begin("m", None, Promise::Declined).unwrap(), None);
        let known = journal.begin("m", None, Promise::Sending).unwrap();
        assert_eq!(known.map(|record| record.promise), Some(Promise::Declined), "an order that comes late is refused");
        assert_eq!(journal.find_move("m").unwrap().map(|record| record.promise), Some(Promise::Declined));
        drop(journal);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
