//! One CA: its certificate, its key, and what it signs.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use time::OffsetDateTime;

use super::{AuthorityError, Index, State, Validity, files};
use crate::{Certificate, Identity, Moment, Serial, SpiffeId, TrustDomain};

/// Days after which a list is to be replaced: not before the CA itself. A fabric must not stop because nobody revoked anything.
const LIST_DAYS: u32 = 3650;

/// A CA.
#[derive(Debug)]
pub(super) struct Ca {
    pub(super) pem: String,
    pub(super) facts: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub(super) struct Made {
    pub(super) serial: Serial,
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Ca {
    pub(super) fn make(domain: &TrustDomain, validity: Validity) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(validity)?;
        // Lists are found by the name of their CA, so each CA needs a name of its own.
        let id = params.key_identifier(&key);
        params.distinguished_name = named(&format!("{domain} CA {}", &Serial::from_bytes(&id).as_str()[..8]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Self::of(certificate.der(), certificate.pem(), key)
    }

    fn of(der: &CertificateDer<'_>, pem: String, key: KeyPair) -> Result<Self, AuthorityError> {
        let facts = Certificate::read(der).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        Ok(Self { pem, facts, issuer: Issuer::from_ca_cert_der(der, key)? })
    }

    /// Reads all CAs of a directory.
    pub(super) fn read(certificates: &Path, keys: &Path) -> Result<Vec<Self>, AuthorityError> {
        let content = |path: &Path, problem: String| AuthorityError::Content { path: path.to_owned(), problem };
        let pem = files::read(certificates)?;
        let ders: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let ders = ders.map_err(|error| content(certificates, format!("is no PEM: {error}")))?;
        let key_pem = files::read_private(keys)?;
        let pairs: Result<Vec<_>, _> = PrivateKeyDer::pem_slice_iter(key_pem.as_bytes()).collect();
        let pairs = pairs.map_err(|error| content(keys, format!("is no PEM: {error}")))?;
        if ders.is_empty() || ders.len() != pairs.len() {
            let problem = format!("holds {} keys for {} CAs", pairs.len(), ders.len());
            return Err(content(keys, problem));
        }
        let one = |(der, key): (&CertificateDer<'static>, &PrivateKeyDer<'static>)| {
            let key = KeyPair::try_from(key).map_err(|error| content(keys, error.to_string()))?;
            let parsed = webpki::EndEntityCert::try_from(der).map(|parsed| parsed.subject_public_key_info());
            // CAs are no end entities, and webpki says so only when it verifies.
            let fits = parsed.is_ok_and(|spki| spki.as_ref() == key.subject_public_key_info());
            if !fits {
                return Err(content(keys, format!("does not fit {}", certificates.display())));
            }
            let wrong = |error: AuthorityError| content(certificates, error.to_string());
            Self::of(der, pem_of(der), key).map_err(wrong)
        };
        ders.iter().zip(&pairs).map(one).collect()
    }

    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a certificate with a key of its own.
    pub(super) fn issue(&self, id: &SpiffeId, validity: Validity) -> Result<Made, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(validity)?;
        params.distinguished_name = named(&id.identity.to_string());
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // Nobody calls an operator.
        if !matches!(id.identity, Identity::Operator(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let facts = Certificate::read(certificate.der()).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        Ok(Made { serial: facts.serial, certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// What of its certificates is revoked, signed.
    pub(super) fn list(&self, index: &Index) -> Result<String, AuthorityError> {
        let now = Moment::now();
        let revoked = index.entries.iter().filter(|entry| entry.ca == self.facts.serial);
        let revoked = revoked.filter_map(|entry| match entry.state {
            State::Revoked(when) => Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&entry.serial.to_bytes()),
                revocation_time: time_of(when).ok()?,
                reason_code: None,
                invalidity_date: None,
            }),
            State::Good => None,
        });
        let number = u64::try_from(now.0).unwrap_or_default();
        let list = CertificateRevocationListParams {
            this_update: time_of(now)?,
            next_update: time_of(now.plus_days(LIST_DAYS))?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}

fn params(validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.not_before = time_of(validity.from)?;
    params.not_after = time_of(validity.until)?;
    Ok(params)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn time_of(moment: Moment) -> Result<OffsetDateTime, AuthorityError> {
    Ok(OffsetDateTime::from_unix_timestamp(moment.0).map_err(|_| rcgen::Error::Time)?)
}

fn pem_of(der: &CertificateDer<'_>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()))
}
