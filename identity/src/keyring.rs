//! The credentials of a running program: read again when their files change, with no connection broken by it but those of
//! whom they no longer trust.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::{Duration, Instant},
};

use rustls::pki_types::UnixTime;
use tokio::{task::JoinHandle, time};
use tracing::{error, info, warn};

use crate::{
    Credentials, CredentialsError, Refusal, SpiffeId,
    connection::Standing,
    credentials::{CA, CERTIFICATE, CRL, KEY},
};

/// How often the files are looked at. A change is taken when a second look finds it finished.
const LOOK: Duration = Duration::from_millis(500);
/// How often what expires soon is warned about.
const REMIND: Duration = Duration::from_secs(24 * 60 * 60);

/// Credentials of one directory, as they are now.
#[derive(Debug)]
pub struct Keyring {
    directory: PathBuf,
    own: SpiffeId,
    /// How the files looked when they were first read.
    opened: Look,
    current: RwLock<Arc<Credentials>>,
    open: Mutex<Vec<Weak<Standing>>>,
}

impl Keyring {
    /// Reads a directory.
    ///
    /// # Errors
    /// Those of [`Credentials::load`].
    pub fn open(directory: &Path) -> Result<Arc<Self>, CredentialsError> {
        // Before they are read: what changes meanwhile is found by the first look.
        let opened = look(directory);
        let credentials = Credentials::load(directory)?;
        let own = credentials.id.clone();
        let (directory, current) = (directory.to_owned(), RwLock::new(Arc::new(credentials)));
        Ok(Arc::new(Self { directory, own, opened, current, open: Mutex::default() }))
    }

    /// Whom it proves.
    pub fn own(&self) -> &SpiffeId {
        &self.own
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn current(&self) -> Arc<Credentials> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Watches the files until the task is aborted, and says in the log what expires soon.
    pub fn watch(self: &Arc<Self>) -> JoinHandle<()> {
        let keyring = self.clone();
        tokio::spawn(async move {
            let mut look = time::interval(LOOK);
            look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
            let mut watch = Watch { seen: None, taken: keyring.opened, complaint: None, reminded: None };
            loop {
                look.tick().await;
                let keyring = keyring.clone();
                // File systems may be slow, and a large list takes time to read.
                match tokio::task::spawn_blocking(move || watch.look(&keyring)).await {
                    Ok(next) => watch = next,
                    Err(_) => return,
                }
            }
        })
    }

    /// Takes other credentials of the same identity into use.
    fn replace(&self, credentials: Credentials) -> Result<(), CredentialsError> {
        if credentials.id != self.own {
            let (path, wanted) = (self.directory.join(CERTIFICATE), self.own.to_string());
            return Err(CredentialsError::OtherIdentity { path, found: credentials.id, wanted });
        }
        let credentials = Arc::new(credentials);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = credentials.clone();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|standing| standing.upgrade().is_some_and(|standing| review(&credentials, &standing)));
        Ok(())
    }

    /// Notes an open connection, which was examined by `by`.
    pub(crate) fn note(&self, standing: &Arc<Standing>, by: &Arc<Credentials>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() == open.capacity() {
            open.retain(|standing| standing.strong_count() > 0);
        }
        open.push(Arc::downgrade(standing));
        drop(open);
        // Others may have come into use during the handshake, and been held against the open ones before this was one.
        let current = self.current();
        if !Arc::ptr_eq(&current, by) {
            review(&current, standing);
        }
    }
}

/// Whether an open connection stands before these credentials; if not, it is closed. Time alone ends no connection.
fn review(credentials: &Credentials, standing: &Standing) -> bool {
    match credentials.examine(&standing.chain, standing.role, UnixTime::now()) {
        Err(refusal @ (Refusal::Revoked | Refusal::UnknownCa)) => {
            warn!(peer = %standing.address, identity = %standing.id.identity, reason = %refusal, "an open connection is closed");
            standing.withdraw(refusal);
            false
        }
        _ => true,
    }
}

/// What a file is without reading it; `None`: not there.
type Look = [Option<(u64, u64, i64, i64, u64)>; 4];

fn look(directory: &Path) -> Look {
    [CA, CERTIFICATE, KEY, CRL].map(|file| {
        let meta = fs::metadata(directory.join(file)).ok()?;
        Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
    })
}

/// The watcher's memory.
struct Watch {
    /// At the last look.
    seen: Option<Look>,
    /// When they were last taken into use.
    taken: Look,
    /// What was last said of files that are no good.
    complaint: Option<String>,
    reminded: Option<Instant>,
}

impl Watch {
    fn look(mut self, keyring: &Keyring) -> Self {
        let directory = &keyring.directory;
        let look = look(directory);
        let finished = self.seen == Some(look);
        self.seen = Some(look);
        if finished && self.taken != look {
            self.take(keyring, look);
        }
        if self.reminded.is_none_or(|then| then.elapsed() >= REMIND) {
            self.reminded = Some(Instant::now());
            keyring.current().warnings(directory).iter().for_each(|warning| warn!("{warning}"));
        }
        self
    }

    fn take(&mut self, keyring: &Keyring, look: Look) {
        match Credentials::load(&keyring.directory).and_then(|credentials| keyring.replace(credentials)) {
            Ok(()) => {
                let (directory, serial) = (keyring.directory.display(), &keyring.current().facts.serial);
                info!(%directory, %serial, "the credentials have changed and are used from now on");
                (self.taken, self.complaint, self.reminded) = (look, None, None);
            }
            // Tried again at every look: what was wrong may not show in the files, like a lack of descriptors.
            Err(problem) => {
                let problem = problem.to_string();
                if self.complaint.as_ref() != Some(&problem) {
                    error!(%problem, "the credentials have changed and are no good; those read before stay in use");
                    self.complaint = Some(problem);
                }
            }
        }
    }
}
