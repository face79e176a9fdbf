//! Points in time as certificates have them, and as people read them.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;

/// A second of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub i64);

impl Moment {
    /// By this machine's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    }

    /// So many days later.
    #[must_use]
    pub fn plus_days(self, days: u32) -> Self {
        Self(self.0.saturating_add(i64::from(days) * 86_400))
    }

    /// Whole days from now until then; negative: it is past.
    pub fn days_left(self) -> i64 {
        (self.0 - Self::now().0).div_euclid(86_400)
    }
}

impl From<UnixTime> for Moment {
    fn from(time: UnixTime) -> Self {
        Self(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(time) = OffsetDateTime::from_unix_timestamp(self.0) else { return write!(f, "second {}", self.0) };
        let (year, month, day) = time.to_calendar_date();
        write!(f, "{year}-{:02}-{day:02} {:02}:{:02} UTC", u8::from(month), time.hour(), time.minute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_people_write_it() {
        assert_eq!(Moment(1_795_960_740).to_string(), "2026-11-29 13:59 UTC");
        assert_eq!(Moment(0).plus_days(1).to_string(), "1970-01-02 00:00 UTC");
        assert_eq!(Moment(Moment::now().0 - 1).days_left(), -1);
    }
}
