//! What QEMU reports without being asked.

use std::time::{Duration, SystemTime};

use qapi::qmp;
use serde::{Deserialize, Serialize};

use crate::Exit;

/// Something that happened to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestEvent {
    /// When, by the clock of the host it runs on; QEMU's own stamp to the microsecond, but for [`GuestEventKind::Exited`].
    pub at: SystemTime,
    /// What.
    pub kind: GuestEventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEventKind {
    /// The processors stand still.
    Stop,
    /// They run again.
    Resume,
    /// A migration came to a new status.
    Migration(MigrationStatus),
    /// The guest was reset.
    Reset,
    /// The guest shut down; QEMU ends next.
    Shutdown {
        /// It did so itself, and in order.
        by_guest: bool,
    },
    /// The guest's kernel panicked.
    Panicked,
    /// A request of the guest's to a disk failed, and QEMU stops the guest for it. The request is kept, and tried again when the guest
    /// is let go on.
    DiskError {
        /// What went wrong, in the system's words.
        why: String,
    },
    /// The guest's driver changed what a network card is to receive, as it does when it sets one up. Told once, and again
    /// after each [`crate::Guest::hear_of_cards`].
    CardChanged,
    /// QEMU ended. The last event there is.
    Exited(Exit),
}

/// Where a migration is, as QEMU has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MigrationStatus {
    /// None was ever begun, or this QEMU does not listen yet.
    None,
    /// Connecting; at the destination: listening.
    Setup,
    /// Waiting for a device to be unplugged.
    WaitUnplug,
    /// Memory is on its way.
    Active,
    /// The guest stands still and QEMU waits for [`crate::Guest::continue_switchover`].
    PreSwitchover,
    /// The last pages and the devices' state are on their way.
    Device,
    /// The destination has everything.
    Completed,
    /// Failed; the source runs, or can.
    Failed,
    /// Being cancelled.
    Cancelling,
    /// Cancelled; the source runs, or can.
    Cancelled,
    /// One of the states of post-copy.
    Postcopy,
    /// Continuous replication.
    Colo,
}

impl MigrationStatus {
    /// Nothing more will happen in this migration.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl From<qmp::MigrationStatus> for MigrationStatus {
    fn from(status: qmp::MigrationStatus) -> Self {
        use qmp::MigrationStatus as Q;
        match status {
            Q::none => Self::None,
            Q::setup => Self::Setup,
            Q::wait_unplug => Self::WaitUnplug,
            Q::active => Self::Active,
            Q::pre_switchover => Self::PreSwitchover,
            Q::device => Self::Device,
            Q::completed => Self::Completed,
            Q::failed => Self::Failed,
            Q::cancelling => Self::Cancelling,
            Q::cancelled => Self::Cancelled,
            Q::postcopy_active | Q::postcopy_paused | Q::postcopy_recover_setup | Q::postcopy_recover => Self::Postcopy,
            Q::colo => Self::Colo,
        }
    }
}

/// Whether a guest runs, and if not why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Running.
    Running,
    /// Stopped by command, or arrived and not yet started.
    Paused,
    /// Waiting for a migration to come in.
    InMigrate,
    /// Stopped by QEMU for the end of a migration out.
    FinishMigrate,
    /// Migrated away; must not run here again unless the destination never ran.
    PostMigrate,
    /// Never started.
    Prelaunch,
    /// Asleep by the guest's own wish.
    Suspended,
    /// Shut down.
    Shutdown,
    /// Its kernel panicked.
    Panicked,
    /// Stopped because a request to a disk failed; let go on, it is tried again.
    DiskError,
    /// Stopped by an error of the host (QEMU itself, a watchdog).
    Broken,
    /// Stopped for a debugger, a snapshot or replication.
    Other,
}

impl From<qmp::RunState> for RunState {
    fn from(state: qmp::RunState) -> Self {
        use qmp::RunState as Q;
        match state {
            Q::running => Self::Running,
            Q::paused => Self::Paused,
            Q::inmigrate => Self::InMigrate,
            Q::finish_migrate => Self::FinishMigrate,
            Q::postmigrate => Self::PostMigrate,
            Q::prelaunch => Self::Prelaunch,
            Q::suspended => Self::Suspended,
            Q::shutdown => Self::Shutdown,
            Q::guest_panicked => Self::Panicked,
            Q::io_error => Self::DiskError,
            Q::internal_error | Q::watchdog => Self::Broken,
            Q::debug | Q::restore_vm | Q::save_vm | Q::colo => Self::Other,
        }
    }
}

/// The library's timestamp, whose fields only serialisation shows.
#[derive(Deserialize)]
struct Stamp {
    seconds: u64,
    microseconds: u64,
}

fn time_of(stamp: impl Serialize) -> SystemTime {
    serde_json::to_value(stamp)
        .and_then(serde_json::from_value::<Stamp>)
        .ok()
        .and_then(|stamp| Duration::from_secs(stamp.seconds).checked_add(Duration::from_micros(stamp.microseconds)))
        .and_then(|since_epoch| SystemTime::UNIX_EPOCH.checked_add(since_epoch))
        .unwrap_or_else(SystemTime::now)
}

/// The event for us in QEMU's, if it is one that concerns a guest as a whole.
pub(crate) fn translate(event: &qmp::Event) -> Option<GuestEvent> {
    use qmp::Event as Q;
    let kind = match event {
        Q::STOP { .. } => GuestEventKind::Stop,
        Q::RESUME { .. } => GuestEventKind::Resume,
        Q::MIGRATION { data, .. } => GuestEventKind::Migration(data.status.into()),
        Q::RESET { .. } => GuestEventKind::Reset,
        Q::SHUTDOWN { data, .. } => {
            GuestEventKind::Shutdown { by_guest: data.guest && data.reason == qmp::ShutdownCause::guest_shutdown }
        }
        Q::GUEST_PANICKED { .. } => GuestEventKind::Panicked,
        Q::BLOCK_IO_ERROR { data, .. } if data.action == qmp::BlockErrorAction::stop => {
            GuestEventKind::DiskError { why: data.reason.clone() }
        }
        Q::NIC_RX_FILTER_CHANGED { .. } => GuestEventKind::CardChanged,
        _ => return None,
    };
    Some(GuestEvent { at: time_of(event.timestamp()), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<GuestEvent> {
        translate(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn reads_what_qemu_7_2_sends() {
        let stop = parse(r#"{"timestamp": {"seconds": 1700000000, "microseconds": 250001}, "event": "STOP"}"#).unwrap();
        assert_eq!(stop.kind, GuestEventKind::Stop);
        assert_eq!(stop.at, SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 250_001_000));
        let switchover = parse(
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "pre-switchover"}}"#,
        );
        assert_eq!(switchover.unwrap().kind, GuestEventKind::Migration(MigrationStatus::PreSwitchover));
        let shutdown = |reason| {
            parse(&format!(
                r#"{{"timestamp": {{"seconds": 1, "microseconds": 2}}, "event": "SHUTDOWN", "data": {{"guest": true, "reason": "{reason}"}}}}"#
            ))
        };
        assert_eq!(shutdown("guest-shutdown").unwrap().kind, GuestEventKind::Shutdown { by_guest: true });
        assert_eq!(shutdown("guest-panic").unwrap().kind, GuestEventKind::Shutdown { by_guest: false });
        let full = |action| {
            parse(&format!(
                r#"{{"timestamp": {{"seconds": 1, "microseconds": 2}}, "event": "BLOCK_IO_ERROR", "data": {{"device": "", "node-name": "image-root", "operation": "write", "action": "{action}", "nospace": true, "reason": "No space left on device"}}}}"#
            ))
        };
        let why = "No space left on device".to_owned();
        assert_eq!(full("stop").unwrap().kind, GuestEventKind::DiskError { why });
        assert_eq!(full("report"), None, "the guest is told, and goes on");
    }

    #[test]
    fn passes_over_what_is_not_the_guest_as_a_whole() {
        let job = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "JOB_STATUS_CHANGE", "data": {"id": "x", "status": "created"}}"#;
        assert_eq!(parse(job), None);
        // Thousands a second, under an anchor.
        let pass =
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION_PASS", "data": {"pass": 7}}"#;
        assert_eq!(parse(pass), None);
    }
}
