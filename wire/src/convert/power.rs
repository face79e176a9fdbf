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

impl From<Power> for Option<v1::Stop> {
    fn from(power: Power) -> Self {
        match power {
            Power::On => None,
            Power::Off(stop) => Some(stop.into()),
        }
    }
}

impl TryFrom<Option<v1::Stop>> for Power {
    type Error = InvalidField;
    fn try_from(stop: Option<v1::Stop>) -> Result<Self, InvalidField> {
        stop.map_or(Ok(Self::On), |stop| Ok(Self::Off(stop.try_into()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_power_round_trips() {
        for power in [None, Some(0), Some(86_400_000)].map(|cut_after_ms| Power::Off(Stop { cut_after_ms })) {
            assert_eq!(Power::try_from(Option::<v1::Stop>::from(power)), Ok(power));
        }
        assert_eq!(Power::try_from(None), Ok(Power::On));
        assert_eq!(Option::<v1::Stop>::from(Power::On), None);
        let long = v1::Stop { cut_after_ms: Some(86_400_001) };
        assert_eq!(Stop::try_from(long).expect_err("must be refused").field, "cut_after_ms");
    }
}
