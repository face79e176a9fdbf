//! The `throughline` command on the controller's node, and what it answers.

use std::time::Duration;

use serde_json::{Deserializer, Value};

use crate::lab::{GUEST, Lab, wait_for};

/// Memory goes at this rate where a test needs pre-copy to last for some seconds.
const SLOW: &str = "20MiB";

/// Longest a migration may take to end, once something has gone wrong with it.
const END: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Answer {
    command: String,
    /// Its exit code.
    pub(crate) code: i32,
    /// The last JSON document it printed; null if it printed none.
    pub(crate) result: Value,
    /// The error it told; null if it told none.
    pub(crate) error: Value,
}

impl Answer {
    /// What it printed; it must have succeeded.
    #[track_caller]
    pub(crate) fn done(self) -> Value {
        assert_eq!(self.code, 0, "`{}` failed: {}", self.command, self.error);
        self.result
    }

    /// It must have failed with this exit code and reason.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, reason: &str) {
        let Self { command, error, .. } = self;
        assert_eq!((self.code, error["reason"].as_str()), (code, Some(reason)), "`{command}` said: {error}");
        assert_eq!(error["exit_code"], code, "`{command}` ends with another code than it tells: {error}");
        assert!(error["message"].as_str().is_some_and(|it| !it.is_empty()), "`{command}` does not say why: {error}");
    }
}

impl Lab {
    /// Runs the command to its end, asking for JSON.
    #[track_caller]
    pub(crate) fn throughline(&self, arguments: &[&str]) -> Answer {
        let output = self.on("ctl", &[&["throughline", "-o", "json"], arguments].concat()).output().unwrap();
        let documents = |bytes: &[u8]| -> Vec<Value> {
            let all: Result<_, _> = Deserializer::from_slice(bytes).into_iter().collect();
            all.unwrap_or_else(|error| panic!("{arguments:?} printed {:?}: {error}", String::from_utf8_lossy(bytes)))
        };
        let mut command = format!("throughline {}", arguments.join(" "));
        command.truncate(command.floor_char_boundary(200));
        Answer {
            code: output.status.code().unwrap_or_else(|| panic!("`{command}` ended with {}", output.status)),
            command,
            result: documents(&output.stdout).pop().unwrap_or_default(),
            error: documents(&output.stderr).pop().map(|mut it| it["error"].take()).unwrap_or_default(),
        }
    }

    /// Moves the guest and waits for the end, which must be a good one.
    #[track_caller]
    pub(crate) fn migrate(&self, to: &str) -> Value {
        let mut last = self.throughline(&["migrate", GUEST, "--to", to]).done();
        let migration = last["migration"].take();
        assert_eq!(migration["phase"], "DONE", "the move to {to} did not end well: {migration}");
        self.assert_runs_on(to);
        migration
    }

    /// Begins a slow move and returns its id while memory is being copied.
    #[track_caller]
    pub(crate) fn begin_slow_move(&self, to: &str) -> String {
        let begun = self.throughline(&["migrate", GUEST, "--to", to, "--bandwidth", SLOW, "--detach"]).done();
        let id = begun["id"].as_str().unwrap_or_else(|| panic!("a migration has an id: {begun}")).to_owned();
        wait_for("memory is being copied", END, || {
            let now = self.migration(&id);
            let (phase, transferred) = (now["phase"].as_str(), now["progress"]["transferred"].as_u64());
            assert!(matches!(phase, Some("PREPARING" | "PRECOPY")), "the slow move went on without us: {now}");
            (phase == Some("PRECOPY") && transferred > Some(0)).then_some(())
        });
        id
    }

    /// A migration as it is now.
    #[track_caller]
    pub(crate) fn migration(&self, id: &str) -> Value {
        self.throughline(&["migration", "show", id]).done()
    }

    /// Waits until a migration has been undone, and returns why; the guest must run where it was.
    #[track_caller]
    pub(crate) fn wait_until_aborted(&self, id: &str) -> String {
        let end = wait_for("the migration ends", END, || {
            let now = self.migration(id);
            matches!(now["phase"].as_str(), Some("DONE" | "ABORTED")).then_some(now)
        });
        assert_eq!(end["phase"], "ABORTED", "a migration that lost an end before commit went through: {end}");
        let reason = end["failure"]["reason"].as_str().unwrap_or_default().to_owned();
        assert!(!reason.is_empty(), "an operator is not told why it was undone: {end}");
        self.assert_runs_on(end["source_host"].as_str().unwrap());
        reason
    }

    /// The record says that the guest runs on this host.
    #[track_caller]
    pub(crate) fn assert_runs_on(&self, host: &str) {
        let guest = self.throughline(&["guest", "get", GUEST]).done();
        let found = (guest["host"].as_str(), guest["state"].as_str());
        assert_eq!(found, (Some(host), Some("RUNNING")), "where the guest is, and how: {guest}");
    }

    /// Whether the controller has this host's agent connected.
    #[track_caller]
    pub(crate) fn is_connected(&self, host: &str) -> bool {
        self.throughline(&["host", "get", host]).done()["connected"] == true
    }
}
