//! How a migration is getting on: QEMU's statistics in plain units. Pure.

use std::time::Duration;

use qapi::qmp;
use throughline_cutover::Progress;

use crate::{MigrationStatus, migration::NOT_THROTTLED};

/// A migration's statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationProgress {
    /// Where it is.
    pub status: MigrationStatus,
    /// Bytes sent.
    pub transferred: u64,
    /// Bytes of dirty memory left, as known since the last look at the dirty bitmap.
    pub remaining: u64,
    /// Guest memory, bytes.
    pub total: u64,
    /// Bytes per second on the wire lately; 0 before QEMU has measured.
    pub rate_bytes_per_s: u64,
    /// Bytes per second the guest dirties; 0 before QEMU has measured.
    pub dirty_bytes_per_s: u64,
    /// Passes over memory begun.
    pub passes: u32,
    /// Share of its processors' time that is taken from the guest, percent.
    pub throttle_percent: u32,
    /// What QEMU calls downtime once completed, milliseconds. It leaves out part of the pause.
    pub downtime_ms: Option<u64>,
    /// QEMU's reason for a failure; it often gives none.
    pub error: Option<String>,
}

impl MigrationProgress {
    /// How long the rest takes to send if the guest stands still from now on; `None` before anything was measured.
    pub fn expected_pause(&self) -> Option<Duration> {
        if self.remaining == 0 && self.passes > 0 {
            return Some(Duration::ZERO);
        }
        let micros = u128::from(self.remaining) * 1_000_000;
        let micros = micros.checked_div(u128::from(self.rate_bytes_per_s))?;
        Some(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
    }
}

impl From<&MigrationProgress> for Progress {
    fn from(progress: &MigrationProgress) -> Self {
        let pause = progress.expected_pause().map_or(0, |pause| pause.as_micros().max(1));
        Self {
            transferred: progress.transferred,
            remaining: progress.remaining,
            total: progress.total,
            rate: progress.rate_bytes_per_s,
            dirty_rate: progress.dirty_bytes_per_s,
            expected_pause_us: u64::try_from(pause).unwrap_or(u64::MAX),
            passes: progress.passes,
            throttle_percent: progress.throttle_percent,
            ..Self::default()
        }
    }
}

impl From<&qmp::MigrationInfo> for MigrationProgress {
    fn from(info: &qmp::MigrationInfo) -> Self {
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let ram = |of: fn(&qmp::MigrationStats) -> i64| count(info.ram.as_ref().map_or(0, of));
        Self {
            status: info.status.map_or(MigrationStatus::None, MigrationStatus::from),
            transferred: ram(|ram| ram.transferred),
            remaining: ram(|ram| ram.remaining),
            total: ram(|ram| ram.total),
            rate_bytes_per_s: info.ram.as_ref().map_or(0, |ram| bytes_per_second(ram.mbps)),
            dirty_bytes_per_s: ram(|ram| ram.dirty_pages_rate.saturating_mul(ram.page_size)),
            passes: u32::try_from(ram(|ram| ram.dirty_sync_count)).unwrap_or(u32::MAX),
            throttle_percent: info.cpu_throttle_percentage.map_or(0, throttle_percent),
            downtime_ms: info.downtime.map(count),
            error: info.error_desc.clone(),
        }
    }
}

/// What QEMU takes unasked is too little to speak of.
fn throttle_percent(percent: i64) -> u32 {
    u32::try_from(percent).ok().filter(|percent| *percent > NOT_THROTTLED.into()).unwrap_or(0)
}

/// From QEMU's megabits (10^6) per second.
fn bytes_per_second(mbps: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float's cast saturates; NaN is 0")]
    let bytes = (mbps * 125_000.0) as u64;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 answers in pre-copy.
    const ACTIVE: &str = r#"{"expected-downtime": 300, "status": "active", "setup-time": 2, "total-time": 1203, "ram": {
        "total": 268959744, "postcopy-requests": 0, "dirty-sync-count": 3, "multifd-bytes": 0, "pages-per-second": 9000,
        "downtime-bytes": 0, "page-size": 4096, "remaining": 8192000, "postcopy-bytes": 0, "mbps": 655.36,
        "transferred": 100000, "dirty-sync-missed-zero-copy": 0, "precopy-bytes": 100000, "duplicate": 1, "dirty-pages-rate": 1000,
        "skipped": 0, "normal-bytes": 81920, "normal": 20}}"#;

    fn parse(text: &str) -> MigrationProgress {
        MigrationProgress::from(&serde_json::from_str::<qmp::MigrationInfo>(text).unwrap())
    }

    #[test]
    fn reads_an_active_migration() {
        let progress = parse(ACTIVE);
        assert_eq!(progress.status, MigrationStatus::Active);
        assert_eq!(progress.rate_bytes_per_s, 81_920_000);
        assert_eq!(progress.dirty_bytes_per_s, 4_096_000);
        assert_eq!(progress.passes, 3);
        assert_eq!(progress.expected_pause(), Some(Duration::from_millis(100)));
        assert_eq!(Progress::from(&progress).expected_pause_us, 100_000);
    }

    #[test]
    fn nothing_measured_is_unknown_and_nothing_left_is_no_pause() {
        let none = parse("{}");
        assert_eq!(none.status, MigrationStatus::None);
        assert_eq!(none.expected_pause(), None);
        assert_eq!(Progress::from(&none).expected_pause_us, 0, "0 says unknown");
        let idle = MigrationProgress { remaining: 0, rate_bytes_per_s: 0, ..parse(ACTIVE) };
        assert_eq!(idle.expected_pause(), Some(Duration::ZERO));
        assert_eq!(Progress::from(&idle).expected_pause_us, 1);
        let endless = MigrationProgress { remaining: u64::MAX, rate_bytes_per_s: 1, ..idle };
        assert!(endless.expected_pause() > Some(Duration::from_secs(1 << 30)));
    }

    #[test]
    fn reads_how_much_is_taken_from_the_guest() {
        let throttle = |percent| parse(&format!(r#"{{"status": "active", "cpu-throttle-percentage": {percent}}}"#));
        assert_eq!(throttle(40).throttle_percent, 40);
        assert_eq!(throttle(1).throttle_percent, 0, "nobody asked for that");
        assert_eq!(parse(ACTIVE).throttle_percent, 0);
    }

    #[test]
    fn reads_the_end() {
        let failed = parse(r#"{"status": "failed", "error-desc": "Unable to write to socket: Broken pipe"}"#);
        assert!(failed.status.is_terminal());
        assert_eq!(failed.error.as_deref(), Some("Unable to write to socket: Broken pipe"));
        assert_eq!(parse(r#"{"status": "completed", "downtime": 3}"#).downtime_ms, Some(3));
    }

    #[test]
    fn odd_rates_do_not_panic() {
        assert_eq!(bytes_per_second(f64::NAN), 0);
        assert_eq!(bytes_per_second(-1.0), 0);
        assert_eq!(bytes_per_second(f64::INFINITY), u64::MAX);
    }
}
