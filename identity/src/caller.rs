//! Who calls: decided where a connection is accepted, asked where a call is answered.

use std::fmt;

use tonic::{Request, Status};

use crate::Identity;

/// Who is at the other end of the connection a call came over. Every server puts one into the request's extensions; a
/// request without one came past the door and is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Proved by a certificate.
    Known(Identity),
    /// Proved nothing: the daemon serves with `--insecure`, on loopback. May do anything.
    Unproven,
}

impl Caller {
    /// Who called.
    ///
    /// # Errors
    /// `INTERNAL` if the request does not say: the service is served without its door, which is a defect.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>();
        caller
            .cloned()
            .ok_or_else(|| Status::internal("the caller is not known; the service is served without its door"))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(identity) => identity.fmt(f),
            Self::Unproven => f.write_str("unproven (--insecure)"),
        }
    }
}
