//! How many calls each caller has under way here, and how many were turned away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use throughline_identity::{Caller, Identity};
use tracing::warn;

use super::entry::Refused;
use crate::lock::lock;

/// Calls that one caller may have under way: the datapath moves 64 ports at one time, and each move has a call and a question.
const MOST: u32 = 128;
/// Refusals are logged no more often than this; those between are counted.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Calls under way.
#[derive(Debug, Default)]
pub(super) struct Visitors {
    under_way: Mutex<HashMap<Option<Identity>, u32>>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    count: u64,
    logged: Option<Instant>,
}

impl Visitors {
    /// Counts a call for as long as the permit lives.
    pub(super) fn admit(self: &Arc<Self>, caller: &Caller) -> Result<Permit, Refused> {
        let who = match caller {
            Caller::Known(identity) => Some(identity.clone()),
            Caller::Unproven => None,
        };
        let mut under_way = lock(&self.under_way);
        let count = under_way.entry(who.clone()).or_default();
        if *count >= MOST {
            return Err(Refused::TooMany { who: caller.clone(), most: MOST });
        }
        *count += 1;
        Ok(Permit { visitors: self.clone(), who })
    }

    /// Somebody was turned away.
    pub(super) fn refused(&self, caller: &Caller, migration: &str, refused: &Refused) {
        let mut refusals = lock(&self.refusals);
        refusals.count += 1;
        if refusals.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
            refusals.logged = Some(Instant::now());
            // Quoted: the id is the caller's own word.
            let (reason, refusals) = (refused.reason(), refusals.count);
            warn!(%caller, migration = ?migration, reason, refusals, "turned away: {refused}");
        }
    }

    /// How many were turned away.
    #[cfg(test)]
    fn refusals(&self) -> u64 {
        lock(&self.refusals).count
    }
}

/// A call that counts.
#[derive(Debug)]
pub(super) struct Permit {
    visitors: Arc<Visitors>,
    who: Option<Identity>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut under_way = lock(&self.visitors.under_way);
        if let Some(count) = under_way.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_caller_is_alone_with_its_limit() {
        let visitors = Arc::new(Visitors::default());
        let (greedy, other) = ("agent/h1".parse().unwrap(), "agent/h2".parse().unwrap());
        let (greedy, other) = (Caller::Known(greedy), Caller::Known(other));
        let mut permits: Vec<_> = (0..MOST).map(|_| visitors.admit(&greedy).unwrap()).collect();
        let refused = visitors.admit(&greedy).unwrap_err();
        assert_eq!(refused.reason(), "TOO_MANY_CALLS");
        visitors.refused(&greedy, "m", &refused);
        visitors.refused(&greedy, "m", &refused);
        assert_eq!(visitors.refusals(), 2, "also those that are not logged");
        drop(visitors.admit(&other).expect("another is not concerned"));
        permits.pop();
        permits.push(visitors.admit(&greedy).expect("one has ended"));
        drop(permits);
        assert!(lock(&visitors.under_way).is_empty(), "nobody is remembered for nothing");
    }
}
