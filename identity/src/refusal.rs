//! Why one end does not accept the other's certificate: as we found it, and as the other end's alert tells it.

use rustls::{AlertDescription, CertificateError, OtherError};

use crate::{Identity, Moment, SpiffeId, TrustDomain};

/// Why we do not accept the other end's certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its time is over.
    #[error("its certificate expired on {0}")]
    Expired(Moment),
    /// Its time has not come.
    #[error("its certificate is not valid before {0}; is one of the two clocks wrong?")]
    NotYetValid(Moment),
    /// No way from it to one of our roots.
    #[error("its certificate is from none of the CAs in our ca.pem")]
    UnknownCa,
    /// A CRL names it, or a CA it is from.
    #[error("its certificate is revoked")]
    Revoked,
    /// There are CRLs, and none of them speaks for its CA.
    #[error("our crl.pem has no list that is signed by the CA its certificate is from")]
    UnknownStatus,
    /// Its extended key usage excludes it.
    #[error("its certificate is not for this use: it needs clientAuth to call, serverAuth to be called")]
    WrongUse,
    /// It names nobody.
    #[error("its certificate names no identity: {0}")]
    NoIdentity(String),
    /// Another fabric's.
    #[error("it is {found}, of another trust domain than ours, {ours}")]
    OtherDomain {
        /// Who it is.
        found: SpiffeId,
        /// Our trust domain.
        ours: TrustDomain,
    },
    /// Of this fabric, but not the one that was wanted.
    #[error("it is {found}, and {wanted} was wanted")]
    OtherIdentity {
        /// Who it is.
        found: Identity,
        /// Whom we wanted.
        wanted: Identity,
    },
    /// It has none.
    #[error("it showed no certificate")]
    NoCertificate,
    /// The rest: bytes that are no certificate, algorithms we do not take.
    #[error("its certificate cannot be verified: {0}")]
    Unverifiable(String),
}

impl Refusal {
    /// What webpki found wrong with a chain.
    pub(crate) fn of_chain(error: webpki::Error) -> Self {
        use webpki::Error;
        match error {
            Error::CertExpired { not_after, .. } => Self::Expired(not_after.into()),
            Error::CertNotValidYet { not_before, .. } => Self::NotYetValid(not_before.into()),
            // A name that a CA has twice, with different keys, is no CA of ours either.
            Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => Self::UnknownCa,
            Error::CertRevoked => Self::Revoked,
            Error::UnknownRevocationStatus | Error::InvalidCrlSignatureForPublicKey | Error::IssuerNotCrlSigner => {
                Self::UnknownStatus
            }
            Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Self::WrongUse,
            other => Self::Unverifiable(other.to_string()),
        }
    }
}

/// As rustls is to report it: this chooses the alert the other end gets.
impl From<Refusal> for CertificateError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Expired(_) => Self::Expired,
            Refusal::NotYetValid(_) => Self::NotValidYet,
            Refusal::UnknownCa => Self::UnknownIssuer,
            Refusal::Revoked => Self::Revoked,
            Refusal::UnknownStatus => Self::UnknownRevocationStatus,
            Refusal::WrongUse => Self::InvalidPurpose,
            Refusal::NoIdentity(_) => Self::NotValidForName,
            Refusal::OtherDomain { .. } | Refusal::OtherIdentity { .. } => Self::ApplicationVerificationFailure,
            Refusal::NoCertificate | Refusal::Unverifiable(_) => Self::Other(OtherError(std::sync::Arc::new(refusal))),
        }
    }
}

/// What the other end has against our certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Objection {
    /// Its time is over, or has not come, by the other end's clock.
    #[error("our certificate has expired, or is not valid yet by its clock")]
    Expired,
    /// Named on its CRL.
    #[error("our certificate is revoked")]
    Revoked,
    /// From no CA it knows; or it has CRLs, and none of our CA.
    #[error("our certificate is from no CA in its ca.pem, or its crl.pem has no list of that CA")]
    UnknownCa,
    /// We are somebody else than it wants, or of another fabric.
    #[error("we are not the one it wanted, or of another trust domain")]
    Denied,
    /// We showed none.
    #[error("it demands a certificate, and we showed none")]
    NoCertificate,
    /// Names nobody.
    #[error("our certificate names no identity of the fabric: it needs one URI, spiffe://TRUST-DOMAIN/IDENTITY")]
    NoIdentity,
    /// Not for this use.
    #[error("our certificate is not for this use: it needs clientAuth to call, serverAuth to be called")]
    WrongUse,
    /// Some other reason.
    #[error("it gave the reason {0:?}")]
    Other(AlertDescription),
}

impl From<AlertDescription> for Objection {
    fn from(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateExpired => Self::Expired,
            AlertDescription::CertificateRevoked => Self::Revoked,
            AlertDescription::UnknownCA => Self::UnknownCa,
            AlertDescription::AccessDenied => Self::Denied,
            AlertDescription::CertificateRequired => Self::NoCertificate,
            AlertDescription::BadCertificate => Self::NoIdentity,
            AlertDescription::UnsupportedCertificate => Self::WrongUse,
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn each_refusal_is_heard_at_the_other_end_as_what_it_is() {
        let identity = |text: &str| text.parse::<Identity>().unwrap();
        let (found, wanted) = (identity("agent/h1"), identity("controller"));
        let stranger: SpiffeId = "spiffe://other/controller".parse().unwrap();
        let other_domain = Refusal::OtherDomain { found: stranger, ours: "throughline".parse().unwrap() };
        for (refusal, heard) in [
            (Refusal::Expired(Moment(0)), Objection::Expired),
            (Refusal::NotYetValid(Moment(0)), Objection::Expired),
            (Refusal::UnknownCa, Objection::UnknownCa),
            (Refusal::UnknownStatus, Objection::UnknownCa),
            (Refusal::Revoked, Objection::Revoked),
            (Refusal::WrongUse, Objection::WrongUse),
            (Refusal::NoIdentity(String::new()), Objection::NoIdentity),
            (Refusal::OtherIdentity { found, wanted }, Objection::Denied),
            (other_domain, Objection::Denied),
            (Refusal::Unverifiable(String::new()), Objection::Other(AlertDescription::CertificateUnknown)),
        ] {
            let alert = AlertDescription::from(CertificateError::from(refusal.clone()));
            assert_eq!(Objection::from(alert), heard, "{refusal}");
        }
    }
}
