//! What the command's exit code says. Scripts rely on it: a code never changes its meaning.

use tonic::Code;

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// All done.
    Ok = 0,
    /// None of the others.
    Other = 1,
    /// Refused by the controller: a precondition does not hold, or one may not.
    Refused = 3,
    /// There is no such thing.
    NotFound = 4,
    /// The controller found a field wrong.
    WrongInput = 5,
    /// The controller was not reached, or did not answer in time.
    Unreachable = 6,
    /// The migration was undone before commit; the guest stays where it was.
    MigrationAborted = 7,
    /// Ctrl-C.
    Interrupted = 130,
    /// Whoever read the output went away; as a shell reports SIGPIPE.
    PipeClosed = 141,
}

/// The codes as `--help` shows them. 2 is clap's own.
pub(crate) const HELP: &str = "\
EXIT CODES:
  0    done
  1    any other failure
  2    usage: wrong flags or arguments
  3    refused: a precondition does not hold (exists already, host down, no memory, too late ...)
  4    not found
  5    wrong input: the controller names the field
  6    controller unreachable, or no answer in time
  7    the migration was aborted; the guest stays at its source
  130  interrupted; a migration being watched goes on
  141  the reader of the output went away";

impl From<Code> for Exit {
    fn from(code: Code) -> Self {
        match code {
            Code::Ok => Self::Ok,
            Code::InvalidArgument | Code::OutOfRange => Self::WrongInput,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated => Self::Refused,
            Code::DeadlineExceeded | Code::Unavailable => Self::Unreachable,
            Code::Cancelled | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Self::Other,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A gRPC code as its specification writes it, "FAILED_PRECONDITION".
pub(crate) fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of gRPC's codes with their number, name and exit code; the numbers are the specification's.
    const CODES: [(i32, &str, u8); 17] = [
        (0, "OK", 0),
        (1, "CANCELLED", 1),
        (2, "UNKNOWN", 1),
        (3, "INVALID_ARGUMENT", 5),
        (4, "DEADLINE_EXCEEDED", 6),
        (5, "NOT_FOUND", 4),
        (6, "ALREADY_EXISTS", 3),
        (7, "PERMISSION_DENIED", 3),
        (8, "RESOURCE_EXHAUSTED", 3),
        (9, "FAILED_PRECONDITION", 3),
        (10, "ABORTED", 3),
        (11, "OUT_OF_RANGE", 5),
        (12, "UNIMPLEMENTED", 1),
        (13, "INTERNAL", 1),
        (14, "UNAVAILABLE", 6),
        (15, "DATA_LOSS", 1),
        (16, "UNAUTHENTICATED", 3),
    ];

    #[test]
    fn every_grpc_code_has_its_exit_code_and_name() {
        for (number, name, exit) in CODES {
            let code = Code::from(number);
            assert_eq!(code_name(code), name);
            assert_eq!(Exit::from(code) as u8, exit, "{name}");
        }
    }

    #[test]
    fn help_lists_every_code() {
        use Exit::{Interrupted, MigrationAborted, NotFound, Ok, Other, PipeClosed, Refused, Unreachable, WrongInput};
        let all = [Ok, Other, Refused, NotFound, WrongInput, Unreachable, MigrationAborted, Interrupted, PipeClosed];
        let listed: Vec<u8> =
            HELP.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
        let mut expected: Vec<u8> = all.iter().map(|exit| *exit as u8).chain([2]).collect();
        expected.sort_unstable();
        assert_eq!(listed, expected);
    }
}
