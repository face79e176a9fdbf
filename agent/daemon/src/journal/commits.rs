//! Commits, made durable in one small write: the guest stands still for as long as it takes.
//!
//! The store's own transactions take milliseconds. A commit is one page into a file that was made at its full size, and one
//! `fdatasync`, which has no metadata to write. The store follows with its next transaction; until then, and after a crash,
//! what is here counts. A page that was not written whole does not read, and nobody was told of it.
//!
//! The first write after a while takes a millisecond or more: page, inode and code have gone cold. So a commit is drafted while
//! memory is still coming: the same page, on disk, but for the one byte that makes it count.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::Mutex};

use serde::{Deserialize, Serialize};
use throughline_confine::private_file;
use throughline_cutover::Generation;

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

/// The file, and what its pages are in use for.
#[derive(Debug)]
pub(super) struct Commits {
    file: File,
    pages: Mutex<Pages>,
}

/// Pages in use, by number.
#[derive(Debug, Default)]
struct Pages {
    /// The store has not followed them yet.
    outstanding: Vec<(u64, Commit)>,
    /// Being written, or drafted.
    taken: Vec<(u64, Commit)>,
}

impl Pages {
    /// The page drafted for it, or a free one.
    fn take(&mut self, commit: &Commit) -> io::Result<u64> {
        if let Some((number, _)) = self.taken.iter().find(|(_, drafted)| drafted == commit) {
            return Ok(*number);
        }
        let in_use = |number: &u64| self.outstanding.iter().chain(&self.taken).any(|(used, _)| used == number);
        let free = (0..PAGES).find(|number| !in_use(number));
        let number =
            free.ok_or_else(|| io::Error::other("every page for commits is taken; the store does not follow"))?;
        self.taken.push((number, commit.clone()));
        Ok(number)
    }

    fn give_back(&mut self, commit: &Commit) -> Option<(u64, Commit)> {
        let at = self.taken.iter().position(|(_, taken)| taken == commit)?;
        Some(self.taken.swap_remove(at))
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
        Ok(Self { file, pages: Mutex::new(Pages { outstanding, taken: Vec::new() }) })
    }

    /// Makes a commit durable.
    pub(super) fn write(&self, commit: Commit) -> io::Result<()> {
        let number = lock(&self.pages).take(&commit)?;
        let written = self.put(number, &MAGIC, &commit);
        let mut pages = lock(&self.pages);
        let taken = pages.give_back(&commit);
        if written.is_ok() {
            pages.outstanding.extend(taken);
        }
        written
    }

    /// Writes all of a commit but what makes it one. [`Commits::write`] or [`Commits::forget_draft`] is owed.
    pub(super) fn draft(&self, commit: &Commit) -> io::Result<()> {
        let number = lock(&self.pages).take(commit)?;
        self.put(number, &DRAFT, commit)
    }

    /// It will not be written.
    pub(super) fn forget_draft(&self, commit: &Commit) {
        lock(&self.pages).give_back(commit);
    }

    fn put(&self, number: u64, magic: &[u8; 4], commit: &Commit) -> io::Result<()> {
        self.file.write_all_at(&encode(magic, commit)?, number * PAGE as u64)?;
        self.file.sync_data()
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

fn encode(magic: &[u8; 4], commit: &Commit) -> io::Result<[u8; PAGE]> {
    let body = serde_json::to_vec(commit)?;
    let mut page = [0; PAGE];
    let Some(place) = page.get_mut(HEADER..HEADER + body.len()) else {
        return Err(io::Error::other("a commit's migration id is longer than a page"));
    };
    place.copy_from_slice(&body);
    page[..4].copy_from_slice(magic);
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

    #[test]
    fn what_was_written_is_there_after_a_crash() {
        let file = Scratch::new("crash");
        let commits = Commits::open(&file.0).unwrap();
        assert_eq!(commits.outstanding(), []);
        commits.write(commit("a")).unwrap();
        commits.write(commit("b")).unwrap();
        drop(commits);
        let commits = Commits::open(&file.0).unwrap();
        assert_eq!(commits.outstanding(), [commit("a"), commit("b")]);
        assert!(commits.has("a") && !commits.has("c"));
    }

    #[test]
    fn a_torn_page_is_no_commit() {
        let whole = encode(&MAGIC, &commit("a")).unwrap();
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
        let commits = Commits::open(&file.0).unwrap();
        for id in ["a", "b", "forgotten"] {
            commits.draft(&commit(id)).unwrap();
        }
        commits.forget_draft(&commit("forgotten"));
        let drafted = std::fs::read(&file.0).unwrap();
        assert_eq!(Commits::open(&file.0).unwrap().outstanding(), [], "nothing counts yet");
        commits.write(commit("b")).unwrap();
        let written = std::fs::read(&file.0).unwrap();
        let changed: Vec<_> = (0..written.len()).filter(|at| written[*at] != drafted[*at]).collect();
        assert_eq!(changed, [PAGE + 3], "on the page drafted for it");
        commits.write(commit("c")).unwrap();
        drop(commits);
        assert_eq!(Commits::open(&file.0).unwrap().outstanding(), [commit("b"), commit("c")], "a is only drafted");
    }

    #[test]
    fn pages_are_used_again_once_the_store_has_followed() {
        let file = Scratch::new("again");
        let commits = Commits::open(&file.0).unwrap();
        for number in 0..PAGES {
            commits.write(commit(&number.to_string())).unwrap();
        }
        assert!(commits.write(commit("one too many")).is_err());
        commits.followed(&[commit("3")]);
        commits.write(commit("in its place")).unwrap();
        assert!(!commits.has("3") && commits.has("in its place"));
    }
}
