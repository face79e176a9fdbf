//! Migration, in the steps in which the two agents coordinate it. Nothing here waits for a phase: phases are events.

use std::{net::Ipv4Addr, os::fd::OwnedFd, time::Duration};

use qapi::{
    Command,
    qmp::{self, MigrationCapability as Capability},
};
use tokio::time::{Instant, sleep};

use crate::{
    Awaited, Guest, HypervisorError, Invitation, MigrationProgress, MigrationStatus, RunState, Sealer, anchor,
};

/// By what name QEMU knows the stream's descriptor until it takes it.
const STREAM: &str = "throughline-memory";

/// Downtime limit of a guest that is not let go, milliseconds. With 0 QEMU would never look at the dirty bitmap again.
const UNDER_ANCHOR_MS: u64 = 1;
/// Downtime limit of one that is: QEMU's greatest. Multiplied by however little QEMU has just sent, it allows for the anchor.
const LET_GO_MS: u64 = 2_000_000;
/// Bandwidth of a migration that is braked, bytes per second: a page each 100 ms. Of less [`LET_GO_MS`] makes nothing.
const BRAKED: u64 = 40_960;
/// No limit to the bandwidth: the guest's pause is not the place to save.
const UNLIMITED: u64 = 0;
/// Share of its processors' time that QEMU may take from a guest before it is told to, percent: the least it allows. It is told
/// beforehand because it lets nobody decide later whether it may at all.
pub(crate) const NOT_THROTTLED: u8 = 1;
/// What QEMU adds to that share at a time, percent: all it is told.
const AT_ONCE: u8 = 99;
/// QEMU takes more from a guest that dirties at least this share of what was sent, percent. The decision has been made, so
/// next to none.
const ANY_DIRT: u8 = 1;
/// And before there is a decision: as much as was sent.
const MUCH_DIRT: u8 = 100;
/// How long QEMU may take to begin.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// How often it is asked meanwhile.
const CONNECT_POLL: Duration = Duration::from_millis(10);
/// How long QEMU may take to wind up a cancelled migration.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile; the guest may stand still.
const CANCEL_POLL: Duration = Duration::from_millis(1);
/// When it is taken to wait for a word that nobody will say, and how soon that is said again.
const CANCEL_STUCK: Duration = Duration::from_millis(200);

/// Which end of a migration a QEMU is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source { may_throttle: bool },
    Destination,
}

impl Guest {
    /// Destination, launched with `incoming`: opens a door on `address` for the memory of `source`, sealed if there is a
    /// `sealer`. The invitation is the source's, see [`Guest::call`]; [`Guest::receive`] is next.
    ///
    /// # Errors
    /// [`HypervisorError::Stream`] if nobody can listen on that address.
    pub async fn listen(
        &self,
        address: Ipv4Addr,
        source: Ipv4Addr,
        sealer: Option<&Sealer>,
    ) -> Result<(Awaited, Invitation), HypervisorError> {
        self.add_anchor_node().await?;
        self.set_up_migration(Side::Destination, qmp::MigrateSetParameters::default()).await?;
        let opened = Awaited::new(address, source, sealer);
        opened.map_err(|source| HypervisorError::Stream { guest: self.name().clone(), what: "has no door", source })
    }

    /// Destination: waits for the source's call, and has QEMU take memory from it. After the migration the guest is paused until
    /// [`Guest::cont`]. Dropped, it closes the door.
    ///
    /// # Errors
    /// [`HypervisorError::Stream`] if the stream cannot be sealed; [`HypervisorError::Refused`] if this QEMU does not wait for a
    /// migration.
    pub async fn receive(&self, awaited: Awaited) -> Result<(), HypervisorError> {
        let stream = awaited.arrive(self).await?;
        let uri = Some(format!("fd:{STREAM}"));
        self.hand_over(stream, qmp::migrate_incoming { uri, channels: None, exit_on_error: None }).await
    }

    /// Source: calls the destination from this host's address `from`. Gives the stream for [`Guest::start_migration`].
    ///
    /// # Errors
    /// [`HypervisorError::Stream`] if nobody is there, or it is not who made the invitation.
    pub async fn call(
        &self,
        invitation: &Invitation,
        from: Ipv4Addr,
        sealer: &Sealer,
    ) -> Result<OwnedFd, HypervisorError> {
        invitation.accept(self, from, sealer).await
    }

    /// Source: begins to send memory, at no more than `bandwidth` bytes per second (0: no limit), over and over until
    /// [`Guest::let_stop`] or [`Guest::cancel_migration`]. Only if it `may_throttle` will [`Guest::throttle`] do anything.
    ///
    /// # Errors
    /// Those of any command; [`Guest::cancel_migration`] after one. That the stream breaks is none: it shows as
    /// [`MigrationStatus::Failed`].
    pub async fn start_migration(
        &self,
        stream: OwnedFd,
        bandwidth: u64,
        may_throttle: bool,
    ) -> Result<(), HypervisorError> {
        self.drop_anchor().await?;
        let limits = qmp::MigrateSetParameters {
            max_bandwidth: Some(bandwidth),
            downtime_limit: Some(UNDER_ANCHOR_MS),
            block_bitmap_mapping: Some(vec![anchor::mapping()]),
            ..throttled(NOT_THROTTLED, MUCH_DIRT)
        };
        self.set_up_migration(Side::Source { may_throttle }, limits).await?;
        let uri = Some(format!("fd:{STREAM}"));
        self.hand_over(stream, qmp::migrate { uri, channels: None, detach: None, resume: None }).await?;
        self.connected().await
    }

    /// Has QEMU take `stream` by `command`. One that it did not take it keeps no longer.
    async fn hand_over<C: Command<Ok = qapi::Empty>>(
        &self,
        stream: OwnedFd,
        command: C,
    ) -> Result<(), HypervisorError> {
        let fdname = STREAM.to_owned();
        self.execute_with(qmp::getfd { fdname: fdname.clone() }, stream).await?;
        let taken = self.execute(command).await;
        if taken.is_err() {
            // It may have been taken all the same.
            let _closed = self.execute(qmp::closefd { fdname }).await;
        }
        taken.map(drop)
    }

    /// Waits until QEMU sends, or will not.
    async fn connected(&self) -> Result<(), HypervisorError> {
        let started = Instant::now();
        while matches!(self.progress().await?.status, MigrationStatus::Setup | MigrationStatus::WaitUnplug) {
            if started.elapsed() > CONNECT_DEADLINE {
                return Err(HypervisorError::Deadline {
                    guest: self.name().clone(),
                    command: "migrate",
                    after: CONNECT_DEADLINE,
                });
            }
            sleep(CONNECT_POLL).await;
        }
        Ok(())
    }

    /// Source, in pre-copy: QEMU sends a page at the beginning of each 100 ms and sleeps out the rest, until
    /// [`Guest::let_stop`] or [`Guest::set_bandwidth`].
    ///
    /// # Errors
    /// Those of any command.
    pub async fn brake(&self) -> Result<(), HypervisorError> {
        self.set_bandwidth(BRAKED).await
    }

    /// Source: changes what [`Guest::start_migration`] set, bytes per second (0: no limit).
    ///
    /// # Errors
    /// Those of any command.
    pub async fn set_bandwidth(&self, bandwidth: u64) -> Result<(), HypervisorError> {
        let limit = qmp::MigrateSetParameters { max_bandwidth: Some(bandwidth), ..Default::default() };
        self.execute(qmp::migrate_set_parameters(limit)).await.map(drop)
    }

    /// Source, in pre-copy: has QEMU take this share of its processors' time from the guest, percent, until the migration is
    /// over one way or another. QEMU begins with it at the end of a pass, 2 s from now at the earliest (migration/ram.c,
    /// `migration_trigger_throttle`: at every other look that comes more than a second after the last).
    ///
    /// # Errors
    /// Those of any command.
    pub async fn throttle(&self, percent: u8) -> Result<(), HypervisorError> {
        self.execute(qmp::migrate_set_parameters(throttled(percent, ANY_DIRT))).await.map(drop)
    }

    /// Source: lets QEMU stop the guest and send the rest, whatever is left. It does when it next measures its rate, which
    /// is every 100 ms, and then waits in [`MigrationStatus::PreSwitchover`].
    ///
    /// # Errors
    /// Those of any command.
    pub async fn let_stop(&self) -> Result<(), HypervisorError> {
        let limits = qmp::MigrateSetParameters {
            downtime_limit: Some(LET_GO_MS),
            max_bandwidth: Some(UNLIMITED),
            ..Default::default()
        };
        self.execute(qmp::migrate_set_parameters(limits)).await.map(drop)
    }

    /// How the migration is getting on; at either end.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn progress(&self) -> Result<MigrationProgress, HypervisorError> {
        Ok(MigrationProgress::from(&self.execute(qmp::query_migrate {}).await?))
    }

    /// Source, in [`MigrationStatus::PreSwitchover`]: sends the last pages and the devices.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] in any other status.
    pub async fn continue_switchover(&self) -> Result<(), HypervisorError> {
        self.execute(qmp::migrate_continue { state: qmp::MigrationStatus::pre_switchover }).await.map(drop)
    }

    /// Source: cancels, and waits until QEMU has wound up. Gives the status it came to: [`MigrationStatus::Completed`]
    /// if it was too late, [`MigrationStatus::None`] if there was nothing to cancel. A guest that QEMU stopped for the
    /// switchover then runs again; one that the caller stopped stands until the caller's [`Guest::cont`], which QEMU
    /// now accepts.
    ///
    /// # Errors
    /// [`HypervisorError::Deadline`] if it is not wound up in 5 s.
    pub async fn cancel_migration(&self) -> Result<MigrationStatus, HypervisorError> {
        self.execute(qmp::migrate_cancel {}).await?;
        let (started, mut woken) = (Instant::now(), Instant::now());
        loop {
            let status = self.progress().await?.status;
            let over = status.is_terminal() || status == MigrationStatus::None;
            let state = self.run_state().await?;
            // The status changes before the run state does, and `cont` is refused until that has changed too.
            if over && state != RunState::FinishMigrate {
                return Ok(status);
            }
            if started.elapsed() > CANCEL_DEADLINE {
                return Err(HypervisorError::Deadline {
                    guest: self.name().clone(),
                    command: "migrate_cancel",
                    after: CANCEL_DEADLINE,
                });
            }
            if status == MigrationStatus::Cancelling && woken.elapsed() > CANCEL_STUCK {
                woken = Instant::now();
                self.wake_cancelled().await?;
            }
            sleep(CANCEL_POLL).await;
        }
    }

    /// A cancel that comes just as QEMU (7.2, `migration_maybe_pause`) has seen that there is none and goes to wait for the word to
    /// switch over makes it wait for good, the guest stopped: a cancel wakes who waits, and nobody does yet. The word does, and
    /// QEMU then sees that it is cancelled. Where nobody waits it is of no account.
    async fn wake_cancelled(&self) -> Result<(), HypervisorError> {
        // Refused where it has just been wound up.
        self.allow_refusal(qmp::migrate_continue { state: qmp::MigrationStatus::cancelling }).await
    }

    /// Sets what this crate relies on, whatever an earlier migration of this QEMU left.
    async fn set_up_migration(&self, side: Side, parameters: qmp::MigrateSetParameters) -> Result<(), HypervisorError> {
        let capabilities = capabilities(side);
        self.execute(qmp::migrate_set_capabilities { capabilities }).await?;
        // No RARP at `cont`: the caller announces when the network leads here.
        let parameters = qmp::MigrateSetParameters { announce_rounds: Some(0), ..parameters };
        self.execute(qmp::migrate_set_parameters(parameters)).await.map(drop)
    }
}

/// Parameters by which QEMU takes exactly `percent` from the guest, once it sees that it dirties `trigger` percent of what is
/// sent.
fn throttled(percent: u8, trigger: u8) -> qmp::MigrateSetParameters {
    qmp::MigrateSetParameters {
        throttle_trigger_threshold: Some(trigger),
        cpu_throttle_initial: Some(percent),
        cpu_throttle_increment: Some(AT_ONCE),
        max_cpu_throttle: Some(percent),
        ..Default::default()
    }
}

fn capabilities(side: Side) -> Vec<qmp::MigrationCapabilityStatus> {
    let (source, may_throttle) = match side {
        Side::Source { may_throttle } => (true, may_throttle),
        Side::Destination => (false, false),
    };
    [
        (Capability::events, true),
        (Capability::return_path, true),
        (Capability::late_block_activate, true),
        (Capability::dirty_bitmaps, true),
        (Capability::auto_converge, may_throttle),
        (Capability::pause_before_switchover, source),
    ]
    .map(|(capability, state)| qmp::MigrationCapabilityStatus { capability, state })
    .to_vec()
}
