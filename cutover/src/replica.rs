//! Replicas: restore points of a guest's disks, kept at another host, from which it can be started there.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{End, Generation, GuestName, GuestSpec, HostName, InvalidName, ReplicaId, TestId};

/// Most restore points that a replica keeps.
pub const MOST_POINTS: u32 = 64;
/// Most replicas of one guest: its QEMU has on record what was written since the last point of one.
pub const MOST_OF_A_GUEST: usize = 1;
/// Most replicas that one host keeps: it tells of all of them in one message.
pub const MOST_AT_A_HOST: usize = 512;

/// What a replica is found by: a guest has one at a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaName {
    /// What it is of.
    pub guest: GuestName,
    /// Who keeps it.
    pub host: HostName,
}

impl fmt::Display for ReplicaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.guest, self.host)
    }
}

impl FromStr for ReplicaName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (guest, host) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self { guest: guest.parse()?, host: host.parse()? })
    }
}

/// When points are begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rhythm {
    /// So long after the one before, milliseconds.
    #[serde(rename = "every_ms")]
    Every(u32),
    /// Early enough that the newest complete one is never older than this, milliseconds.
    #[serde(rename = "target_lag_ms")]
    Lag(u32),
}

/// How often, how many, how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// When points are begun.
    #[serde(flatten)]
    pub rhythm: Rhythm,
    /// So many points are kept.
    pub keep: u32,
    /// Bytes a second, at most; 0: no limit.
    pub bandwidth: u64,
}

impl Terms {
    /// Lag beyond which a replica is late, milliseconds. Of one with a schedule more than that: a point takes its time to get over, and a
    /// beat may be missed by a little. A target is what it says.
    pub fn late_ms(&self) -> u64 {
        const GRACE_MS: u64 = 10_000;
        match self.rhythm {
            Rhythm::Every(every) => u64::from(every) + u64::from(every) / 3 + GRACE_MS,
            Rhythm::Lag(target) => target.into(),
        }
    }
}

/// All disks of a guest as they were at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Counts from 1 in each replica.
    pub number: u64,
    /// That instant, milliseconds since 1970, by the clock of the guest's host.
    pub at_ms: u64,
    /// The guest had written out its file systems.
    pub quiesced: bool,
}

/// What a guest's host says to the one that keeps its replica; a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaToken(String);

impl ReplicaToken {
    /// One that was drawn.
    pub fn new(drawn: String) -> Self {
        Self(drawn)
    }

    /// To be said or compared.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ReplicaToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplicaToken")
    }
}

/// What a guest's host is to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    /// Which replica.
    pub id: ReplicaId,
    /// Of which guest, that the host owns.
    pub guest: GuestName,
    /// At this generation, or a later one of its own.
    pub generation: Generation,
    /// Who keeps it.
    pub keeper: End,
    /// Lets the host in there.
    pub token: ReplicaToken,
    /// When points are begun.
    pub rhythm: Rhythm,
    /// Bytes a second, at most; 0: no limit.
    pub bandwidth: u64,
}

/// What a host is to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeping {
    /// Which replica.
    pub id: ReplicaId,
    /// Of which guest.
    pub spec: GuestSpec,
    /// Points of a lower one are refused.
    pub generation: Generation,
    /// Who sends; `None`: nobody, and no point goes, for it is being promoted.
    pub source: Option<Sender>,
    /// What the sender says.
    pub token: ReplicaToken,
    /// So many points are kept.
    pub keep: u32,
    /// How it is to be tested; `None`: it is not.
    pub test: Option<ReplicaTest>,
}

/// A guest is to be booted from a point, cut off from every network, and to be gone after a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaTest {
    /// Which test: one that has ended is not begun again.
    pub id: TestId,
    /// Number of the point, which does not go while the test lasts.
    pub point: u64,
    /// It lasts so long at most, milliseconds.
    pub for_ms: u32,
}

/// How a test gets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestState {
    /// Its guest does not run yet.
    Starting,
    /// Its guest runs.
    Running,
    /// It is to end, and something of it may still be there.
    Ending,
    /// Nothing of it is left.
    Ended,
    /// The same, and it did not end as it was to.
    Failed,
}

impl TestState {
    /// Whether nothing of it is left.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Failed)
    }
}

/// Who sends a replica's points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The host, and no other.
    pub host: HostName,
    /// Its tunnel end point; `None`: it has never connected.
    pub vtep: Option<Ipv4Addr>,
}

/// By what a guest's disks are made its new host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The replica.
    pub replica: ReplicaId,
    /// Number of the point.
    pub point: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_found_by_guest_and_host() {
        let name: ReplicaName = "db-1/h2".parse().expect("valid");
        assert_eq!((name.guest.as_str(), name.host.as_str(), name.to_string()), ("db-1", "h2", "db-1/h2".to_owned()));
        for bad in ["", "db-1", "db-1/", "/h2", "db-1/h2/h3", "../x/h2"] {
            assert!(bad.parse::<ReplicaName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn who_is_late_has_had_time() {
        let late = |rhythm| Terms { rhythm, keep: 3, bandwidth: 0 }.late_ms();
        assert_eq!([1_000, 60_000, 86_400_000].map(|every| late(Rhythm::Every(every))), [11_333, 90_000, 115_210_000]);
        assert!(late(Rhythm::Every(u32::MAX)) > u64::from(u32::MAX));
        assert_eq!(late(Rhythm::Lag(30_000)), 30_000, "a target is one");
    }

    #[test]
    fn terms_are_on_record_under_their_names() {
        for (text, rhythm) in [
            (r#"{"every_ms":60000,"keep":3,"bandwidth":0}"#, Rhythm::Every(60_000)),
            (r#"{"target_lag_ms":30000,"keep":3,"bandwidth":0}"#, Rhythm::Lag(30_000)),
        ] {
            let terms: Terms = serde_json::from_str(text).expect("as earlier versions wrote it, too");
            assert_eq!(terms, Terms { rhythm, keep: 3, bandwidth: 0 });
            assert_eq!(serde_json::to_string(&terms).expect("can be written"), text);
        }
    }

    #[test]
    fn a_token_is_in_no_log() {
        assert_eq!(format!("{:?}", ReplicaToken::new("secret".into())), "ReplicaToken");
    }
}
