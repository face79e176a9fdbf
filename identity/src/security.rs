//! How a program's connections are proved: by certificates, or, on loopback and only when told so, not at all.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::warn;

use crate::{CredentialsError, Identity, Keyring, credentials::CERTIFICATE};

/// Where daemons look for their credentials unless told otherwise.
pub const DAEMON_DIRECTORY: &str = "/etc/throughline/tls";

/// What all connections of a program have in common.
#[derive(Debug, Clone)]
pub enum Security {
    /// TLS 1.3, and both ends show certificates.
    Proven(Arc<Keyring>),
    /// `--insecure`: plaintext, on loopback addresses only.
    Insecure,
}

/// `--insecure` was to go beyond this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a loopback address, and --insecure is for those only: leave --insecure out and give credentials with \
     --tls (`throughline pki init --help`)"
)]
pub struct NotLoopback(pub SocketAddr);

impl Security {
    /// Reads the credentials in a directory, unless all is to be insecure.
    ///
    /// # Errors
    /// Those of [`Keyring::open`].
    pub fn load(directory: &Path, insecure: bool) -> Result<Self, CredentialsError> {
        if insecure { Ok(Self::Insecure) } else { Keyring::open(directory).map(Self::Proven) }
    }

    /// The same, for a daemon that must be `wanted`. Its credentials are watched as long as it lives; without any, the log says
    /// so, loudly.
    ///
    /// # Errors
    /// Those of [`Security::load`], or the certificate is somebody else's.
    pub fn of_daemon(directory: &Path, insecure: bool, wanted: &Identity) -> Result<Self, CredentialsError> {
        let security = Self::load(directory, insecure)?;
        let Self::Proven(keyring) = &security else {
            warn!("--insecure: PLAINTEXT, and whoever reaches this port on this machine MAY DO ANYTHING");
            return Ok(security);
        };
        if keyring.own().identity != *wanted {
            let (path, found) = (directory.join(CERTIFICATE), keyring.own().clone());
            return Err(CredentialsError::OtherIdentity { path, found, wanted: wanted.to_string() });
        }
        keyring.watch();
        Ok(security)
    }

    /// Who we are; nobody, if nothing is proved.
    pub fn own(&self) -> Option<&Identity> {
        match self {
            Self::Proven(keyring) => Some(&keyring.own().identity),
            Self::Insecure => None,
        }
    }

    /// Where the credentials are.
    pub fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Proven(keyring) => Some(keyring.directory().to_owned()),
            Self::Insecure => None,
        }
    }

    /// What an address begins with.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Proven(_) => "https",
            Self::Insecure => "http",
        }
    }
}
