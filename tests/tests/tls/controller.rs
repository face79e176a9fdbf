//! A controller's daemon of the test's own, its log, its CA, and whoever calls it.

use std::{
    fs::{self, File},
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;
use throughline_identity::{DialError, Identity, Security};
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A directory that goes with the test.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("throughline-tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program of ours.
pub(crate) fn program(name: &str) -> Command {
    // This is .../target/PROFILE/deps/tls-HASH; the programs are two levels up.
    let path = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{} is not built: run `make build`", path.display());
    let mut command = Command::new(path);
    for name in ["THROUGHLINE_TLS", "THROUGHLINE_CONTROLLER", "THROUGHLINE_PKI"] {
        command.env_remove(name);
    }
    command
}

/// What the operator's command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// It failed with this code, and says all of this.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        for part in says {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
        }
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs the operator's command.
pub(crate) fn throughline(words: &[&str]) -> Said {
    let output = program("throughline").args(words).stdin(Stdio::null()).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Said { code: output.status.code().unwrap(), stdout, stderr }
}

/// A CA, made by the command.
pub(crate) struct Pki(pub(crate) Directory);

impl Pki {
    pub(crate) fn init() -> Self {
        let pki = Self(Directory::new());
        pki.run(&["init"]).done();
        pki
    }

    pub(crate) fn run(&self, words: &[&str]) -> Said {
        let directory = self.0.0.to_str().unwrap();
        throughline(&[&["pki"], words, &["--dir", directory]].concat())
    }

    /// Where an identity's files are.
    pub(crate) fn of(&self, identity: &str) -> PathBuf {
        self.0.join(identity)
    }

    pub(crate) fn issue(&self, identity: &str) -> PathBuf {
        self.run(&["issue", identity]).done();
        self.of(identity)
    }

    /// How somebody proves himself.
    pub(crate) fn security(&self, identity: &str) -> Security {
        Security::load(&self.of(identity), false).unwrap()
    }
}

/// The daemon; ends with the value.
pub(crate) struct Controller {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
    _state: Directory,
}

impl Controller {
    /// One that proves itself by a directory's files.
    pub(crate) fn start(credentials: &Path) -> Self {
        Self::with(&["--tls", credentials.to_str().unwrap()])
    }

    /// One in plaintext.
    pub(crate) fn insecure() -> Self {
        Self::with(&["--insecure"])
    }

    fn with(words: &[&str]) -> Self {
        let state = Directory::new();
        let log = state.join("log");
        let mut command = program("throughline-controller");
        command.args(["--listen", "127.0.0.1:0", "--state-dir"]).arg(state.join("state")).args(words);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stderr(File::create(&log).unwrap());
        let child = command.spawn().unwrap();
        let mut controller = Self { child, address: "127.0.0.1:0".parse().unwrap(), log, _state: state };
        let line = controller.says("serving address=");
        let address = line.split("serving address=").nth(1).unwrap().split_whitespace().next().unwrap();
        controller.address = address.parse().unwrap();
        controller
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        File::open(&self.log).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits for a line of its log with this in it.
    #[track_caller]
    pub(crate) fn says(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(part)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "{part:?} is not in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs the operator's command against it.
    pub(crate) fn ask(&self, credentials: &Path, words: &[&str]) -> Said {
        let url = format!("https://{}", self.address);
        throughline(&[words, &["--controller", &url, "--tls", credentials.to_str().unwrap()]].concat())
    }

    /// Calls it, meaning somebody.
    pub(crate) async fn dial(&self, security: &Security, wanted: &str) -> Result<Channel, DialError> {
        let endpoint = Endpoint::from_shared(format!("{}://{}", security.scheme(), self.address)).unwrap();
        security.dial(endpoint, &wanted.parse::<Identity>().unwrap()).await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the controller's log\n{}", self.log());
        }
    }
}
