//! Who is who in the fabric, and how it is proved: identities in certificates, credentials from a directory, the door of
//! every server, and the way of every client to the one it means.
//!
//! ```text
//!   directory ──► credentials ◄── keyring (reloads them; closes connections of the revoked)
//!                     │              ▲      ▲
//!                 examination      door    dial ──► Channel
//!                (both ends' verifier) │
//!                                      └──► Caller, in every request
//! ```

#[cfg(feature = "authority")]
pub mod authority;
mod caller;
mod certificate;
mod connection;
mod credentials;
mod dial;
mod door;
mod examination;
mod handshake;
mod keyring;
mod moment;
mod name;
mod refusal;
mod security;

pub use caller::Caller;
pub use certificate::{Certificate, Serial};
pub use connection::Connection;
pub use credentials::{Credentials, CredentialsError};
pub use dial::DialError;
pub use door::Door;
pub use handshake::HandshakeError;
pub use keyring::Keyring;
pub use moment::Moment;
pub use name::{Identity, InvalidIdentity, SpiffeId, TrustDomain};
pub use refusal::{Objection, Refusal};
pub use security::{DAEMON_DIRECTORY, NotLoopback, Security};
