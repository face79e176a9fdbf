//! How a guest is stopped.

use throughline_cutover::{Power, Stop};

use super::field::{InvalidField, within};
use crate::v1;

/// Longest time that a guest may be given to shut down before its power is cut, milliseconds: a day.
const LONGEST_GRACE: u64 = 86_400_000;

impl TryFrom<v1::Stop> for Stop {
    type Error = InvalidField;
    fn try_from(stop: v1::Stop) -> Result<Self, InvalidField> {
        let cut_after_ms = stop.cut_after_ms;
        if let Some(grace) = cut_after_ms {
            within("cut_after_ms", grace.into(), 0..=LONGEST_GRACE, "milliseconds")?;
        }
        Ok(Self { cut_after_ms })
    }
}

impl From<Stop> for v1::Stop {
    fn from(stop: Stop) -> Self {
        Self { cut_after_ms: stop.cut_after_ms }
    }
}

/// What is wanted of a guest, as a host is told it: how it is stopped, if it is.
pub fn stop_of(power: Power) -> Option<v1::Stop> {
    match power {
        Power::On => None,
        Power::Off(stop) => Some(stop.into()),
    }
}

/// The same, read.
///
/// # Errors
/// What is wrong with the stop.
pub fn power_of(stop: Option<v1::Stop>) -> Result<Power, InvalidField> {
    stop.map_or(Ok(Power::On), |stop| Ok(Power::Off(stop.try_into()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_power_round_trips() {
        for power in [None, Some(0), Some(86_400_000)].map(|cut_after_ms| Power::Off(Stop { cut_after_ms })) {
            assert_eq!(power_of(stop_of(power)), Ok(power));
        }
        assert_eq!(power_of(None), Ok(Power::On));
        assert_eq!(stop_of(Power::On), None);
        let long = v1::Stop { cut_after_ms: Some(86_400_001) };
        assert_eq!(Stop::try_from(long).expect_err("must be refused").field, "cut_after_ms");
    }
}
