//! What the fabric reads in a certificate. Whether to believe it is the verifier's matter.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use crate::{Moment, SpiffeId};

/// A certificate's number, unique for its CA: hexadecimal, two digits a byte.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(String);

impl Serial {
    /// From its bytes, most significant first.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let significant = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        Self(bytes[significant..].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its bytes, most significant first.
    pub fn to_bytes(&self) -> Vec<u8> {
        (0..self.0.len()).step_by(2).filter_map(|at| u8::from_str_radix(self.0.get(at..at + 2)?, 16).ok()).collect()
    }
}

impl std::str::FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if text.is_empty() || text.len() > 40 || !text.len().is_multiple_of(2) || !digits {
            return Err(format!("{text:?} is no serial number: an even number of digits 0-9a-f, at most 40"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The facts in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its number.
    pub serial: Serial,
    /// Valid from.
    pub not_before: Moment,
    /// Valid until.
    pub not_after: Moment,
    /// Whom it is for, as X.509 says: what people see in other tools.
    pub subject: String,
    /// Whom it is for: the one URI among its alternative names, or why there is none.
    pub id: Result<SpiffeId, String>,
}

impl Certificate {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with its encoding.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        Ok(Self {
            serial: Serial::from_bytes(parsed.raw_serial()),
            not_before: Moment(parsed.validity().not_before.timestamp()),
            not_after: Moment(parsed.validity().not_after.timestamp()),
            subject: parsed.subject().to_string(),
            id: id_of(&parsed),
        })
    }
}

/// SPIFFE's X509-SVID, section 2: exactly one URI.
fn id_of(certificate: &X509Certificate<'_>) -> Result<SpiffeId, String> {
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|error: crate::InvalidIdentity| error.to_string()),
        (None, _) => Err("it has no URI among its subject alternative names".to_owned()),
        (Some(_), Some(_)) => Err("it has more than one URI among its subject alternative names".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn serials_are_read_as_they_are_written() {
        let serial = Serial::from_bytes(&[0, 0x0a, 0xff]);
        assert_eq!(serial.as_str(), "0aff");
        assert_eq!(serial.as_str().parse::<Serial>().unwrap(), serial);
        assert_eq!(serial.to_bytes(), [0x0a, 0xff]);
        for wrong in ["", "abc", "0A", "zz", "agent/h1"] {
            wrong.parse::<Serial>().unwrap_err();
        }
    }
}
