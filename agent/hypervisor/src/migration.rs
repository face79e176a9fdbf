//! Migration, in the steps in which the two agents coordinate it. Nothing here waits for a phase: phases are events.

use std::{net::Ipv4Addr, time::Duration};

use qapi::qmp::{self, MigrationCapability as Capability, SocketAddress};
use tokio::time::{Instant, sleep};

use crate::{Guest, HypervisorError, MigrationProgress, MigrationStatus, RunState};

/// Downtime limit during pre-copy, milliseconds: the smallest that lets QEMU converge by itself only on an idle guest.
const UNARMED_DOWNTIME_MS: u64 = 1;
/// How long QEMU may take to wind up a cancelled migration.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile; the guest may stand still.
const CANCEL_POLL: Duration = Duration::from_millis(1);

/// Which end of a migration a QEMU is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

impl Guest {
    /// Destination, launched with `incoming`: listens on `address` for the source's memory, on a port of the kernel's
    /// choice. Gives the URI for [`Guest::start_migration`], `tcp:a.b.c.d:port`. After the migration the guest is
    /// paused until [`Guest::cont`].
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if this QEMU does not wait for a migration or cannot listen on that address.
    pub async fn listen(&self, address: Ipv4Addr) -> Result<String, HypervisorError> {
        self.set_up_migration(Side::Destination, qmp::MigrateSetParameters::default()).await?;
        let uri = Some(format!("tcp:{address}:0"));
        self.execute(qmp::migrate_incoming { uri, channels: None, exit_on_error: None }).await?;
        let info = self.execute(qmp::query_migrate {}).await?;
        let port = info.socket_address.iter().flatten().find_map(|address| match address {
            SocketAddress::inet(inet) => inet.base.port.parse::<u16>().ok(),
            SocketAddress::fd(_) | SocketAddress::unix(_) | SocketAddress::vsock(_) => None,
        });
        port.map(|port| format!("tcp:{address}:{port}")).ok_or_else(|| HypervisorError::Answer {
            guest: self.name().clone(),
            command: "query-migrate",
            detail: "no TCP port although it listens".to_owned(),
        })
    }

    /// Source: begins to send memory to `uri`, at no more than `bandwidth` bytes per second (0: no limit). QEMU stops
    /// the guest for the switchover when what is left can be sent in [`Guest::allow_switchover`]'s limit, which is
    /// 1 ms until then, and then waits in [`MigrationStatus::PreSwitchover`]. A guest that dirties next to nothing
    /// reaches that by itself: be ready for it from here on.
    ///
    /// # Errors
    /// Those of any command; that nobody listens shows as [`MigrationStatus::Failed`].
    pub async fn start_migration(&self, uri: &str, bandwidth: u64) -> Result<(), HypervisorError> {
        let limits = qmp::MigrateSetParameters {
            max_bandwidth: Some(bandwidth),
            downtime_limit: Some(UNARMED_DOWNTIME_MS),
            ..Default::default()
        };
        self.set_up_migration(Side::Source, limits).await?;
        let uri = Some(uri.to_owned());
        self.execute(qmp::migrate { uri, channels: None, detach: None, resume: None }).await.map(drop)
    }

    /// Source: lets QEMU stop the guest as soon as the rest can be sent within `downtime_limit_ms`. QEMU looks again
    /// every 100 ms. A guest that the caller has stopped needs no limit: the rest is sent and QEMU goes on at once.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn allow_switchover(&self, downtime_limit_ms: u64) -> Result<(), HypervisorError> {
        let limit = qmp::MigrateSetParameters { downtime_limit: Some(downtime_limit_ms), ..Default::default() };
        self.execute(qmp::migrate_set_parameters(limit)).await.map(drop)
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
        let started = Instant::now();
        loop {
            let status = self.progress().await?.status;
            let over = status.is_terminal() || status == MigrationStatus::None;
            // The status changes before the run state does, and `cont` is refused until that has changed too.
            if over && self.run_state().await? != RunState::FinishMigrate {
                return Ok(status);
            }
            if started.elapsed() > CANCEL_DEADLINE {
                return Err(HypervisorError::Deadline {
                    guest: self.name().clone(),
                    command: "migrate_cancel",
                    after: CANCEL_DEADLINE,
                });
            }
            sleep(CANCEL_POLL).await;
        }
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

fn capabilities(side: Side) -> Vec<qmp::MigrationCapabilityStatus> {
    [
        (Capability::events, true),
        (Capability::return_path, true),
        (Capability::late_block_activate, true),
        (Capability::pause_before_switchover, side == Side::Source),
    ]
    .map(|(capability, state)| qmp::MigrationCapabilityStatus { capability, state })
    .to_vec()
}
