//! Running the command as a shell would.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{LazyLock, mpsc},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use throughline_identity::authority::Authority;

/// Longest any run in these tests may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The same, after checking the exit code.
    #[track_caller]
    pub(crate) fn with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// stdout as one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The error object on stderr.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let error: Value = serde_json::from_str(&self.stderr).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        error["error"].clone()
    }
}

/// The CA of all controllers and operators in these tests.
pub(crate) fn pki() -> &'static Path {
    static PKI: LazyLock<PathBuf> = LazyLock::new(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("command-pki");
        // Of the run before.
        let _ = fs::remove_dir_all(&directory);
        Authority::init(&directory, "throughline".parse().unwrap()).unwrap();
        directory
    });
    &PKI
}

/// The command, aimed at a controller, not started yet. `line` is split at spaces.
pub(crate) fn command(controller: SocketAddr, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline"));
    command
        .args(line.split_whitespace())
        .env("THROUGHLINE_CONTROLLER", format!("https://{controller}"))
        .env("THROUGHLINE_TLS", pki().join("operator/admin"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the command to its end.
pub(crate) fn run(controller: SocketAddr, line: &str) -> Ended {
    ended(command(controller, line).spawn().expect("the command starts"))
}

/// Waits for a started command; one that takes too long is killed and fails the test.
pub(crate) fn ended(child: Child) -> Ended {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        kill(pid, Signal::SIGKILL).unwrap();
        panic!("the command did not end within {PATIENCE:?}");
    };
    let Output { status, stdout, stderr } = output.unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Ended { code: status.code().expect("ended by itself, not by a signal"), stdout, stderr }
}
