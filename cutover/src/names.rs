//! Names of things in the fabric. A name never becomes a path or a shell word unless it passed here.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing was given.
    #[error("is empty; give 1 to {max} characters of a-z, 0-9, '-' and '.'")]
    Empty {
        /// Longest name allowed.
        max: usize,
    },
    /// Longer than allowed; the name itself is not repeated, it may be huge.
    #[error("has {length} bytes; at most {max} are allowed")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character that is not allowed, or not at that place.
    #[error(
        "has {found:?} at position {position}; use a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
    )]
    Character {
        /// The character.
        found: char,
        /// Its byte position, from 0.
        position: usize,
    },
}

fn check(name: &str, max: usize) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty { max });
    }
    if name.len() > max {
        return Err(InvalidName::TooLong { length: name.len(), max });
    }
    let last = name.len() - 1;
    for (position, found) in name.char_indices() {
        let alphanumeric = found.is_ascii_lowercase() || found.is_ascii_digit();
        let inner = matches!(found, '-' | '.') && position != 0 && position != last;
        if !alphanumeric && !inner {
            return Err(InvalidName::Character { found, position });
        }
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Longest allowed, in bytes.
            pub const MAX: usize = $max;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                check(name, Self::MAX)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                name.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Name of a host.
    HostName, 63
);
name!(
    /// What tells one fabric from another; a UUID.
    FabricId, 63
);
name!(
    /// Name of a guest.
    GuestName, 63
);
name!(
    /// What tells one replica from another, an earlier one of the same guest at the same host included; a UUID.
    ReplicaId, 63
);
name!(
    /// What tells one test of a replica from another; a UUID.
    TestId, 63
);
name!(
    /// Name of an operator: a person or a program that uses the public API.
    OperatorName, 63
);
name!(
    /// Name of a network.
    NetworkName, 63
);
name!(
    /// Name of a disk, unique in its guest; part of QEMU's names for what the disk is made of, which have 31 bytes.
    DiskName, 15
);
name!(
    /// Name by which hosts know a block device, or storage that they have in common; what it is for them each host is told.
    PlaceName, 63
);
name!(
    /// Name of an endpoint, which is also the name of its interface (IFNAMSIZ less the end).
    InterfaceName, 15
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_field_uses() {
        for good in ["a", "web-1", "h1", "rack3.row-2", "0"] {
            assert_eq!(good.parse::<GuestName>().map(String::from), Ok(good.to_owned()));
        }
    }

    #[test]
    fn refuses_paths_shell_words_and_giants() {
        for bad in ["", "a/b", "../x", "-a", "a-", ".", "a b", "A", "a;b", "ä", "a\0"] {
            assert!(bad.parse::<GuestName>().is_err(), "{bad:?}");
        }
        let giant = "a".repeat(10 * 1024);
        let error = giant.parse::<HostName>().expect_err("too long");
        assert!(error.to_string().len() < 100, "the giant must not be repeated");
    }
}
