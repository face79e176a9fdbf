//! A private CA in a directory, for those who have none. Any other serves as well: what a certificate needs is one URI among
//! its alternative names, `spiffe://TRUST-DOMAIN/IDENTITY`.
//!
//! ```text
//!   DIR/ca.pem ca-key.pem crl.pem     the CA; during a change-over two of each, the newer one first
//!   DIR/index                         what was issued, and what of it is revoked
//!   DIR/roles                         what operators may do, for the controller
//!   DIR/controller/                   ca.pem, cert.pem, key.pem, crl.pem: ready to be copied
//!   DIR/agent/HOST/  DIR/operator/NAME/
//! ```

mod ca;
mod files;
mod index;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::{
    Identity, Moment, Serial, SpiffeId, TrustDomain,
    credentials::{CA, CERTIFICATE, CRL, KEY},
};

use ca::Ca;
use index::Index;
pub use index::{Entry, State};

/// Private keys of the CAs.
const CA_KEY: &str = "ca-key.pem";
/// Names and roles of operators.
const ROLES: &str = "roles";
const FIRST_ROLES: &str = "\
# One operator a line: NAME ROLE. Roles: viewer, operator, admin. The controller reads this.
admin admin
";
/// The first operator.
const FIRST_OPERATOR: &str = "operator/admin";

/// Days a certificate lasts unless said otherwise.
pub const DAYS: u32 = 365;
/// Days a CA lasts.
const CA_DAYS: u32 = 3650;
/// How far behind a clock may be, seconds: a day, for those that are set by the wrong time zone.
const SKEW: i64 = 24 * 60 * 60;

/// Why the CA did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is a CA already.
    #[error("{} exists: there is a CA in this directory; issue from it, or choose another --dir", .0.display())]
    Exists(PathBuf),
    /// There is no CA.
    #[error("{} does not exist: there is no CA in this directory; make one with `throughline pki init`", .0.display())]
    NoCa(PathBuf),
    /// It has one that is good.
    #[error("{0} has certificate {1} already; `throughline pki rotate {0}` issues another one")]
    Issued(Identity, Serial),
    /// Nothing was ever issued.
    #[error("nothing was issued to {0}; `throughline pki show` lists what was")]
    Unknown(String),
    /// A change-over is under way.
    #[error(
        "the change-over from the old CA is not finished: rotate what `throughline pki show` lists as old, then `throughline pki rotate --ca --finish`"
    )]
    ChangingOver,
    /// No change-over is under way.
    #[error("there is one CA only, so there is no change-over to finish")]
    NotChangingOver,
    /// Certificates of the old CA are in use.
    #[error("{} still from the old CA: rotate and copy them first, or revoke them", list(.0))]
    StillOld(Vec<Identity>),
    /// Cryptography failed.
    #[error("cannot make a certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

fn list(identities: &[Identity]) -> String {
    let names: Vec<_> = identities.iter().map(ToString::to_string).collect();
    format!(
        "{} {}",
        names.join(", "),
        if names.len() == 1 { "has a certificate that is" } else { "have certificates that are" }
    )
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub from: Moment,
    /// Until.
    pub until: Moment,
}

impl Validity {
    /// From a little before now, because clocks differ, for so many days.
    pub fn days(days: u32) -> Self {
        let now = Moment::now();
        Self { from: Moment(now.0 - SKEW), until: now.plus_days(days) }
    }
}

/// A CA and the directory it lives in, which is nobody else's while this lives.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    /// The newest first.
    cas: Vec<Ca>,
    index: Index,
    _lock: File,
}

impl Authority {
    /// Makes a CA, with a certificate for the controller and one for the first operator.
    ///
    /// # Errors
    /// There is one, or a file cannot be written.
    pub fn init(directory: &Path, domain: TrustDomain) -> Result<Self, AuthorityError> {
        files::make_directory(directory)?;
        let lock = files::lock(directory)?;
        let ca_file = directory.join(CA);
        if ca_file.exists() {
            return Err(AuthorityError::Exists(ca_file));
        }
        let cas = vec![Ca::make(&domain, Validity::days(CA_DAYS))?];
        let index = Index::new(domain);
        let mut authority = Self { directory: directory.to_owned(), cas, index, _lock: lock };
        files::write(&directory.join(ROLES), FIRST_ROLES, files::PUBLIC)?;
        authority.save()?;
        authority.issue(Identity::Controller, Validity::days(DAYS), None)?;
        let operator = FIRST_OPERATOR.parse().map_err(|_| AuthorityError::Unknown(FIRST_OPERATOR.to_owned()))?;
        authority.issue(operator, Validity::days(DAYS), None)?;
        Ok(authority)
    }

    /// Opens the CA in a directory.
    ///
    /// # Errors
    /// There is none, or its files do not read.
    pub fn open(directory: &Path) -> Result<Self, AuthorityError> {
        let ca_file = directory.join(CA);
        if !ca_file.exists() {
            return Err(AuthorityError::NoCa(ca_file));
        }
        let lock = files::lock(directory)?;
        let index = Index::read(&directory.join(index::FILE))?;
        let cas = Ca::read(&ca_file, &directory.join(CA_KEY))?;
        Ok(Self { directory: directory.to_owned(), cas, index, _lock: lock })
    }

    /// The trust domain it issues for.
    pub fn domain(&self) -> &TrustDomain {
        &self.index.domain
    }

    /// Everything issued, the oldest first, and whether it is from a CA that is being left.
    pub fn entries(&self) -> impl Iterator<Item = (&Entry, bool)> {
        let newest = self.cas.first().map(|ca| &ca.facts.serial);
        self.index.entries.iter().map(move |entry| (entry, Some(&entry.ca) != newest))
    }

    /// Where the certificate of an identity is written unless said otherwise.
    pub fn place(&self, identity: &Identity) -> PathBuf {
        self.directory.join(identity.to_string())
    }

    /// Issues a first certificate to somebody, into a directory ready to be copied.
    ///
    /// # Errors
    /// It has one, or a file cannot be written.
    pub fn issue(
        &mut self,
        identity: Identity,
        validity: Validity,
        out: Option<&Path>,
    ) -> Result<Entry, AuthorityError> {
        if let Some(entry) = self.index.current(&identity) {
            return Err(AuthorityError::Issued(identity, entry.serial.clone()));
        }
        self.make(identity, validity, out)
    }

    /// Issues another one, with another key. The one before stays good until it expires or is revoked.
    ///
    /// # Errors
    /// Nothing was ever issued to it, or a file cannot be written.
    pub fn rotate(
        &mut self,
        identity: Identity,
        validity: Validity,
        out: Option<&Path>,
    ) -> Result<Entry, AuthorityError> {
        if !self.index.entries.iter().any(|entry| entry.identity == identity) {
            return Err(AuthorityError::Unknown(identity.to_string()));
        }
        self.make(identity, validity, out)
    }

    fn make(&mut self, identity: Identity, validity: Validity, out: Option<&Path>) -> Result<Entry, AuthorityError> {
        let Some(ca) = self.cas.first() else { return Err(AuthorityError::NoCa(self.directory.join(CA))) };
        let id = SpiffeId { domain: self.index.domain.clone(), identity: identity.clone() };
        let made = ca.issue(&id, validity)?;
        let entry = Entry {
            serial: made.serial,
            ca: ca.facts.serial.clone(),
            expires: validity.until,
            state: State::Good,
            identity,
        };
        // In the index first: what was issued and is not in it could never be revoked.
        self.index.entries.push(entry.clone());
        self.save()?;
        let out = out.map_or_else(|| self.place(&entry.identity), Path::to_owned);
        files::make_directory(&out)?;
        self.share(&out)?;
        files::write(&out.join(KEY), &made.key, files::PRIVATE)?;
        files::write(&out.join(CERTIFICATE), &made.certificate, files::PUBLIC)?;
        if entry.identity == Identity::Controller && !out.join(ROLES).exists() {
            let roles = files::read(&self.directory.join(ROLES))?;
            files::write(&out.join(ROLES), &roles, files::PUBLIC)?;
        }
        Ok(entry)
    }

    /// Revokes a certificate, or all of an identity; says which.
    ///
    /// # Errors
    /// Nothing good of that name was issued, or a file cannot be written.
    pub fn revoke(&mut self, what: &str) -> Result<Vec<Entry>, AuthorityError> {
        let mut revoked = Vec::new();
        for entry in &mut self.index.entries {
            let meant = entry.identity.to_string() == what || entry.serial.as_str() == what;
            if meant && entry.state == State::Good {
                entry.state = State::Revoked(Moment::now());
                revoked.push(entry.clone());
            }
        }
        if revoked.is_empty() {
            return Err(AuthorityError::Unknown(what.to_owned()));
        }
        self.save()?;
        Ok(revoked)
    }

    /// Makes a new CA. The old one stays in `ca.pem` as the second, so that all certificates are good until the change-over
    /// is finished.
    ///
    /// # Errors
    /// One is under way, or a file cannot be written.
    pub fn rotate_ca(&mut self) -> Result<(), AuthorityError> {
        if self.cas.len() > 1 {
            return Err(AuthorityError::ChangingOver);
        }
        self.cas.insert(0, Ca::make(&self.index.domain, Validity::days(CA_DAYS))?);
        self.save()
    }

    /// Drops the old CA.
    ///
    /// # Errors
    /// Somebody's newest certificate is from it.
    pub fn finish_ca(&mut self) -> Result<(), AuthorityError> {
        let [new, _, ..] = self.cas.as_slice() else { return Err(AuthorityError::NotChangingOver) };
        let mut old: Vec<_> = self.index.entries.iter().map(|entry| &entry.identity).collect();
        old.sort();
        old.dedup();
        old.retain(|identity| self.index.current(identity).is_some_and(|entry| entry.ca != new.facts.serial));
        if !old.is_empty() {
            return Err(AuthorityError::StillOld(old.into_iter().cloned().collect()));
        }
        self.cas.truncate(1);
        self.save()
    }

    /// Writes index, CAs and lists, and the latter into every directory in ours that is ready to be copied.
    fn save(&self) -> Result<(), AuthorityError> {
        files::write(&self.directory.join(index::FILE), &self.index.to_string(), files::PUBLIC)?;
        let keys: String = self.cas.iter().map(Ca::key_pem).collect();
        files::write(&self.directory.join(CA_KEY), &keys, files::PRIVATE)?;
        self.share(&self.directory)?;
        for identity in self.index.entries.iter().map(|entry| &entry.identity) {
            let place = self.place(identity);
            if place.join(CERTIFICATE).exists() {
                self.share(&place)?;
            }
        }
        Ok(())
    }

    /// What everybody has alike.
    fn share(&self, directory: &Path) -> Result<(), AuthorityError> {
        let lists: Result<String, _> = self.cas.iter().map(|ca| ca.list(&self.index)).collect();
        let cas: String = self.cas.iter().map(|ca| ca.pem.as_str()).collect();
        files::write(&directory.join(CRL), &lists?, files::PUBLIC)?;
        files::write(&directory.join(CA), &cas, files::PUBLIC)
    }
}

#[cfg(test)]
mod tests;
