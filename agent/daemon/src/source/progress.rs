//! How memory is getting on, as the source's decisions are told it.

use std::time::Duration;

use throughline_cutover::{Progress, SourceEvent};
use throughline_hypervisor::{Guest, MigrationProgress, MigrationStatus};
use tokio::{sync::mpsc, time::MissedTickBehavior};

/// How often QEMU is asked how memory is getting on.
const PROGRESS_EVERY: Duration = Duration::from_millis(2);
/// Pause that QEMU adds to the last memory: stopping, devices, starting.
const FIXED_PAUSE_US: u64 = 1_000;

/// How memory is getting on, for as long as it is.
pub(super) async fn report_progress(vm: &Guest, events: &mpsc::UnboundedSender<SourceEvent>, bandwidth: u64) {
    let mut every = tokio::time::interval(PROGRESS_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fastest = 0;
    loop {
        every.tick().await;
        let Ok(progress) = vm.progress().await else { return };
        if progress.status != MigrationStatus::Active {
            if matches!(progress.status, MigrationStatus::Setup) {
                continue;
            }
            return;
        }
        fastest = fastest.max(progress.rate_bytes_per_s);
        if events.send(SourceEvent::Progress(in_our_words(&progress, fastest, bandwidth))).is_err() {
            return;
        }
    }
}

/// QEMU's figures. The pause to expect goes by the fastest rate seen: with little to send QEMU measures less.
fn in_our_words(progress: &MigrationProgress, fastest: u64, bandwidth: u64) -> Progress {
    let rate = if fastest == 0 { bandwidth } else { fastest };
    let last_memory_us = progress.remaining.saturating_mul(1_000_000) / rate.max(1);
    Progress { expected_pause_us: last_memory_us.saturating_add(FIXED_PAUSE_US), ..Progress::from(progress) }
}
