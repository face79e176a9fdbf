//! From numbers to short text for people. Machines read JSON.

use std::time::Duration;

/// A number of bytes in three digits or so: "512 B", "1.50 GiB".
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1 << 10 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 99.95 || value.fract() == 0.0 { 0 } else { 1 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A rate in bytes per second: "112 MiB/s".
pub(crate) fn per_second(rate: u64) -> String {
    format!("{}/s", bytes(rate))
}

/// A span of time: "850 µs", "12.3 ms", "3.2 s", "5 min 07 s".
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    if seconds < 0.001 {
        format!("{} µs", span.as_micros())
    } else if seconds < 0.999_95 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 119.95 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", span.as_secs() / 60, span.as_secs() % 60)
    }
}

/// A date and time, "2026-11-23 19:21:04Z", of milliseconds since 1970; "-" for 0.
pub(crate) fn utc(ms: u64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let seconds = ms / 1000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01. Years begin in March here, so that the leap day is their last
/// day (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_FROM_0000_03_01_TO_1970: u64 = 719_468;
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let days = days + DAYS_FROM_0000_03_01_TO_1970;
    let (era, day_of_era) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_based + 2) / 5 + 1;
    let month = if march_based < 10 { march_based + 3 } else { march_based - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (262_136 << 10, "256 MiB"),
            (1_500_000_000, "1.4 GiB"),
            (1_073_000_000, "1.0 GiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (count, shown) in cases {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn spans_are_short() {
        let cases =
            [(0, "0 µs"), (999, "999 µs"), (12_345, "12.3 ms"), (1_000_000, "1.0 s"), (307_000_000, "5 min 07 s")];
        for (micros, shown) in cases {
            assert_eq!(span(Duration::from_micros(micros)), shown);
        }
    }

    #[test]
    fn dates_are_right() {
        let cases = [
            (0, "-"),
            (1, "1970-01-01 00:00:00Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_709_251_199_999, "2024-02-29 23:59:59Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00Z"),
        ];
        for (ms, shown) in cases {
            assert_eq!(utc(ms), shown);
        }
        assert!(!utc(u64::MAX).is_empty(), "nonsense does not panic");
    }
}
