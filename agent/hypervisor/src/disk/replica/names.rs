//! What a replica, its keeper and its points are called. Pure. All are part of names that QEMU keeps.

use std::{fmt, str::FromStr};

/// Longest name of any of them, bytes.
const MAX: usize = 63;

/// A name that a replica, a keeper or a point cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a replica, keeper or point: give 1 to 63 of a-z, 0-9 and -, for a point a letter first")]
pub struct InvalidReplicaName(String);

/// Name of a replica: tells it from every other one of the same guest, also one that was made before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaName(String);

/// Name of a restore point, which its replica never has twice. Begins with a letter: QEMU's tools take a number for the place in a
/// file's list of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointName(String);

/// The QEMU that keeps a replica's disks: another one after each start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeeperId(String);

fn is_plain(name: &str) -> bool {
    (1..=MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

impl FromStr for ReplicaName {
    type Err = InvalidReplicaName;
    fn from_str(name: &str) -> Result<Self, InvalidReplicaName> {
        if is_plain(name) { Ok(Self(name.to_owned())) } else { Err(InvalidReplicaName(name.to_owned())) }
    }
}

impl FromStr for KeeperId {
    type Err = InvalidReplicaName;
    fn from_str(name: &str) -> Result<Self, InvalidReplicaName> {
        if is_plain(name) { Ok(Self(name.to_owned())) } else { Err(InvalidReplicaName(name.to_owned())) }
    }
}

impl FromStr for PointName {
    type Err = InvalidReplicaName;
    fn from_str(name: &str) -> Result<Self, InvalidReplicaName> {
        let fits = is_plain(name) && name.starts_with(|first: char| first.is_ascii_lowercase());
        if fits { Ok(Self(name.to_owned())) } else { Err(InvalidReplicaName(name.to_owned())) }
    }
}

impl fmt::Display for ReplicaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeeperId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_points_name_is_no_number_and_no_name_has_what_tells_names_apart() {
        for good in ["a", "p-20261130t064500", &"x".repeat(MAX)] {
            assert_eq!(good.parse::<PointName>().unwrap().to_string(), good);
            assert_eq!(good.parse::<ReplicaName>().unwrap().to_string(), good);
        }
        assert!("7f-1".parse::<ReplicaName>().is_ok());
        for bad in ["", "1", "7f", "-a", "a/b", "A", "a b", "ä", &"x".repeat(MAX + 1)] {
            assert!(bad.parse::<PointName>().is_err(), "{bad}");
        }
        for bad in ["", "a/b", "A", "a b", &"x".repeat(MAX + 1)] {
            assert!(bad.parse::<ReplicaName>().is_err(), "{bad}");
        }
    }
}
