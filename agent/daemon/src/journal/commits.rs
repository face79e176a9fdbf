//! Commits, made durable in one small write: the guest stands still for as long as it takes.
//!
//! The store's own transactions take milliseconds. A commit is one page into a file that was made at its full size, and one
//! `fdatasync`, which has no metadata to write. The store follows with its next transaction; until then, and after a crash,
//! what is here counts. A page that was not written whole does not read, and nobody was told of it.
//!
//! The first write after a while takes a millisecond or more: page, inode and code have gone cold. So a commit is drafted while
//! the guest still runs: the same page, on disk, but for the one byte that makes it count. Until it is decided the draft is
//! written again and again, which keeps the way warm.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use throughline_confine::private_file;
use throughline_cutover::Generation;
use tracing::warn;

use super::JournalError;
use crate::lock::lock;

/// Moves that may commit before the store has followed: the datapath moves no more ports at one time.
const PAGES: u64 = 64;
/// What a disk writes whole or not at all, as a rule; the checksum is for the exception.
pub const PAGE: usize = 4096;
const MAGIC: [u8; 4] = *b"TLc1";
/// What a page of any format begins with; the digit that follows is the format.
const FAMILY: [u8; 3] = *b"TLc";
/// What a page begins with that is written ahead of its commit: it counts for nothing.
const DRAFT: [u8; 4] = *b"TLcd";
/// Magic, length, checksum.
const HEADER: usize = 12;

/// What a page says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Commit {
    /// The migration.
    pub(super) id: String,
    /// The generation this host owns the guest at.
    pub(super) generation: Generation,
}

/// How soon a page of which nobody knows whether it counts is written over again.
const TAKE_BACK_AGAIN: Duration = Duration::from_millis(100);

/// The file, and what its pages are in use for.
#[derive(Debug)]
pub(super) struct Commits {
    path: PathBuf,
    pages: Mutex<Pages>,
}

/// Pages in use, by number.
#[derive(Debug, Default)]
struct Pages {
    /// The store has not followed them yet.
    outstanding: Vec<(u64, Commit)>,
    /// Those of [`PendingCommit`] commits.
    taken: Vec<u64>,
}

impl Pages {
    fn take(&mut self) -> io::Result<u64> {
        let outstanding = self.outstanding.iter().map(|(number, _)| number);
        let in_use: Vec<_> = outstanding.chain(&self.taken).copied().collect();
        let free = (0..PAGES).find(|number| !in_use.contains(number));
        let number =
            free.ok_or_else(|| io::Error::other("every page for commits is taken; the store does not follow"))?;
        self.taken.push(number);
        Ok(number)
    }
}

/// A commit that may come to be. Dropped, it does not.
#[derive(Debug)]
pub struct PendingCommit {
    commits: Arc<Commits>,
    /// Opened for it alone: the kernel reports what could not be written once to each opening, and not to whoever wrote it.
    file: File,
    number: u64,
    commit: Commit,
}

/// What became of a page.
#[derive(Debug)]
enum Put {
    /// It is on disk.
    Done,
    /// It is what it was.
    Untouched(io::Error),
    /// It may be either.
    Unknown(io::Error),
}

impl PendingCommit {
    /// Writes all of the commit but what makes it one: [`PendingCommit::write`] then takes less of the guest's time.
    ///
    /// # Errors
    /// When it cannot be written. The commit may still succeed.
    pub fn draft(&self) -> Result<(), JournalError> {
        match self.put(DRAFT) {
            Put::Done => Ok(()),
            Put::Untouched(error) | Put::Unknown(error) => Err(error.into()),
        }
    }

    /// Writes the draft over itself, to no disk: the write that counts is then none after a long while. A failure costs time only.
    pub fn keep_warm(&self) {
        if let Ok(page) = encode(DRAFT, &self.commit) {
            let _ = self.file.write_at(&page, self.at());
        }
    }

    /// Makes it durable: from now on this host owns the guest. [`super::Journal::follow_commits`] is owed soon after.
    ///
    /// # Errors
    /// When it could not be made durable. It then does not count, now or after a crash; until that is so this does not return.
    pub fn write(self) -> Result<(), JournalError> {
        write_or_take_back(|magic| self.put(magic), || std::thread::sleep(TAKE_BACK_AGAIN))?;
        lock(&self.commits.pages).outstanding.push((self.number, self.commit.clone()));
        Ok(())
    }

    fn at(&self) -> u64 {
        self.number * PAGE as u64
    }

    fn put(&self, magic: [u8; 4]) -> Put {
        let page = match encode(magic, &self.commit) {
            Ok(page) => page,
            Err(error) => return Put::Untouched(error),
        };
        match self.file.write_at(&page, self.at()) {
            Err(error) => Put::Untouched(error),
            Ok(PAGE) => self.file.sync_data().map_or_else(Put::Unknown, |()| Put::Done),
            Ok(_) => Put::Unknown(io::ErrorKind::WriteZero.into()),
        }
    }
}

impl Drop for PendingCommit {
    fn drop(&mut self) {
        lock(&self.commits.pages).taken.retain(|taken| *taken != self.number);
    }
}

/// Who is told that a commit failed lets the guest run elsewhere: it must not be found on disk later.
fn write_or_take_back(mut put: impl FnMut([u8; 4]) -> Put, mut wait: impl FnMut()) -> io::Result<()> {
    match put(MAGIC) {
        Put::Done => Ok(()),
        Put::Untouched(error) => Err(error),
        Put::Unknown(error) => {
            while let Put::Untouched(again) | Put::Unknown(again) = put(DRAFT) {
                warn!(%error, %again, "a commit may or may not be on disk; its migration waits until this is known");
                wait();
            }
            Err(error)
        }
    }
}

impl Commits {
    /// Opens or makes the file. What reads in it may be outstanding: the store knows.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let file = private_file(path)?;
        let size = PAGES * PAGE as u64;
        if file.metadata()?.len() != size {
            // Written, not just sized: a hole would be filled, which is metadata, at the first commit.
            file.set_len(0)?;
            file.write_all_at(&vec![0; PAGES as usize * PAGE], 0)?;
            file.sync_all()?;
            path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())?;
        }
        let mut outstanding = Vec::new();
        for number in 0..PAGES {
            let mut page = [0; PAGE];
            file.read_exact_at(&mut page, number * PAGE as u64)?;
            if page[..3] == FAMILY && page[3] != MAGIC[3] && page[3].is_ascii_digit() {
                let [found, known] = [page[3], MAGIC[3]].map(|digit| u64::from(digit - b'0'));
                return Err(JournalError::Format { path: path.to_owned(), found, oldest: known, known });
            }
            outstanding.extend(decode(&page).map(|commit| (number, commit)));
        }
        Ok(Self { path: path.to_owned(), pages: Mutex::new(Pages { outstanding, taken: Vec::new() }) })
    }

    /// Sets a page aside for a commit.
    pub(super) fn begin(self: &Arc<Self>, commit: Commit) -> io::Result<PendingCommit> {
        let file = File::options().write(true).open(&self.path)?;
        let number = lock(&self.pages).take()?;
        Ok(PendingCommit { commits: self.clone(), file, number, commit })
    }

    /// Commits the store has not followed yet.
    pub(super) fn outstanding(&self) -> Vec<Commit> {
        lock(&self.pages).outstanding.iter().map(|(_, commit)| commit.clone()).collect()
    }

    /// Whether that migration's commit is one of them.
    pub(super) fn has(&self, id: &str) -> bool {
        lock(&self.pages).outstanding.iter().any(|(_, commit)| commit.id == id)
    }

    /// The store has followed these; their pages may be used again. What they say stays until then, and is known already.
    pub(super) fn followed(&self, commits: &[Commit]) {
        lock(&self.pages).outstanding.retain(|(_, commit)| !commits.contains(commit));
    }
}

fn encode(magic: [u8; 4], commit: &Commit) -> io::Result<[u8; PAGE]> {
    let body = serde_json::to_vec(commit)?;
    let mut page = [0; PAGE];
    let Some(place) = page.get_mut(HEADER..HEADER + body.len()) else {
        return Err(io::Error::other("a commit's migration id is longer than a page"));
    };
    place.copy_from_slice(&body);
    page[..4].copy_from_slice(&magic);
    page[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    page[8..HEADER].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
    Ok(page)
}

/// What a page of the file of commits says, whatever wrote it: the migration, and the generation this host owns the guest at.
pub fn read_page(page: &[u8; PAGE]) -> Option<(String, Generation)> {
    decode(page).map(|commit| (commit.id, commit.generation))
}

fn decode(page: &[u8; PAGE]) -> Option<Commit> {
    let word = |at: usize| page[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    let body = page.get(HEADER..HEADER + word(4)? as usize)?;
    (page[..4] == MAGIC && crc32fast::hash(body) == word(8)?).then(|| serde_json::from_slice(body).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(id: &str) -> Commit {
        Commit { id: id.to_owned(), generation: Generation(7) }
    }

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("throughline-commits-{}-{test}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn open(file: &Scratch) -> Arc<Commits> {
        Arc::new(Commits::open(&file.0).unwrap())
    }

    fn write(commits: &Arc<Commits>, id: &str) {
        commits.begin(commit(id)).unwrap().write().unwrap();
    }

    #[test]
    fn what_was_written_is_there_after_a_crash() {
        let file = Scratch::new("crash");
        let commits = open(&file);
        assert_eq!(commits.outstanding(), []);
        write(&commits, "a");
        write(&commits, "b");
        drop(commits);
        let commits = open(&file);
        assert_eq!(commits.outstanding(), [commit("a"), commit("b")]);
        assert!(commits.has("a") && !commits.has("c"));
    }

    #[test]
    fn a_torn_page_is_no_commit() {
        let whole = encode(MAGIC, &commit("a")).unwrap();
        assert_eq!(decode(&whole), Some(commit("a")));
        for torn_at in 0..HEADER + 20 {
            let mut page = [0; PAGE];
            page[..torn_at].copy_from_slice(&whole[..torn_at]);
            assert_eq!(decode(&page), None, "torn at {torn_at}");
        }
        let mut far = whole;
        far[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&far), None, "a length beyond the page");
    }

    #[test]
    fn a_draft_is_no_commit_and_becomes_one_by_a_byte() {
        let file = Scratch::new("draft");
        let commits = open(&file);
        let [a, b, forgotten] = ["a", "b", "forgotten"].map(|id| commits.begin(commit(id)).unwrap());
        [&a, &b, &forgotten].into_iter().for_each(|pending| pending.draft().unwrap());
        drop(forgotten);
        let drafted = std::fs::read(&file.0).unwrap();
        [&a, &b].into_iter().for_each(PendingCommit::keep_warm);
        assert_eq!(std::fs::read(&file.0).unwrap(), drafted, "written over with what it says");
        assert_eq!(open(&file).outstanding(), [], "nothing counts yet");
        b.write().unwrap();
        let written = std::fs::read(&file.0).unwrap();
        let changed: Vec<_> = (0..written.len()).filter(|at| written[*at] != drafted[*at]).collect();
        assert_eq!(changed, [PAGE + 3], "on the page drafted for it");
        write(&commits, "c");
        drop(a);
        assert_eq!(open(&file).outstanding(), [commit("b"), commit("c")], "a was only drafted");
    }

    #[test]
    fn a_commit_that_failed_is_not_found_later() {
        let error = || io::Error::other("the disk is ill");
        let play = |answers: Vec<Put>| {
            let (mut said, mut waits, mut answers) = (Vec::new(), 0, answers.into_iter());
            let put = |magic| {
                said.push(magic);
                answers.next().unwrap()
            };
            let outcome = write_or_take_back(put, || waits += 1);
            assert!(answers.next().is_none(), "it ends too soon: {said:?}");
            (outcome.is_ok(), said, waits)
        };
        assert_eq!(play(vec![Put::Done]), (true, vec![MAGIC], 0));
        assert_eq!(
            play(vec![Put::Untouched(error())]),
            (false, vec![MAGIC], 0),
            "the guest does not wait for a full disk"
        );
        assert_eq!(
            play(vec![Put::Unknown(error()), Put::Untouched(error()), Put::Unknown(error()), Put::Done]),
            (false, vec![MAGIC, DRAFT, DRAFT, DRAFT], 2)
        );
    }

    #[test]
    fn pages_are_used_again_once_the_store_has_followed() {
        let file = Scratch::new("again");
        let commits = open(&file);
        for number in 0..PAGES {
            write(&commits, &number.to_string());
        }
        assert!(commits.begin(commit("one too many")).is_err());
        commits.followed(&[commit("3")]);
        write(&commits, "in its place");
        assert!(!commits.has("3") && commits.has("in its place"));
    }
}
