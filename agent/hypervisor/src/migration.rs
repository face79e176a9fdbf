//! Migration, in the steps in which the two agents coordinate it. Nothing here waits for a phase: phases are events.

use std::{net::Ipv4Addr, time::Duration};

use qapi::qmp::{self, MigrationCapability as Capability, SocketAddress};
use tokio::time::{Instant, sleep};

use crate::{Guest, HypervisorError, MigrationProgress, MigrationStatus, RunState};

/// Downtime limit during pre-copy, milliseconds: the smallest that lets QEMU converge by itself only on an idle guest.
const UNARMED_DOWNTIME_MS: u64 = 1;
/// How long QEMU may take to connect and measure.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// How often it is asked meanwhile.
const MEASURE_POLL: Duration = Duration::from_millis(10);
/// What a page of zeroes takes on the wire, bytes: the least a page can take.
const ZERO_PAGE_BYTES: u64 = 9;
/// Size of a page, bytes.
const PAGE_BYTES: u64 = 4096;
/// Slots a second in which QEMU limits and measures the rate.
const SLOTS_PER_SECOND: u64 = 10;
/// Bandwidth of a migration held back, bytes per second: one page each 100 ms. QEMU takes a tenth of it for each 100 ms,
/// and a tenth of less than ten would be 0, no limit.
const BRAKED: u64 = 10;
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

    /// Source: begins to send memory to `uri`, at no more than `bandwidth` bytes per second (0: no limit), and returns
    /// when QEMU has measured how fast that goes, after about 150 ms. QEMU stops the guest for the switchover when what
    /// is left can be sent in [`Guest::allow_switchover`]'s limit, which is 1 ms until then, and waits in
    /// [`MigrationStatus::PreSwitchover`]. A guest that dirties next to nothing reaches that by itself: be ready for it,
    /// or [`Guest::brake`].
    ///
    /// # Errors
    /// Those of any command; [`Guest::cancel_migration`] after one. That nobody listens is none: it shows as
    /// [`MigrationStatus::Failed`].
    pub async fn start_migration(&self, uri: &str, bandwidth: u64) -> Result<(), HypervisorError> {
        let memory = self.execute(qmp::query_memory_size_summary {}).await?;
        let limits = qmp::MigrateSetParameters {
            max_bandwidth: Some(soft_start(memory.base_memory, bandwidth)),
            downtime_limit: Some(UNARMED_DOWNTIME_MS),
            ..Default::default()
        };
        self.set_up_migration(Side::Source, limits).await?;
        let to = Some(uri.to_owned());
        self.execute(qmp::migrate { uri: to, channels: None, detach: None, resume: None }).await?;
        self.measured().await?;
        self.send_at_once(uri);
        self.set_bandwidth(bandwidth).await
    }

    /// Waits until QEMU knows its rate, or has nothing more to measure.
    async fn measured(&self) -> Result<(), HypervisorError> {
        let started = Instant::now();
        loop {
            let MigrationProgress { status, rate_bytes_per_s, .. } = self.progress().await?;
            let beginning = matches!(status, MigrationStatus::Setup | MigrationStatus::WaitUnplug);
            if !beginning && (status != MigrationStatus::Active || rate_bytes_per_s > 0) {
                return Ok(());
            }
            if started.elapsed() > CONNECT_DEADLINE {
                return Err(HypervisorError::Deadline {
                    guest: self.name().clone(),
                    command: "migrate",
                    after: CONNECT_DEADLINE,
                });
            }
            sleep(MEASURE_POLL).await;
        }
    }

    /// Source: changes what [`Guest::start_migration`] set, bytes per second (0: no limit).
    ///
    /// # Errors
    /// Those of any command.
    pub async fn set_bandwidth(&self, bandwidth: u64) -> Result<(), HypervisorError> {
        let limit = qmp::MigrateSetParameters { max_bandwidth: Some(bandwidth), ..Default::default() };
        self.execute(qmp::migrate_set_parameters(limit)).await.map(drop)
    }

    /// Source, in pre-copy: holds back what is left, at once, so that QEMU does not stop the guest before the caller is
    /// ready, however idle the guest is. Brake while something is left; then arm, then [`Guest::allow_switchover`] with
    /// 20 ms or more, then release with [`Guest::set_bandwidth`]: a guest that is nearly done is stopped within 100 ms.
    /// In this order: with a smaller limit QEMU takes the rate it had while braked for a reason not to look at the
    /// dirty bitmap again. Do not [`Guest::stop`] one that is held back: it would stand until QEMU looks again.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn brake(&self) -> Result<(), HypervisorError> {
        self.set_bandwidth(BRAKED).await
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

/// The bandwidth to begin with, bytes per second: so little that the first pass over `memory` bytes, were it all
/// zeroes, outlasts two slots.
///
/// Before QEMU has measured its rate it takes the rate for 0. If the first pass ends before that, nothing seems to be
/// left, and QEMU stops the guest without having looked at what was dirtied meanwhile (seen with 7.2: the pause is as
/// long as sending that takes, whatever the limit says).
fn soft_start(memory: u64, bandwidth: u64) -> u64 {
    let slow = (memory / PAGE_BYTES * ZERO_PAGE_BYTES * SLOTS_PER_SECOND / 2).max(SLOTS_PER_SECOND);
    if bandwidth == 0 { slow } else { bandwidth.min(slow) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_start_outlasts_two_slots_and_respects_the_limit() {
        for memory in [32_u64 << 20, 128 << 20, 64 << 30] {
            let a_slot = soft_start(memory, 0) / SLOTS_PER_SECOND;
            assert!(a_slot * 2 <= memory / PAGE_BYTES * ZERO_PAGE_BYTES, "{memory}");
            assert!(a_slot >= 1000, "{memory}: QEMU rounds less than a byte per millisecond down to nothing");
        }
        assert_eq!(soft_start(64 << 30, 1_000_000), 1_000_000);
        assert_eq!(soft_start(0, 0) / SLOTS_PER_SECOND, 1, "0 would be no limit");
    }
}
