//! One line of the log.

use std::net::SocketAddr;

use serde::{Serialize, Serializer};
use throughline_cutover::{GuestName, HostName, InterfaceName, NetworkName, ReplicaName};
use throughline_identity::{Caller, Identity};
use throughline_wire::{Explanation, v1};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// Longest reason written.
const LONGEST_REASON: usize = 64;

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// By certificate.
    Known(Identity),
    /// The controller serves with `--insecure`.
    Unproven,
    /// The connection did not say.
    Unknown,
}

impl Who {
    pub(super) fn of(caller: Option<&Caller>) -> Self {
        match caller {
            Some(Caller::Known(identity)) => Self::Known(identity.clone()),
            Some(Caller::Unproven) => Self::Unproven,
            None => Self::Unknown,
        }
    }
}

impl Serialize for Who {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(identity) => serializer.collect_str(identity),
            Self::Unproven => serializer.serialize_str("unproven"),
            Self::Unknown => serializer.serialize_str("unknown"),
        }
    }
}

/// What it was done to. Only checked names get in here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Object {
    /// A network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<NetworkName>,
    /// A host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<HostName>,
    /// A guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<GuestName>,
    /// An endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<InterfaceName>,
    /// A migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) migration: Option<Uuid>,
    /// Where it leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<HostName>,
    /// Where it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) destination: Option<HostName>,
    /// What is to become of a guest's disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disks: Option<v1::DiskFate>,
}

impl Object {
    /// A network.
    pub(crate) fn network(name: &NetworkName) -> Self {
        Self { network: Some(name.clone()), ..Self::default() }
    }

    /// A host.
    pub(crate) fn host(name: &HostName) -> Self {
        Self { host: Some(name.clone()), ..Self::default() }
    }

    /// A guest.
    pub(crate) fn guest(name: &GuestName) -> Self {
        Self { guest: Some(name.clone()), ..Self::default() }
    }

    /// An endpoint.
    pub(crate) fn endpoint(name: &InterfaceName) -> Self {
        Self { endpoint: Some(name.clone()), ..Self::default() }
    }

    /// A replica.
    pub(crate) fn replica(name: &ReplicaName) -> Self {
        Self { host: Some(name.host.clone()), ..Self::guest(&name.guest) }
    }

    /// A migration, if that is an id of one.
    pub(crate) fn migration(id: &str) -> Self {
        Self { migration: id.parse().ok(), ..Self::default() }
    }
}

/// A stable code, as it may be written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub(crate) struct Reason(String);

impl Reason {
    /// Agents give reasons too: one that is not of the form is not repeated.
    fn new(reason: &str) -> Self {
        let allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        let good = !reason.is_empty() && reason.len() <= LONGEST_REASON && reason.bytes().all(allowed);
        Self(if good { reason.to_owned() } else { "UNEXPLAINED".to_owned() })
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Outcome {
    /// Done.
    Done,
    /// A migration that moved its guest, but not without a loss.
    DoneWith(Reason),
    /// Not done.
    Refused(Reason),
    /// A migration that was undone.
    Aborted(Reason),
    /// The caller went away, or was sent away for being late, before the answer: it may have been done.
    Unanswered,
}

impl Outcome {
    /// Of a call that was answered with an error.
    pub(crate) fn of(error: Explanation) -> Self {
        Self::refused(&error.reason)
    }

    pub(super) fn refused(reason: &str) -> Self {
        Self::Refused(Reason::new(reason))
    }

    pub(super) fn ended(moved: bool, reason: Option<&str>) -> Self {
        match (moved, reason) {
            (true, None) => Self::Done,
            (true, Some(reason)) => Self::DoneWith(Reason::new(reason)),
            (false, reason) => Self::Aborted(Reason::new(reason.unwrap_or_default())),
        }
    }
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub(super) at: String,
    pub(super) who: Who,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<SocketAddr>,
    pub(super) did: &'static str,
    #[serde(flatten)]
    pub(super) object: Object,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
    /// How often the same came again since the line before it.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) repeated: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Line {
    pub(super) fn new(who: Who, from: Option<SocketAddr>, did: &'static str, object: Object, outcome: Outcome) -> Self {
        Self { at: now(), who, from, did, object, outcome, repeated: 0 }
    }

    /// As it is written, its end included.
    pub(super) fn text(&self) -> String {
        let mut text = serde_json::to_string(self).expect("a line is plain data with text keys");
        text.push('\n');
        text
    }
}

/// UTC, to the millisecond.
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(now.millisecond() as u32 * 1_000_000).unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_object() {
        let who = Who::Known("operator/alice".parse().unwrap());
        let object = Object { destination: Some("h2".parse().unwrap()), ..Object::guest(&"web-1".parse().unwrap()) };
        let from = Some("192.0.2.9:4242".parse().unwrap());
        let text = Line::new(who, from, "MigrateGuest", object, Outcome::refused("HOST_DOWN")).text();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let at = json.as_object_mut().unwrap().remove("at").unwrap();
        let at = at.as_str().unwrap();
        assert!(at.starts_with("20") && at.as_bytes()[10] == b'T' && at.ends_with('Z'), "{at}");
        let expected = serde_json::json!({ "who": "operator/alice", "from": "192.0.2.9:4242", "did": "MigrateGuest",
            "guest": "web-1", "destination": "h2", "outcome": "REFUSED", "reason": "HOST_DOWN" });
        assert_eq!(json, expected);
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn nothing_unchecked_gets_into_a_line() {
        let forged = "X\"}\n{\"who\":\"operator/eve\"";
        assert_eq!(Object::migration(forged), Object::default());
        assert_eq!(Outcome::ended(false, Some(forged)), Outcome::ended(false, Some("UNEXPLAINED")));
        assert_eq!(Outcome::refused(&"A".repeat(65)), Outcome::refused("UNEXPLAINED"));
        assert_eq!(Outcome::refused("ROLE_TOO_LOW"), Outcome::Refused(Reason("ROLE_TOO_LOW".to_owned())));
    }
}
