//! What one proves oneself by, and whom one believes: four files in one directory.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor, UnixTime,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use crate::{Certificate, Moment, Refusal, SpiffeId, examination::Role};

/// The CAs believed, one or more.
pub(crate) const CA: &str = "ca.pem";
/// Our own certificate, and those between it and a CA.
pub(crate) const CERTIFICATE: &str = "cert.pem";
/// Our own private key.
pub(crate) const KEY: &str = "key.pem";
/// What the CAs have revoked. The only file that may be absent.
pub(crate) const CRL: &str = "crl.pem";

/// Longest file read, bytes: a CRL of 100,000 certificates has about 4 MB.
const LONGEST_FILE: u64 = 16 << 20;

/// Why a directory gives no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}; `throughline pki issue` writes a directory of ca.pem, cert.pem, key.pem and crl.pem, and --tls says where it is", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The key could be read by others.
    #[error("{} may be read by others than its owner (mode {mode:03o}); chmod it to 600, and think about whether they did", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another identity's than before, or than this program is to have.
    #[error("{} is of {found}; {wanted} is needed here", path.display())]
    OtherIdentity {
        /// The file.
        path: PathBuf,
        /// Whose certificate it is.
        found: SpiffeId,
        /// Whose it must be.
        wanted: String,
    },
}

/// A CA that is believed.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) facts: Certificate,
}

/// Credentials, as they were in the directory at one moment.
#[derive(Debug)]
pub struct Credentials {
    /// Who we are.
    pub(crate) id: SpiffeId,
    /// What our own certificate says.
    pub(crate) facts: Certificate,
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) roots: Vec<Root>,
    /// `None`: the directory has no CRL, nothing is revoked.
    pub(crate) revoked: Option<Vec<CertRevocationList<'static>>>,
    /// When the first of the CRLs was to be replaced.
    pub(crate) next_crl: Option<Moment>,
}

/// The cryptography used everywhere.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl Credentials {
    /// Reads a directory.
    ///
    /// # Errors
    /// A file is missing, unreadable, wrong or does not fit the others. A CRL that is there and cannot be read is an error,
    /// not the absence of one.
    pub fn load(directory: &Path) -> Result<Self, CredentialsError> {
        let path = directory.join(CERTIFICATE);
        let wrong = |problem: String| CredentialsError::Content { path: path.clone(), problem };
        let chain: Vec<CertificateDer<'static>> = read_all(&path, "certificate")?;
        let facts = Certificate::read(&chain[0]).map_err(|problem| wrong(format!("has no certificate: {problem}")))?;
        let id = facts.id.clone().map_err(|problem| wrong(format!("names no identity of the fabric: {problem}")))?;
        let key = read_key(&directory.join(KEY))?;
        let fits = |error| wrong(format!("and {KEY} do not fit each other: {error}"));
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider()).map_err(fits)?);
        let (revoked, next_crl) = read_crls(&directory.join(CRL))?.unzip();
        Ok(Self { id, facts, key, roots: read_roots(&directory.join(CA))?, revoked, next_crl: next_crl.flatten() })
    }

    /// What an operator should hear of soon: one sentence each.
    pub(crate) fn warnings(&self, directory: &Path) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut mind = |file: &str, whose: &str, until: Moment| {
            let path = directory.join(file);
            match until.days_left() {
                left if left < 0 => warnings.push(format!("{} of {whose} expired on {until}", path.display())),
                left if left < EXPIRES_SOON => {
                    warnings.push(format!("{} of {whose} expires on {until}, in {left} days", path.display()));
                }
                _ => {}
            }
        };
        mind(CERTIFICATE, &self.id.identity.to_string(), self.facts.not_after);
        for root in &self.roots {
            mind(CA, &root.facts.subject, root.facts.not_after);
        }
        if let Some(next) = self.next_crl.filter(|next| next.days_left() < 0) {
            let path = directory.join(CRL);
            warnings
                .push(format!("{} was to be replaced by {next}; what was revoked since is not known", path.display()));
        }
        // Expiry is told above; a use that is excluded may be one nobody needs.
        match self.examine(&self.key.cert, Role::Client, UnixTime::now()) {
            Ok(_) | Err(Refusal::Expired(_) | Refusal::WrongUse) => {}
            Err(refusal) => {
                let path = directory.join(CERTIFICATE);
                warnings.push(format!("{} would be refused by the files beside it: {refusal}", path.display()));
            }
        }
        warnings
    }
}

/// Days before its end that a certificate is warned about.
const EXPIRES_SOON: i64 = 30;

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let unreadable = |source| CredentialsError::Unreadable { path: path.to_owned(), source };
    read_open(path, File::open(path).map_err(unreadable)?)
}

fn read_open(path: &Path, file: File) -> Result<Vec<u8>, CredentialsError> {
    let mut bytes = Vec::new();
    let read = file.take(LONGEST_FILE).read_to_end(&mut bytes);
    read.map_err(|source| CredentialsError::Unreadable { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// Everything of one kind in a PEM file, at least one.
fn read_all<T: PemObject>(path: &Path, what: &str) -> Result<Vec<T>, CredentialsError> {
    let bytes = read(path)?;
    let all: Result<Vec<T>, pem::Error> = T::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(CredentialsError::Content { path: path.to_owned(), problem: format!("has no {what} in it") }),
        Err(error) => Err(CredentialsError::Content { path: path.to_owned(), problem: format!("is no PEM: {error}") }),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let unreadable = |source| CredentialsError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    // Of the file that is read, not of whatever has the name a moment later.
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CredentialsError::Exposed { path: path.to_owned(), mode });
    }
    let bytes = read_open(path, file)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| CredentialsError::Content {
        path: path.to_owned(),
        problem: format!("has no private key in it: {error}"),
    })
}

fn read_roots(path: &Path) -> Result<Vec<Root>, CredentialsError> {
    let wrong = |problem: String| CredentialsError::Content { path: path.to_owned(), problem };
    let roots: Vec<CertificateDer<'static>> = read_all(path, "certificate")?;
    let root = |der: &CertificateDer<'static>| {
        let anchor = webpki::anchor_from_trusted_cert(der).map_err(|error| wrong(format!("has no CA: {error}")))?;
        let facts = Certificate::read(der).map_err(|problem| wrong(format!("has no CA: {problem}")))?;
        Ok(Root { anchor: anchor.to_owned(), facts })
    };
    roots.iter().map(root).collect()
}

type Crls = (Vec<CertRevocationList<'static>>, Option<Moment>);

fn read_crls(path: &Path) -> Result<Option<Crls>, CredentialsError> {
    let wrong = |problem: String| CredentialsError::Content { path: path.to_owned(), problem };
    let lists: Vec<CertificateRevocationListDer<'static>> = match read_all(path, "revocation list") {
        Ok(lists) => lists,
        Err(CredentialsError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut next = None;
    let mut all = Vec::new();
    for list in lists {
        let (_, facts) =
            CertificateRevocationList::from_der(&list).map_err(|error| wrong(format!("is no CRL: {error}")))?;
        let until = facts.next_update().map(|time| Moment(time.timestamp()));
        next = next.into_iter().chain(until).min();
        let list = OwnedCertRevocationList::from_der(&list).map_err(|error| wrong(format!("is no CRL: {error}")))?;
        all.push(list.into());
    }
    Ok(Some((all, next)))
}
