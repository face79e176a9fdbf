//! What a certificate says its holder is: a SPIFFE ID, in the URI of its subject alternative name.

use std::{fmt, str::FromStr};

use throughline_cutover::{HostName, InvalidName, OperatorName};

/// The scheme of every SPIFFE ID (SPIFFE-ID, section 2).
const SCHEME: &str = "spiffe://";
/// Longest trust domain (SPIFFE-ID, section 2.1).
const LONGEST_DOMAIN: usize = 255;

/// Somebody or something the fabric knows by a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// `controller`: whoever commands.
    Controller,
    /// `agent/<host>`: the agent of one host, and of no other.
    Agent(HostName),
    /// `operator/<name>`: a person or a program that uses the public API. What it may do is its role's matter.
    Operator(OperatorName),
}

/// Why something is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// None of the three forms.
    #[error("{0:?} is no identity; it must be controller, agent/HOST or operator/NAME")]
    Form(String),
    /// The name in it is none.
    #[error("the name in {identity:?} {problem}")]
    Name {
        /// What was given.
        identity: String,
        /// What is wrong with the name.
        problem: InvalidName,
    },
    /// Not a SPIFFE ID.
    #[error("{0:?} is no SPIFFE ID; it must be spiffe://TRUST-DOMAIN/ and an identity")]
    Scheme(String),
    /// Not a trust domain.
    #[error("{0:?} is no trust domain; use 1 to 255 characters of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("controller"),
            Self::Agent(host) => write!(f, "agent/{host}"),
            Self::Operator(name) => write!(f, "operator/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let name = |problem| InvalidIdentity::Name { identity: text.to_owned(), problem };
        match text.split_once('/') {
            None if text == "controller" => Ok(Self::Controller),
            Some(("agent", host)) => host.parse().map(Self::Agent).map_err(name),
            Some(("operator", operator)) => operator.parse().map(Self::Operator).map_err(name),
            _ => Err(InvalidIdentity::Form(text.to_owned())),
        }
    }
}

/// The fabric's name in its certificates. Two ends talk only if theirs is the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl FromStr for TrustDomain {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if text.is_empty() || text.len() > LONGEST_DOMAIN || !text.bytes().all(allowed) {
            return Err(InvalidIdentity::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An identity within its trust domain: `spiffe://throughline/agent/h1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// Whose fabric.
    pub domain: TrustDomain,
    /// Who in it.
    pub identity: Identity,
}

impl FromStr for SpiffeId {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let rest = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/'));
        let (domain, identity) = rest.ok_or_else(|| InvalidIdentity::Scheme(text.to_owned()))?;
        Ok(Self { domain: domain.parse()?, identity: identity.parse()? })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.domain, self.identity)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn identities_are_read_as_they_are_written() {
        for text in ["spiffe://throughline/controller", "spiffe://bank.example/agent/h1", "spiffe://t/operator/alice"] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        let bad = [
            "",
            "controller",
            "https://throughline/controller",
            "spiffe://throughline",
            "spiffe:///controller",
            "spiffe://Throughline/controller",
            "spiffe://throughline/controller/",
            "spiffe://throughline/agent/",
            "spiffe://throughline/agent/h1/x",
            "spiffe://throughline/agent/../h1",
            "spiffe://throughline/root",
            "spiffe://user@throughline/controller",
        ];
        for text in bad {
            text.parse::<SpiffeId>().expect_err(text);
        }
    }
}
