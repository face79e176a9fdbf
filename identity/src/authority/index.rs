//! The record of what was issued: a text file, one certificate a line.

use std::{fmt, path::Path, str::FromStr};

use super::{AuthorityError, files};
use crate::{Identity, Moment, Serial, TrustDomain};

/// The file in the CA's directory.
pub(super) const FILE: &str = "index";

/// One certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub serial: Serial,
    /// The number of the CA it is from.
    pub ca: Serial,
    /// When it expires.
    pub expires: Moment,
    /// Whether it is good.
    pub state: State,
    /// Whose it is.
    pub identity: Identity,
}

/// Whether a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Until it expires.
    Good,
    /// No more, since then.
    Revoked(Moment),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serial, ca, expires, state, identity } = self;
        write!(f, "{serial} {ca} {} ", expires.0)?;
        match state {
            State::Good => f.write_str("good")?,
            State::Revoked(when) => write!(f, "revoked:{}", when.0)?,
        }
        write!(f, " {identity}")
    }
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<_> = line.split_whitespace().collect();
        let &[serial, ca, expires, state, identity] = words.as_slice() else {
            return Err("expected SERIAL CA EXPIRES STATE IDENTITY".to_owned());
        };
        let moment = |text: &str| text.parse().map(Moment).map_err(|_| format!("{text:?} is no second of time"));
        let state = match state.strip_prefix("revoked:") {
            Some(when) => State::Revoked(moment(when)?),
            None if state == "good" => State::Good,
            None => return Err(format!("{state:?} is neither good nor revoked:TIME")),
        };
        let identity = identity.parse().map_err(|error: crate::InvalidIdentity| error.to_string())?;
        Ok(Self { serial: serial.parse()?, ca: ca.parse()?, expires: moment(expires)?, state, identity })
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) domain: TrustDomain,
    /// The oldest first.
    pub(super) entries: Vec<Entry>,
}

impl Index {
    pub(super) fn new(domain: TrustDomain) -> Self {
        Self { domain, entries: Vec::new() }
    }

    pub(super) fn read(path: &Path) -> Result<Self, AuthorityError> {
        let text = files::read(path)?;
        let wrong = |line: usize, problem: String| AuthorityError::Content {
            path: path.to_owned(),
            problem: format!("line {}: {problem}", line + 1),
        };
        let mut lines = text.lines().enumerate();
        let domain = lines.next().and_then(|(_, line)| line.strip_prefix("trust-domain "));
        let domain = domain.ok_or_else(|| wrong(0, "expected trust-domain NAME".to_owned()))?;
        let domain = domain.parse().map_err(|error: crate::InvalidIdentity| wrong(0, error.to_string()))?;
        let entries = lines.map(|(number, line)| line.parse().map_err(|problem| wrong(number, problem)));
        Ok(Self { domain, entries: entries.collect::<Result<_, _>>()? })
    }

    /// The newest certificate of an identity that is good and has not expired.
    pub(super) fn current(&self, identity: &Identity) -> Option<&Entry> {
        let good =
            |entry: &&Entry| entry.identity == *identity && entry.state == State::Good && entry.expires > Moment::now();
        self.entries.iter().rev().find(good)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trust-domain {}", self.domain)?;
        self.entries.iter().try_for_each(|entry| writeln!(f, "{entry}"))
    }
}
