//! How much one identity may ask for. The driver does one thing after the other for everybody: whoever asks for too much is
//! told to wait before the driver hears of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use throughline_identity::Identity;
use throughline_wire::try_again;
use tokio::time::Instant;
use tonic::{Code, Status};

/// How long to wait when too many calls are under way: nobody knows when one ends.
const A_WHILE: Duration = Duration::from_secs(1);
/// Identities remembered though they ask for nothing just now.
const REMEMBERED: usize = 1024;

/// What one identity may have at one time. Callers that prove nothing (`--insecure`) are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// Calls begun in a second, on the average; twice as many at once after a quiet time. At least 1.
    pub per_second: u32,
    /// Calls under way.
    pub under_way: u32,
    /// Streams open: watches, an agent's own.
    pub streams: u32,
    /// Migrations that one operator asked for and that have not ended.
    pub migrations: u32,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self { per_second: 100, under_way: 64, streams: 64, migrations: 64 }
    }
}

/// Too much was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{who} has {what}; try again in {} ms", .again.as_millis())]
pub(super) struct TooMany {
    who: Identity,
    what: String,
    again: Duration,
}

impl TooMany {
    /// The stable code.
    pub(super) fn reason(&self) -> &'static str {
        "TOO_MANY_CALLS"
    }
}

impl From<&TooMany> for Status {
    fn from(too_many: &TooMany) -> Self {
        try_again(Code::ResourceExhausted, too_many.reason(), too_many.to_string(), too_many.again)
    }
}

/// What one identity has.
#[derive(Debug, Clone, Copy)]
struct Tally {
    /// Calls that may be begun at once; fills up as time goes by.
    left: f64,
    filled: Instant,
    under_way: u32,
    streams: u32,
}

impl Tally {
    fn new(limits: &CallLimits, now: Instant) -> Self {
        Self { left: Self::most(limits), filled: now, under_way: 0, streams: 0 }
    }

    fn most(limits: &CallLimits) -> f64 {
        f64::from(limits.per_second.max(1)) * 2.0
    }

    fn fill(&mut self, limits: &CallLimits, now: Instant) {
        let rate = f64::from(limits.per_second.max(1));
        let grown = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        self.left = (self.left + grown).min(Self::most(limits));
        self.filled = now;
    }

    /// Takes one call, or says what is in the way and for how long.
    fn take(&mut self, limits: &CallLimits, lasts: bool, now: Instant) -> Result<(), (String, Duration)> {
        self.fill(limits, now);
        let rate = limits.per_second.max(1);
        if self.left < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - self.left) / f64::from(rate)).max(Duration::from_millis(1));
            return Err((format!("called more often than {rate} times a second"), wait));
        }
        let (count, most, what) = match lasts {
            true => (&mut self.streams, limits.streams, "streams open"),
            false => (&mut self.under_way, limits.under_way, "calls under way"),
        };
        // What is turned away costs as well: else asking again at once would be free.
        self.left -= 1.0;
        if *count >= most {
            return Err((format!("{count} {what}, which is the most"), A_WHILE));
        }
        *count += 1;
        Ok(())
    }

    fn is_idle(&self, limits: &CallLimits) -> bool {
        self.under_way == 0 && self.streams == 0 && self.left >= Self::most(limits)
    }
}

/// What everybody has.
#[derive(Debug)]
pub(super) struct Meter {
    limits: CallLimits,
    by_identity: Mutex<HashMap<Identity, Tally>>,
}

impl Meter {
    pub(super) fn new(limits: CallLimits) -> Self {
        Self { limits, by_identity: Mutex::default() }
    }

    /// Counts a call until its permit is dropped. `lasts`: it is a stream.
    pub(super) fn admit(self: &Arc<Self>, who: &Identity, lasts: bool) -> Result<Permit, TooMany> {
        self.admit_at(who, lasts, Instant::now())
    }

    fn admit_at(self: &Arc<Self>, who: &Identity, lasts: bool, now: Instant) -> Result<Permit, TooMany> {
        let mut all = self.lock();
        if all.len() >= REMEMBERED {
            all.retain(|_, tally| {
                tally.fill(&self.limits, now);
                !tally.is_idle(&self.limits)
            });
        }
        let tally = all.entry(who.clone()).or_insert_with(|| Tally::new(&self.limits, now));
        tally.take(&self.limits, lasts, now).map_err(|(what, again)| TooMany { who: who.clone(), what, again })?;
        Ok(Permit { meter: self.clone(), who: who.clone(), lasts })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Tally>> {
        self.by_identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that counts.
#[derive(Debug)]
pub(super) struct Permit {
    meter: Arc<Meter>,
    who: Identity,
    lasts: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(tally) = self.meter.lock().get_mut(&self.who) {
            let count = if self.lasts { &mut tally.streams } else { &mut tally.under_way };
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> Identity {
        "operator/alice".parse().unwrap()
    }

    fn meter(per_second: u32, under_way: u32, streams: u32) -> Arc<Meter> {
        Arc::new(Meter::new(CallLimits { per_second, under_way, streams, migrations: 1 }))
    }

    #[test]
    fn calls_come_back_with_time() {
        let (meter, start) = (meter(10, 100, 100), Instant::now());
        let begin = |now| meter.admit_at(&alice(), false, now).map(drop);
        (0..20).for_each(|_| begin(start).unwrap());
        let refused = begin(start).unwrap_err();
        assert!(refused.to_string().contains("operator/alice has called more often than 10 times"), "{refused}");
        assert_eq!(refused.again, Duration::from_millis(100));
        begin(start + refused.again).unwrap();
        begin(start + refused.again).unwrap_err();
        meter.admit_at(&"operator/bob".parse().unwrap(), false, start).expect("somebody else's are somebody else's");
    }

    #[test]
    fn what_is_under_way_is_counted_until_it_ends() {
        let meter = meter(1000, 2, 1);
        let (first, _second) = (meter.admit(&alice(), false).unwrap(), meter.admit(&alice(), false).unwrap());
        assert!(meter.admit(&alice(), false).unwrap_err().to_string().contains("2 calls under way"));
        let watch = meter.admit(&alice(), true).expect("streams are counted by themselves");
        assert!(meter.admit(&alice(), true).unwrap_err().to_string().contains("1 streams open"));
        drop((first, watch));
        meter.admit(&alice(), false).unwrap();
        meter.admit(&alice(), true).unwrap();
    }

    #[test]
    fn who_is_idle_is_forgotten_first() {
        let (meter, start) = (meter(10, 1, 1), Instant::now());
        let busy = meter.admit_at(&alice(), true, start).unwrap();
        for n in 0..2 * REMEMBERED {
            let now = start + Duration::from_millis(100) * n as u32;
            drop(meter.admit_at(&format!("operator/o{n}").parse().unwrap(), false, now).unwrap());
        }
        assert!(meter.lock().len() <= REMEMBERED, "{}", meter.lock().len());
        meter.admit(&alice(), true).expect_err("hers is not forgotten");
        drop(busy);
    }
}
