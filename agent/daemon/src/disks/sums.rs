//! SHA-256 of images, each for as long as the file is what it was. An image may have many gigabytes: it is read once, whoever asks
//! meanwhile, and what was found is noted on disk, so that the next agent need not read it again; nor need it after the host
//! was down, where file systems keep their numbers (not NFS, not btrfs).

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::lock::lock;

/// Where they are noted, among guests' disks; no guest has such a name.
const NOTED: &str = ".image-sums";
const NEW: &str = ".image-sums.new";
/// What is read at a time, bytes.
const PIECE: usize = 1 << 20;
/// Sums that are kept, of all images that were ever asked for.
const MOST_KEPT: usize = 256;
/// How often it is looked whether it is still the same, in pieces.
const LOOK_EVERY: u64 = 256;
/// Longer than a tick of the clock that the kernel dates files by: what is written after it is dated otherwise than what was written before.
/// A file system that dates to the second (ext4 with small inodes) does not tell that.
const TICK: Duration = Duration::from_millis(20);

/// SHA-256 of an image.
pub type Sum = [u8; 32];

/// What changes when a file does: device, number, length, and when it was written and changed, to the nanosecond.
type Stamp = [i128; 7];

/// Why an image's sum is not known.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum NoSum {
    /// It is being read, for longer than whoever asks can wait.
    #[error("this host is reading what it is, {read} of {of} bytes by now; try again when it has{}", in_about(*rest))]
    BeingRead {
        /// Bytes so far.
        read: u64,
        /// Bytes in all.
        of: u64,
        /// How long the others take at the rate of those, if that can be said.
        rest: Option<Duration>,
    },
    /// It is not the file any more that it was when it was opened.
    #[error("it was changed while this host read what it is; try again when nobody writes to it")]
    Changed,
    /// The system refused.
    #[error("it cannot be read: {0}")]
    Io(Arc<io::Error>),
}

impl From<io::Error> for NoSum {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// All sums that are known or being found.
#[derive(Debug, Clone)]
pub(super) struct Sums(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    known: Mutex<Known>,
    /// Whoever has it writes the note.
    noting: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// The oldest first.
    sums: VecDeque<(Stamp, Sum)>,
    readings: HashMap<Stamp, Arc<Reading>>,
}

/// An image that is being read.
#[derive(Debug)]
struct Reading {
    began: Instant,
    read: AtomicU64,
    ended: Mutex<Option<Result<Sum, NoSum>>>,
    ends: Condvar,
}

impl Sums {
    /// Those noted in a directory.
    pub(super) fn noted_in(directory: &Path) -> Self {
        let noted = directory.join(NOTED);
        let lines = fs::read_to_string(&noted).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                warn!(%error, path = %noted.display(), "what is noted of images is not read; the images are");
            }
            String::new()
        });
        let known = Known { sums: lines.lines().filter_map(parse).collect(), ..Known::default() };
        let directory = directory.to_owned();
        Self(Arc::new(Shared { directory, known: Mutex::new(known), noting: Mutex::default() }))
    }

    /// The sum of an image that is open. Whoever asks can wait `until` then; it is read on after that, for who asks next.
    pub(super) fn of(&self, file: &File, until: Instant) -> Result<Sum, NoSum> {
        let found = file.metadata()?;
        let stamp = stamp(&found);
        let reading = {
            let mut known = lock(&self.0.known);
            if let Some((_, sum)) = known.sums.iter().find(|(of, _)| *of == stamp) {
                return Ok(*sum);
            }
            match known.readings.get(&stamp) {
                Some(reading) => reading.clone(),
                None => self.begin(&mut known, file.try_clone()?, stamp)?,
            }
        };
        reading.wait(until).unwrap_or_else(|| Err(reading.how_far(found.len())))
    }

    fn begin(&self, known: &mut Known, file: File, stamp: Stamp) -> io::Result<Arc<Reading>> {
        let reading = Arc::new(Reading::new());
        let (sums, its) = (self.clone(), reading.clone());
        let read = move || {
            let ended = its.read(&file, stamp);
            sums.end(stamp, ended.as_ref().ok());
            its.tell(ended);
        };
        thread::Builder::new().name("image-sum".to_owned()).spawn(read)?;
        known.readings.insert(stamp, reading.clone());
        Ok(reading)
    }

    /// A reading has ended; what was found is kept, and noted.
    fn end(&self, stamp: Stamp, found: Option<&Sum>) {
        {
            let mut known = lock(&self.0.known);
            known.readings.remove(&stamp);
            let Some(sum) = found else { return };
            // What the file was before is nobody's any more.
            known.sums.retain(|(of, _)| of[..2] != stamp[..2]);
            if known.sums.len() >= MOST_KEPT {
                known.sums.pop_front();
            }
            known.sums.push_back((stamp, *sum));
        }
        if let Err(error) = self.note() {
            let path = self.0.directory.join(NOTED);
            warn!(%error, path = %path.display(), "what an image is is not noted; the next agent reads it again");
        }
    }

    fn note(&self) -> io::Result<()> {
        let _mine = lock(&self.0.noting);
        let lines: String = lock(&self.0.known).sums.iter().map(line).collect();
        let (new, noted) = (self.0.directory.join(NEW), self.0.directory.join(NOTED));
        fs::write(&new, lines)?;
        fs::rename(new, noted)
    }
}

impl Reading {
    fn new() -> Self {
        Self { began: Instant::now(), read: AtomicU64::new(0), ended: Mutex::new(None), ends: Condvar::new() }
    }

    fn read(&self, file: &File, before: Stamp) -> Result<Sum, NoSum> {
        thread::sleep(TICK);
        // What is noted of it outlives a crash of the host; so must what is read. Where nothing can be written, nothing has to be.
        match file.sync_all().map_err(|error| (error.kind(), error)) {
            Ok(()) | Err((io::ErrorKind::InvalidInput | io::ErrorKind::ReadOnlyFilesystem, _)) => {}
            Err((_, error)) => return Err(error.into()),
        }
        let is_same = || Ok::<_, io::Error>(stamp(&file.metadata()?) == before);
        let (mut hasher, mut room, mut at) = (Sha256::new(), vec![0; PIECE], 0);
        for piece in 1.. {
            // By offset: the descriptor is its opener's too.
            let count = file.read_at(&mut room, at)?;
            if count == 0 {
                break;
            }
            if piece % LOOK_EVERY == 0 && !is_same()? {
                return Err(NoSum::Changed);
            }
            hasher.update(&room[..count]);
            at += count as u64;
            self.read.store(at, Ordering::Relaxed);
        }
        if is_same()? { Ok(hasher.finalize().into()) } else { Err(NoSum::Changed) }
    }

    fn tell(&self, ended: Result<Sum, NoSum>) {
        *lock(&self.ended) = Some(ended);
        self.ends.notify_all();
    }

    /// What it came to, by then.
    fn wait(&self, until: Instant) -> Option<Result<Sum, NoSum>> {
        let patience = until.saturating_duration_since(Instant::now());
        let waited = self.ends.wait_timeout_while(lock(&self.ended), patience, |ended| ended.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn how_far(&self, of: u64) -> NoSum {
        let read = self.read.load(Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs_f64() * of.saturating_sub(read) as f64 / read as f64;
        NoSum::BeingRead { read, of, rest: Duration::try_from_secs_f64(seconds).ok() }
    }
}

fn in_about(rest: Option<Duration>) -> String {
    rest.map(|rest| format!(", in about {} s", rest.as_secs() + 1)).unwrap_or_default()
}

fn stamp(found: &Metadata) -> Stamp {
    [
        found.dev().into(),
        found.ino().into(),
        found.len().into(),
        found.mtime().into(),
        found.mtime_nsec().into(),
        found.ctime().into(),
        found.ctime_nsec().into(),
    ]
}

/// Numbers of the stamp, then the sum.
fn line((stamp, sum): &(Stamp, Sum)) -> String {
    let stamp: String = stamp.iter().map(|number| format!("{number} ")).collect();
    stamp + &hex(sum) + "\n"
}

fn parse(line: &str) -> Option<(Stamp, Sum)> {
    let mut words = line.split(' ');
    let mut stamp = Stamp::default();
    for number in &mut stamp {
        *number = words.next()?.parse().ok()?;
    }
    let sum = unhex(words.next()?)?;
    words.next().is_none().then_some((stamp, sum))
}

/// A sum in digits.
pub(super) fn hex(sum: &Sum) -> String {
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sum with these digits.
pub(super) fn unhex(digits: &str) -> Option<Sum> {
    let mut sum = Sum::default();
    if digits.len() != 2 * sum.len() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in sum.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    fn later() -> Instant {
        now() + Duration::from_secs(60)
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("throughline-sums-{name}-{}", std::process::id()));
            fs::create_dir(&directory).unwrap();
            Self(directory)
        }

        fn write(&self, words: &str) -> File {
            fs::write(self.0.join("image"), words).unwrap();
            File::open(self.0.join("image")).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn known(sums: &Sums) -> usize {
        lock(&sums.0.known).sums.len()
    }

    #[test]
    fn a_sum_is_kept_for_as_long_as_the_file_is_the_same() {
        let scratch = Scratch::new("same");
        let sums = Sums::noted_in(&scratch.0);
        let file = scratch.write("one");
        let one = sums.of(&file, later()).unwrap();
        assert_eq!(hex(&one), "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed");
        assert_eq!(sums.of(&file, now()).unwrap(), one);
        let two = scratch.write("two");
        assert_ne!(sums.of(&two, later()).unwrap(), one);
        assert_eq!(known(&sums), 1, "what it was before is forgotten");
    }

    #[test]
    fn who_cannot_wait_is_told_how_far_it_is() {
        let reading = Reading::new();
        assert!(reading.wait(now()).is_none());
        let words = reading.how_far(8 << 30).to_string();
        assert!(words.ends_with("0 of 8589934592 bytes by now; try again when it has"), "{words}");
        reading.read.store(2 << 30, Ordering::Relaxed);
        let words = reading.how_far(8 << 30).to_string();
        assert!(
            words.ends_with("2147483648 of 8589934592 bytes by now; try again when it has, in about 1 s"),
            "{words}"
        );
        reading.tell(Ok(Sum::default()));
        assert!(matches!(reading.wait(now()), Some(Ok(_))));
    }

    #[test]
    fn what_is_noted_outlives_the_agent_and_what_is_no_note_is_passed_over() {
        let scratch = Scratch::new("noted");
        let file = scratch.write("an image");
        let sum = Sums::noted_in(&scratch.0).of(&file, later()).unwrap();
        let noted = fs::read_to_string(scratch.0.join(NOTED)).unwrap();
        assert_eq!(Sums::noted_in(&scratch.0).of(&file, now()).unwrap(), sum);

        let none = format!("\0\0\0\n{}\nx {noted}{}", &noted[..40], &noted[..noted.len() - 3]);
        fs::write(scratch.0.join(NOTED), none).unwrap();
        assert_eq!(known(&Sums::noted_in(&scratch.0)), 0);
        fs::write(scratch.0.join(NOTED), format!("torn\n{noted}")).unwrap();
        assert_eq!(known(&Sums::noted_in(&scratch.0)), 1);
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_has_no_sum() {
        let scratch = Scratch::new("changed");
        let file = scratch.write("before");
        let (sums, before) = (Sums::noted_in(&scratch.0), stamp(&file.metadata().unwrap()));
        thread::sleep(TICK);
        scratch.write("after.");
        let (reading, changed) = (Reading::new(), Reading::new());
        assert!(matches!(changed.read(&file, before), Err(NoSum::Changed)));
        assert!(reading.read(&file, stamp(&file.metadata().unwrap())).is_ok());
        sums.end(before, None);
        assert_eq!((known(&sums), scratch.0.join(NOTED).exists()), (0, false));
    }
}
