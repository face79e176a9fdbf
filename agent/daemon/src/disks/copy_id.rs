//! Which copying a file is the fruit of.

use std::{fmt, str::FromStr};

use super::DiskError;

/// Longest, bytes.
const LONGEST: usize = 64;

/// The migration that began to copy a guest's disks. Its source knows what is left to be copied by this name, its destination what
/// has come; a later migration of the same two may go on from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyId(String);

impl CopyId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CopyId {
    type Err = DiskError;
    /// It becomes part of a file's name: nothing but what a UUID has.
    fn from_str(id: &str) -> Result<Self, DiskError> {
        let plain = id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if id.is_empty() || id.len() > LONGEST || !plain {
            return Err(DiskError::CopyId { length: id.len() });
        }
        Ok(Self(id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_leads_out_of_its_directory() {
        assert!("5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11".parse::<CopyId>().is_ok());
        for bad in ["", "../a", "a/b", "a.b", "5F é", &"a".repeat(65)] {
            assert!(bad.parse::<CopyId>().is_err(), "{bad:?}");
        }
    }
}
