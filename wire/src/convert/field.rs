//! Which field was wrong and why.

use std::{fmt, net::AddrParseError, str::FromStr};

use throughline_cutover::{InvalidDisk, InvalidName, InvalidNetworkValue};

/// A field that cannot be what it was given as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidField {
    /// Path of the field in the message, `spec.ports[0].mac` form.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field. Reads on after the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Required, absent.
    #[error("is missing")]
    Missing,
    /// Not a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Not such a network value.
    #[error(transparent)]
    Network(#[from] InvalidNetworkValue),
    /// Not such a value of a disk.
    #[error(transparent)]
    Disk(#[from] InvalidDisk),
    /// Not an IP address.
    #[error("is not an IP address ({0})")]
    Address(String),
    /// A number out of its range.
    #[error("is {value}; allowed are {least} to {most} {unit}")]
    Range {
        /// As given.
        value: u64,
        /// Smallest allowed.
        least: u64,
        /// Largest allowed.
        most: u64,
        /// Of what.
        unit: &'static str,
    },
    /// A policy that is known and not had.
    #[error(
        "is POST_COPY, which this fabric does not do: a guest that runs while part of its memory is still at the source is \
         lost if either host dies; choose GIVE_UP, THROTTLE or LONGER_PAUSE"
    )]
    PostCopy,
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<AddrParseError> for Problem {
    fn from(error: AddrParseError) -> Self {
        Self::Address(error.to_string())
    }
}

impl InvalidField {
    /// A field and its problem.
    pub fn new(field: impl Into<String>, problem: impl Into<Problem>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The same problem, seen from the message around it.
    #[must_use]
    pub fn within(self, outer: impl fmt::Display) -> Self {
        Self { field: format!("{outer}.{}", self.field), problem: self.problem }
    }
}

/// Parses text; a failure names the field.
pub(super) fn parse<T>(field: &str, text: &str) -> Result<T, InvalidField>
where
    T: FromStr,
    Problem: From<T::Err>,
{
    text.parse().map_err(|error: T::Err| InvalidField::new(field, error))
}

/// Narrows a number; a failure names the field.
pub(super) fn number<T, N>(field: &str, number: N) -> Result<T, InvalidField>
where
    T: TryFrom<N>,
    Problem: From<T::Error>,
{
    T::try_from(number).map_err(|error| InvalidField::new(field, error))
}

/// Checks a range; a failure names the field.
pub(super) fn within(
    field: &str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
    unit: &'static str,
) -> Result<(), InvalidField> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(InvalidField::new(field, Problem::Range { value, least: *range.start(), most: *range.end(), unit }))
}

/// The value of a field that must be there.
pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T, InvalidField> {
    value.ok_or_else(|| InvalidField::new(field, Problem::Missing))
}
