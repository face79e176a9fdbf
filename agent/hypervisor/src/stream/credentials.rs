//! By what the two ends of one sealed stream know each other: certificates of an authority that is made for this stream and
//! forgotten with it. Its own key is thrown away at once, so that there will never be a third certificate.

use std::fmt;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};

/// The name a destination's certificate is for.
pub(super) const DESTINATION: &str = "destination.throughline.internal";
/// And a source's, which nobody looks for.
const SOURCE: &str = "source.throughline.internal";

/// What one end shows and whom it believes, in DER. A secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// Certificate of the authority.
    pub authority: Vec<u8>,
    /// This end's certificate.
    pub certificate: Vec<u8>,
    /// Its key, PKCS #8.
    pub key: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// New ones.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) source: Credentials,
    pub(super) destination: Credentials,
}

impl Pair {
    pub(super) fn fresh() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = authority.self_signed(&key)?;
        let issuer = Issuer::new(authority, key);
        Ok(Self {
            source: issue(SOURCE, ExtendedKeyUsagePurpose::ClientAuth, &certificate, &issuer)?,
            destination: issue(DESTINATION, ExtendedKeyUsagePurpose::ServerAuth, &certificate, &issuer)?,
        })
    }
}

/// Valid for as long as certificates can be: what ends it is that it is used once. The two hosts' clocks have no say in it.
fn issue(
    name: &str,
    purpose: ExtendedKeyUsagePurpose,
    authority: &Certificate,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<Credentials, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Credentials {
        authority: authority.der().to_vec(),
        certificate: certificate.der().to_vec(),
        key: key.serialize_der(),
    })
}
