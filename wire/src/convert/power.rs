//! How a guest is stopped.

use throughline_cutover::{Power, RunsOn, Stop, StopFirst};

use super::field::{InvalidField, Problem, within};
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

/// How long a guest that is to be moved may take to shut down if its caller does not say, milliseconds.
const USUAL_PATIENCE: u32 = 60_000;

impl TryFrom<v1::StopFirst> for StopFirst {
    type Error = InvalidField;
    fn try_from(stop: v1::StopFirst) -> Result<Self, InvalidField> {
        within("deadline_ms", stop.deadline_ms.into(), 0..=LONGEST_GRACE, "milliseconds")?;
        let deadline_ms = if stop.deadline_ms == 0 { USUAL_PATIENCE } else { stop.deadline_ms };
        let otherwise = match v1::RunsOn::try_from(stop.otherwise) {
            Ok(v1::RunsOn::Unspecified | v1::RunsOn::Stay) => RunsOn::Stay,
            Ok(v1::RunsOn::Cut) => RunsOn::Cut,
            Err(_) => {
                let words = format!("is {}, which this version does not know", stop.otherwise);
                return Err(InvalidField::new("otherwise", Problem::Other(words)));
            }
        };
        Ok(Self { deadline_ms, otherwise })
    }
}

impl From<StopFirst> for v1::StopFirst {
    fn from(stop: StopFirst) -> Self {
        let otherwise = match stop.otherwise {
            RunsOn::Stay => v1::RunsOn::Stay,
            RunsOn::Cut => v1::RunsOn::Cut,
        };
        Self { deadline_ms: stop.deadline_ms, otherwise: otherwise.into() }
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

    #[test]
    fn how_a_guest_is_stopped_to_be_moved_arrives_as_it_was_said() {
        for otherwise in [RunsOn::Stay, RunsOn::Cut] {
            let stop = StopFirst { deadline_ms: 5, otherwise };
            assert_eq!(StopFirst::try_from(v1::StopFirst::from(stop)).unwrap(), stop);
        }
        let usual = StopFirst { deadline_ms: 60_000, otherwise: RunsOn::Stay };
        assert_eq!(StopFirst::try_from(v1::StopFirst::default()).unwrap(), usual);
        let field = |deadline_ms, otherwise| {
            StopFirst::try_from(v1::StopFirst { deadline_ms, otherwise }).expect_err("must be refused").field
        };
        assert_eq!(field(86_400_001, 0), "deadline_ms");
        assert_eq!(field(0, 3), "otherwise");
    }
}
