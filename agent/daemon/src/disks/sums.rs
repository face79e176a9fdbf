//! SHA-256 of images, each for as long as the file is what it was. An image may have many gigabytes: it is read once, whoever asks
//! meanwhile, and what was found is noted on disk, so that neither an agent nor a host that starts again has to read it again.

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
/// Longer than a tick of the clock that the kernel dates files by: what is written after it is dated otherwise than what was written before.
const TICK: Duration = Duration::from_millis(20);

/// SHA-256 of an image.
pub type Sum = [u8; 32];

/// What changes when a file does: device, number, length, and when it was written and changed, to the nanosecond.
type Stamp = [i128; 7];

/// Why an image's sum is not known.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum NoSum {
    /// It is being read, for longer than whoever asks can wait.
    #[error(
        "this host reads it for the first time, {read} of {of} bytes by now; try again when it has, in about {} s", rest.as_secs() + 1
    )]
    BeingRead {
        /// Bytes so far.
        read: u64,
        /// Bytes in all.
        of: u64,
        /// How long the others take at the rate of those.
        rest: Duration,
    },
    /// It is not the file any more that it was when it was opened.
    #[error("it was changed while it was read; try again")]
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
pub(super) struct Sums(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    directory: PathBuf,
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
        let (directory, sums) = (directory.to_owned(), lines.lines().filter_map(parse).collect());
        Self(Arc::new(Mutex::new(Known { directory, sums, readings: HashMap::new() })))
    }

    /// The sum of an image that is open. `patience`: how long whoever asks can wait; it is read on after that, for who asks next.
    pub(super) fn of(&self, file: &File, patience: Duration) -> Result<Sum, NoSum> {
        let found = file.metadata()?;
        let stamp = stamp(&found);
        let reading = {
            let mut known = lock(&self.0);
            if let Some((_, sum)) = known.sums.iter().find(|(of, _)| *of == stamp) {
                return Ok(*sum);
            }
            match known.readings.get(&stamp) {
                Some(reading) => reading.clone(),
                None => self.begin(&mut known, file.try_clone()?, stamp)?,
            }
        };
        reading.wait(patience).unwrap_or_else(|| Err(reading.how_far(found.len())))
    }

    fn begin(&self, known: &mut Known, file: File, stamp: Stamp) -> io::Result<Arc<Reading>> {
        let (read, ended) = (AtomicU64::new(0), Mutex::new(None));
        let reading = Arc::new(Reading { began: Instant::now(), read, ended, ends: Condvar::new() });
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

    /// A reading has ended; what was found is noted.
    fn end(&self, stamp: Stamp, found: Option<&Sum>) {
        let mut known = lock(&self.0);
        known.readings.remove(&stamp);
        let Some(sum) = found else { return };
        if known.sums.len() >= MOST_KEPT {
            known.sums.pop_front();
        }
        known.sums.push_back((stamp, *sum));
        if let Err(error) = known.note() {
            warn!(%error, path = %known.directory.join(NOTED).display(), "an image's sum is not noted; it is read again after this agent");
        }
    }
}

impl Known {
    fn note(&self) -> io::Result<()> {
        let (new, noted) = (self.directory.join(NEW), self.directory.join(NOTED));
        fs::write(&new, self.sums.iter().map(line).collect::<String>())?;
        fs::rename(new, noted)
    }
}

impl Reading {
    fn read(&self, file: &File, before: Stamp) -> Result<Sum, NoSum> {
        thread::sleep(TICK);
        let (mut hasher, mut room, mut at) = (Sha256::new(), vec![0; PIECE], 0);
        // By offset: the descriptor is its opener's too.
        loop {
            let count = file.read_at(&mut room, at)?;
            if count == 0 {
                break;
            }
            hasher.update(&room[..count]);
            at += count as u64;
            self.read.store(at, Ordering::Relaxed);
        }
        let same = stamp(&file.metadata()?) == before;
        if same { Ok(hasher.finalize().into()) } else { Err(NoSum::Changed) }
    }

    fn tell(&self, ended: Result<Sum, NoSum>) {
        *lock(&self.ended) = Some(ended);
        self.ends.notify_all();
    }

    /// What it came to, within that time.
    fn wait(&self, patience: Duration) -> Option<Result<Sum, NoSum>> {
        let waited = self.ends.wait_timeout_while(lock(&self.ended), patience, |ended| ended.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn how_far(&self, of: u64) -> NoSum {
        let read = self.read.load(Ordering::Relaxed);
        let rest = self.began.elapsed().mul_f64(of.saturating_sub(read) as f64 / read.max(1) as f64);
        NoSum::BeingRead { read, of, rest }
    }
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

    const LONG: Duration = Duration::from_secs(60);

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
        lock(&sums.0).sums.len()
    }

    #[test]
    fn a_sum_is_kept_for_as_long_as_the_file_is_the_same() {
        let scratch = Scratch::new("same");
        let sums = Sums::noted_in(&scratch.0);
        let file = scratch.write("one");
        let one = sums.of(&file, LONG).unwrap();
        assert_eq!(hex(&one), "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed");
        assert_eq!((sums.of(&file, Duration::ZERO).unwrap(), known(&sums)), (one, 1));
        let two = scratch.write("two");
        assert_ne!(sums.of(&two, LONG).unwrap(), one);
    }

    #[test]
    fn who_cannot_wait_is_told_and_the_next_finds_it_read() {
        let scratch = Scratch::new("patience");
        let sums = Sums::noted_in(&scratch.0);
        let file = scratch.write("an image");
        let told = sums.of(&file, Duration::ZERO);
        assert!(matches!(told, Err(NoSum::BeingRead { of: 8, .. })), "{told:?}");
        let sum = sums.of(&file, LONG).unwrap();
        assert_eq!((sums.of(&file, Duration::ZERO).unwrap(), known(&sums)), (sum, 1), "once");
    }

    #[test]
    fn what_is_noted_outlives_the_agent_and_what_is_no_note_is_passed_over() {
        let scratch = Scratch::new("noted");
        let file = scratch.write("an image");
        let sum = Sums::noted_in(&scratch.0).of(&file, LONG).unwrap();
        let noted = fs::read_to_string(scratch.0.join(NOTED)).unwrap();
        assert_eq!(Sums::noted_in(&scratch.0).of(&file, Duration::ZERO).unwrap(), sum);

        fs::write(scratch.0.join(NOTED), format!("\0\0\0\n{}\nx {noted}{}", &noted[..40], &noted[..noted.len() - 3]))
            .unwrap();
        assert_eq!(known(&Sums::noted_in(&scratch.0)), 0);
        fs::write(scratch.0.join(NOTED), format!("torn\n{noted}")).unwrap();
        assert_eq!(known(&Sums::noted_in(&scratch.0)), 1);
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_has_no_sum() {
        let scratch = Scratch::new("changed");
        let file = scratch.write("before");
        let before = stamp(&file.metadata().unwrap());
        let reading =
            Reading { began: Instant::now(), read: AtomicU64::new(0), ended: Mutex::new(None), ends: Condvar::new() };
        assert!(reading.read(&file, before).is_ok());
        scratch.write("after");
        assert!(matches!(reading.read(&file, before), Err(NoSum::Changed)));
    }
}
