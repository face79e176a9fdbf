//! The log's file, and the thread that writes it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use throughline_confine::{NotPrivate, private_log};
use tokio::sync::oneshot;

use crate::store::StoreError;

const FILE: &str = "audit.log";
/// How soon it is tried again what could not be written.
const AGAIN: Duration = Duration::from_secs(1);
/// Most that waits to be written, bytes. What comes beyond is in the daemon's log only.
const WAITING: usize = 4 << 20;

/// Lines to be written, and whom to tell.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) text: String,
    pub(super) done: Option<oneshot::Sender<()>>,
}

/// Opens the file and starts the thread, which ends when nobody can send it anything any more.
pub(super) fn start(directory: &Path, kept: Arc<AtomicBool>) -> Result<mpsc::Sender<Order>, StoreError> {
    let log = Log::open(directory.join(FILE))?;
    let (orders, queue) = mpsc::channel();
    thread::spawn(move || write(log, &queue, &kept));
    Ok(orders)
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    /// The last write ended within a line.
    torn: bool,
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, NotPrivate> {
        let file = Self::append(&path)?;
        Ok(Self { path, file, torn: false })
    }

    fn append(path: &Path) -> Result<File, NotPrivate> {
        let file = private_log(path)?;
        if let Some(directory) = path.parent() {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(|source| NotPrivate::Io { path: directory.to_owned(), source })?;
        }
        Ok(file)
    }

    /// A file that was renamed or removed is somebody else's from then on: the next line begins a new one.
    fn follow(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let there = fs::metadata(&self.path).ok();
        if there.is_none_or(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino())) {
            self.file = Self::append(&self.path).map_err(io::Error::other)?;
            self.torn = false;
        }
        Ok(())
    }

    /// On disk when it returns.
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.follow()?;
        if self.torn {
            self.file.write_all(b"\n")?;
        }
        self.torn = true;
        self.file.write_all(text.as_bytes())?;
        self.torn = false;
        self.file.sync_data()
    }
}

/// Whatever has queued up meanwhile is written at once.
fn write(mut log: Log, queue: &mpsc::Receiver<Order>, kept: &AtomicBool) {
    let mut waiting = String::new();
    loop {
        let next =
            if waiting.is_empty() { queue.recv().map_err(RecvTimeoutError::from) } else { queue.recv_timeout(AGAIN) };
        let mut asked = Vec::new();
        match next {
            Ok(order) => [order].into_iter().chain(queue.try_iter()).for_each(|order| {
                if waiting.len() + order.text.len() <= WAITING {
                    waiting.push_str(&order.text);
                } else {
                    tracing::error!(line = order.text, "no room for this line of the audit log");
                }
                asked.extend(order.done);
            }),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        match log.write(&waiting) {
            Ok(()) => {
                if !kept.swap(true, Ordering::AcqRel) {
                    tracing::info!(path = %log.path.display(), "the audit log can be written again");
                }
                waiting.clear();
            }
            Err(error) => {
                if kept.swap(false, Ordering::AcqRel) {
                    let path = log.path.display();
                    tracing::error!(%path, %error, lines = waiting, "the audit log cannot be written; nothing is changed until it can");
                }
            }
        }
        for done in asked {
            // Who does not wait any more is not told.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("throughline-audit-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn say(orders: &mpsc::Sender<Order>, text: &str) {
        let (done, written) = oneshot::channel();
        orders.send(Order { text: text.to_owned(), done: Some(done) }).unwrap();
        written.blocking_recv().unwrap();
    }

    #[test]
    fn it_is_nobody_elses_and_is_appended_to() {
        let directory = Directory::new("mode");
        for line in ["one\n", "two\n"] {
            let orders = start(&directory.0, Arc::new(AtomicBool::new(true))).unwrap();
            say(&orders, line);
        }
        assert_eq!(directory.text(FILE), "one\ntwo\n");
        assert_eq!(fs::metadata(directory.0.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_was_renamed_is_left_alone() {
        let directory = Directory::new("rotate");
        let orders = start(&directory.0, Arc::new(AtomicBool::new(true))).unwrap();
        say(&orders, "one\n");
        fs::rename(directory.0.join(FILE), directory.0.join("audit.log.1")).unwrap();
        say(&orders, "two\n");
        fs::remove_file(directory.0.join(FILE)).unwrap();
        say(&orders, "three\n");
        assert_eq!((directory.text("audit.log.1").as_str(), directory.text(FILE).as_str()), ("one\n", "three\n"));
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let directory = Directory::new("full");
        let kept = Arc::new(AtomicBool::new(true));
        let orders = start(&directory.0, kept.clone()).unwrap();
        say(&orders, "one\n");
        // A directory in its place cannot be appended to.
        fs::remove_file(directory.0.join(FILE)).unwrap();
        fs::create_dir(directory.0.join(FILE)).unwrap();
        say(&orders, "two\n");
        assert!(!kept.load(Ordering::Acquire), "it says so");
        fs::remove_dir(directory.0.join(FILE)).unwrap();
        let began = std::time::Instant::now();
        while !kept.load(Ordering::Acquire) {
            assert!(began.elapsed() < Duration::from_secs(10), "never written");
            thread::sleep(Duration::from_millis(20));
        }
        say(&orders, "three\n");
        assert_eq!(directory.text(FILE), "two\nthree\n");
    }
}
