//! Why the command failed: one shape for everything, shown to people or as JSON.

use std::io::{self, ErrorKind, Write as _};

use serde::Serialize;
use throughline_identity::{DialError, HandshakeError};
use throughline_wire::Explanation;
use tonic::Status;

use crate::{
    exit::{Exit, code_name},
    output::Format,
    table::printable,
};

const CHECK_CONTROLLER: &str =
    "check that throughline-controller runs, and that --controller or THROUGHLINE_CONTROLLER names it";

/// A failure. Boxed, so that results stay small.
#[derive(Debug)]
pub(crate) struct Failure(Box<Facts>);

/// All that is known about a failure. The JSON form is documented in the command's help: fields may be added, never
/// changed.
#[derive(Debug, Serialize)]
struct Facts {
    /// What could not be done: "create network blue".
    what: String,
    /// Why, for people.
    message: String,
    /// Stable code, what scripts match on.
    reason: String,
    /// The gRPC code, when the controller answered.
    code: Option<String>,
    /// The field at fault, when one is.
    field: Option<String>,
    /// What to do next.
    next: Option<String>,
    /// The command's exit code.
    #[serde(rename = "exit_code", serialize_with = "as_number")]
    exit: Exit,
}

fn as_number<S: serde::Serializer>(exit: &Exit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(*exit as u8)
}

impl Failure {
    /// A failure found on this side.
    pub(crate) fn new(exit: Exit, reason: &str, what: impl Into<String>, message: impl Into<String>) -> Self {
        let (what, message, reason) = (what.into(), message.into(), reason.to_owned());
        Self(Box::new(Facts { what, message, reason, code: None, field: None, next: None, exit }))
    }

    /// The same, with what to do next.
    #[must_use]
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.0.next = Some(next.into());
        self
    }

    /// The controller was not reached, or the connection to it broke.
    pub(crate) fn unreachable(what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::new(Exit::Unreachable, "CONTROLLER_UNREACHABLE", what, innermost(error)).next(CHECK_CONTROLLER)
    }

    /// The connection was not made: nobody is there, or one of the two would not have the other.
    pub(crate) fn not_dialled(what: impl Into<String>, error: &DialError) -> Self {
        let (exit, reason) = match error {
            DialError::Address(_) => (Exit::Refused, "WRONG_SCHEME"),
            DialError::NotLoopback(_) => (Exit::Refused, "NOT_LOOPBACK"),
            DialError::Unreachable(_) => (Exit::Unreachable, "CONTROLLER_UNREACHABLE"),
            DialError::Handshake { error, .. } => match **error {
                HandshakeError::Refused(_) => (Exit::Refused, "CONTROLLER_NOT_TRUSTED"),
                HandshakeError::Objected(_) => (Exit::Refused, "CERTIFICATE_REFUSED"),
                _ => (Exit::Unreachable, "CONTROLLER_UNREACHABLE"),
            },
        };
        let failure = Self::new(exit, reason, what, error.to_string());
        match error.advice() {
            Some(advice) => failure.next(advice),
            None if exit == Exit::Unreachable => failure.next(CHECK_CONTROLLER),
            None => failure,
        }
    }

    /// The controller's answer. A status that was made on this side, because the connection broke or the other end does
    /// not speak gRPC, has a source; one that was received has none.
    pub(crate) fn answered(what: impl Into<String>, status: &Status) -> Self {
        if let Some(source) = std::error::Error::source(status) {
            if let Some(error) = DialError::find(source) {
                return Self::not_dialled(what, error);
            }
            return Self::unreachable(what, source);
        }
        let Explanation { reason, field, message } = status.into();
        let code = Some(code_name(status.code()));
        let exit = status.code().into();
        Self(Box::new(Facts { what: what.into(), message, reason, code, field, next: None, exit }))
    }

    /// True when trying again later may help: the controller is away.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.0.exit == Exit::Unreachable
    }

    /// Says it on stderr and gives the exit code. Whoever closed our output wants to hear nothing.
    pub(crate) fn report(&self, format: Format) -> Exit {
        if self.0.exit != Exit::PipeClosed {
            // When stderr is gone as well the exit code is all that is left to tell it.
            let _ = io::stderr().write_all(self.0.render(format).as_bytes());
        }
        self.0.exit
    }
}

impl Facts {
    fn render(&self, format: Format) -> String {
        match format {
            Format::Json => format!("{}\n", serde_json::json!({ "error": self })),
            Format::Table => {
                let message = if self.message.is_empty() { "no reason given" } else { &self.message };
                let mut text =
                    format!("error: {}: {} ({})\n", printable(&self.what), printable(message), printable(&self.reason));
                for (label, value) in [("field", &self.field), ("next", &self.next)] {
                    if let Some(value) = value {
                        text += &format!("  {label}: {}\n", printable(value));
                    }
                }
                text
            }
        }
    }
}

impl From<io::Error> for Failure {
    /// Output could not be written.
    fn from(error: io::Error) -> Self {
        let exit = if error.kind() == ErrorKind::BrokenPipe { Exit::PipeClosed } else { Exit::Other };
        Self::new(exit, "OUTPUT", "write the output", error.to_string())
    }
}

/// What an error chain ends with: transport layers only say "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use throughline_wire::status;
    use tonic::Code;

    use super::*;

    #[test]
    fn text_names_reason_field_and_next() {
        let status = status(Code::InvalidArgument, "INVALID_VNI", Some("network.vni"), "is 0\u{1b}[2J");
        let failure = Failure::answered("create network blue", &status).next("choose another");
        let expected =
            "error: create network blue: is 0\u{fffd}[2J (INVALID_VNI)\n  field: network.vni\n  next: choose another\n";
        assert_eq!(failure.0.render(Format::Table), expected);
    }

    #[test]
    fn json_has_every_field() {
        let status = status(Code::NotFound, "UNKNOWN_GUEST", None, "no such guest");
        let failure = Failure::answered("get guest web-1", &status);
        let json: serde_json::Value = serde_json::from_str(&failure.0.render(Format::Json)).unwrap();
        let expected = serde_json::json!({ "error": {
            "what": "get guest web-1", "message": "no such guest", "reason": "UNKNOWN_GUEST", "code": "NOT_FOUND",
            "field": null, "next": null, "exit_code": 4,
        }});
        assert_eq!(json, expected);
    }

    #[test]
    fn a_closed_pipe_is_silent() {
        let failure = Failure::from(io::Error::from(ErrorKind::BrokenPipe));
        assert_eq!(failure.report(Format::Table), Exit::PipeClosed);
    }
}
