//! Errors on the wire: the one place where a domain error becomes a gRPC status, and where a status is read back.
//!
//! Every status carries `google.rpc.ErrorInfo` (domain `throughline`, a stable reason) and, where a field is at fault,
//! `google.rpc.BadRequest` with its path; the message ends with what to do.

use std::{collections::HashMap, time::Duration};

use throughline_cutover::{Failure, InvalidNetworkValue, admission::Denial};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{InvalidField, Problem};

/// `ErrorInfo.domain` of every error of the fabric.
pub const ERROR_DOMAIN: &str = "throughline";

/// Why a call is not answered with what it asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field is not what it must be.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// Well formed, but it cannot be done.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// Not now: the service is stopping, or a stream had to end. Worth another try.
    #[error("{0}")]
    Unavailable(Failure),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Field(invalid) => {
                status(Code::InvalidArgument, problem_reason(&invalid.problem), Some(&invalid.field), message)
            }
            Refusal::Denied(denial) => status(denial_code(&denial), denial.reason(), Some(denial.field()), message),
            Refusal::Unavailable(failure) => status(Code::Unavailable, &failure.reason, None, failure.message),
        }
    }
}

/// A status with its `google.rpc` details; `field` is the path of the field at fault.
pub fn status(code: Code, reason: &str, field: Option<&str>, message: impl Into<String>) -> Status {
    let message = message.into();
    let mut details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::<String, String>::new());
    if let Some(field) = field {
        details.add_bad_request_violation(field, &message);
    }
    Status::with_error_details(code, message, details)
}

/// A status that says when to try again (`google.rpc.RetryInfo`).
pub fn try_again(code: Code, reason: &str, message: impl Into<String>, after: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::<String, String>::new());
    details.set_retry_info(Some(after));
    Status::with_error_details(code, message, details)
}

/// What a status says, as far as a script or an operator can act on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Stable code; `UNEXPLAINED` if the other side gave none.
    pub reason: String,
    /// Path of the field at fault.
    pub field: Option<String>,
    /// For people.
    pub message: String,
}

impl From<&Status> for Explanation {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone()).filter(|reason| !reason.is_empty());
        let violation = details.bad_request().and_then(|bad| bad.field_violations.first());
        Self {
            reason: reason.unwrap_or_else(|| "UNEXPLAINED".to_owned()),
            field: violation.map(|violation| violation.field.clone()),
            message: status.message().to_owned(),
        }
    }
}

fn problem_reason(problem: &Problem) -> &'static str {
    match problem {
        Problem::Missing => "MISSING_FIELD",
        Problem::Name(_) => "INVALID_NAME",
        Problem::Network(InvalidNetworkValue::Mac | InvalidNetworkValue::NotUnicast(_)) => "INVALID_MAC",
        Problem::Network(InvalidNetworkValue::Vni(_)) => "INVALID_VNI",
        Problem::Network(InvalidNetworkValue::CarryId(_)) => "INVALID_CARRY_ID",
        Problem::Network(InvalidNetworkValue::Mtu(_)) => "INVALID_MTU",
        Problem::Network(InvalidNetworkValue::Queues(_)) => "INVALID_QUEUES",
        Problem::Network(InvalidNetworkValue::PortId) => "INVALID_PORT_ID",
        Problem::Network(InvalidNetworkValue::MarkerSecret(_) | InvalidNetworkValue::MarkerSecretText) => {
            "INVALID_MARKER_SECRET"
        }
        Problem::Disk(_) => "INVALID_DISK",
        Problem::Address(_) => "INVALID_ADDRESS",
        Problem::Range { .. } => "OUT_OF_RANGE",
        Problem::PostCopy => "POST_COPY_UNSUPPORTED",
        Problem::Other(_) => "INVALID_VALUE",
    }
}

fn denial_code(denial: &Denial) -> Code {
    match denial {
        Denial::NameInUse { .. }
        | Denial::VniInUse { .. }
        | Denial::MacInUse { .. }
        | Denial::IpInUse { .. }
        | Denial::VtepInUse { .. }
        | Denial::PeerEndpointInUse { .. }
        | Denial::ReplicaExists { .. }
        | Denial::RequestIdReused { .. } => Code::AlreadyExists,
        Denial::UnknownNetwork { .. }
        | Denial::UnknownHost { .. }
        | Denial::UnknownGuest { .. }
        | Denial::UnknownEndpoint { .. }
        | Denial::UnknownReplica { .. }
        | Denial::UnknownPoint { .. }
        | Denial::UnknownMigration => Code::NotFound,
        Denial::HostNotEnrolled { .. } | Denial::OtherFabric(_) | Denial::TermUnproved(_) => Code::PermissionDenied,
        Denial::NotEnoughMemory { .. }
        | Denial::NoDestination { .. }
        | Denial::PortsExhausted
        | Denial::TooManyReplicas { .. }
        | Denial::TooManyMigrations { .. } => Code::ResourceExhausted,
        Denial::HostDown { .. }
        | Denial::HostPeerOnly { .. }
        | Denial::SameHost { .. }
        | Denial::AlreadyMigrating { .. }
        | Denial::GuestHasReplica { .. }
        | Denial::ReplicaAtDestination { .. }
        | Denial::ReplicaPromoted { .. }
        | Denial::TestUnderWay { .. }
        | Denial::NoTest { .. }
        | Denial::GuestHasNoDisk { .. }
        | Denial::FlattensStopped { .. }
        | Denial::NoPoint { .. }
        | Denial::SourceConnected { .. }
        | Denial::CopyNotEnded { .. }
        | Denial::DiskFateNeeded { .. }
        | Denial::DisksBeingDeleted { .. }
        | Denial::GuestNotRunning { .. }
        | Denial::GuestFailed { .. }
        | Denial::NetworkInUse { .. }
        | Denial::HostInUse { .. }
        | Denial::HostConnected { .. }
        | Denial::TooLate { .. }
        | Denial::NotUnresolved { .. }
        | Denial::DestinationConnected { .. }
        | Denial::StoodDown(_) => Code::FailedPrecondition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_survives_the_wire() {
        let denial = Denial::UnknownMigration;
        let status = Status::from(Refusal::from(denial.clone()));
        assert_eq!(status.code(), Code::NotFound);
        let explanation = Explanation::from(&status);
        assert_eq!(explanation.reason, "UNKNOWN_MIGRATION");
        assert_eq!(explanation.field.as_deref(), Some("id"));
        assert_eq!(explanation.message, denial.to_string());
    }

    #[test]
    fn a_wrong_field_is_named() {
        let invalid = InvalidField::new("network.vni", InvalidNetworkValue::Vni(1 << 24));
        let status = Status::from(Refusal::from(invalid));
        assert_eq!(status.code(), Code::InvalidArgument);
        let explanation = Explanation::from(&status);
        assert_eq!((explanation.reason.as_str(), explanation.field.as_deref()), ("INVALID_VNI", Some("network.vni")));
    }

    #[test]
    fn a_status_says_when_to_try_again() {
        let after = Duration::from_millis(40);
        let status = try_again(Code::ResourceExhausted, "TOO_MANY_CALLS", "wait", after);
        assert_eq!(Explanation::from(&status).reason, "TOO_MANY_CALLS");
        let details = status.get_error_details();
        assert_eq!(details.retry_info().and_then(|retry| retry.retry_delay), Some(after));
    }

    #[test]
    fn a_foreign_status_has_no_reason() {
        let explanation = Explanation::from(&Status::unknown("what?"));
        assert_eq!(explanation.reason, "UNEXPLAINED");
        assert_eq!(explanation.field, None);
    }
}
