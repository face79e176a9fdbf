//! Enum fields in JSON: written by name (`"PRECOPY"`: the protocol's name less the enum's own prefix), read by name or
//! by number.
//!
//! prost keeps an enum field as a bare `i32`, since a newer peer may send a value this side has no name for. Such a
//! value is written as its number and survives being read back. The build script puts these two functions on every
//! field of an enum type.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, IntoDeserializer, Unexpected, Visitor, value::StrDeserializer},
};

/// Writes `value` as the name it has in `E`, or as a number when it has none. Formats that are not for people get the
/// number always.
///
/// # Errors
/// Only those of the serializer.
pub(crate) fn serialize<E, S>(value: &i32, serializer: S) -> Result<S::Ok, S::Error>
where
    E: TryFrom<i32> + Serialize,
    S: Serializer,
{
    match E::try_from(*value) {
        Ok(named) if serializer.is_human_readable() => named.serialize(serializer),
        _ => serializer.serialize_i32(*value),
    }
}

/// Reads a name of `E`, or any number an `i32` holds.
///
/// # Errors
/// A name that `E` does not have, a number out of range, or a value that is neither.
pub(crate) fn deserialize<'de, E, D>(deserializer: D) -> Result<i32, D::Error>
where
    E: Deserialize<'de> + Into<i32>,
    D: Deserializer<'de>,
{
    if deserializer.is_human_readable() {
        deserializer.deserialize_any(NameOrNumber::<E>(PhantomData))
    } else {
        i32::deserialize(deserializer)
    }
}

struct NameOrNumber<E>(PhantomData<E>);

impl<'de, E: Deserialize<'de> + Into<i32>> Visitor<'de> for NameOrNumber<E> {
    type Value = i32;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name or the number of an enum value")
    }

    fn visit_str<Err: Error>(self, name: &str) -> Result<i32, Err> {
        let name: StrDeserializer<'_, Err> = name.into_deserializer();
        E::deserialize(name).map(Into::into)
    }

    fn visit_i64<Err: Error>(self, number: i64) -> Result<i32, Err> {
        i32::try_from(number).map_err(|_| Err::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_u64<Err: Error>(self, number: u64) -> Result<i32, Err> {
        i32::try_from(number).map_err(|_| Err::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::v1::{Guest, GuestState, Migration, MigrationUpdate, OnStall, Phase, Role, Step};

    /// Every value of an enum is written as its name in the protocol without `prefix`, and read back from it.
    macro_rules! names_follow_the_protocol {
        ($enum:ident, $prefix:literal) => {
            let values: Vec<$enum> = (0..).map_while(|n| $enum::try_from(n).ok()).collect();
            assert!(values.len() > 2, "{} has its values from 0 on", stringify!($enum));
            for value in values {
                let name = value.as_str_name().strip_prefix($prefix).expect("the enum's prefix");
                assert_eq!(serde_json::to_value(value).unwrap(), json!(name));
                assert_eq!(serde_json::from_value::<$enum>(json!(name)).unwrap(), value);
            }
        };
    }

    #[test]
    fn enums_are_written_by_their_name_in_the_protocol() {
        names_follow_the_protocol!(Phase, "PHASE_");
        names_follow_the_protocol!(GuestState, "GUEST_STATE_");
        names_follow_the_protocol!(Step, "STEP_");
        names_follow_the_protocol!(Role, "ROLE_");
        names_follow_the_protocol!(OnStall, "ON_STALL_");
    }

    #[test]
    fn fields_show_names() {
        let migration = Migration { phase: Phase::Precopy.into(), ..Migration::default() };
        assert_eq!(serde_json::to_value(&migration).unwrap()["phase"], json!("PRECOPY"));
        let guest = Guest { state: GuestState::Running.into(), ..Guest::default() };
        assert_eq!(serde_json::to_value(&guest).unwrap()["state"], json!("RUNNING"));
        let update =
            MigrationUpdate { role: Role::Source.into(), step: Step::LineEmpty.into(), ..MigrationUpdate::default() };
        let json = serde_json::to_value(&update).unwrap();
        assert_eq!((&json["role"], &json["step"]), (&json!("SOURCE"), &json!("LINE_EMPTY")));
    }

    #[test]
    fn fields_take_names_and_numbers() {
        for phase in [json!("ARMED"), json!(3)] {
            let read: Migration = serde_json::from_value(json!({ "phase": phase })).unwrap();
            assert_eq!(read.phase(), Phase::Armed);
        }
    }

    #[test]
    fn values_from_a_newer_protocol_survive() {
        let newer = Migration { phase: 99, ..Migration::default() };
        let json = serde_json::to_value(&newer).unwrap();
        assert_eq!(json["phase"], json!(99));
        assert_eq!(serde_json::from_value::<Migration>(json).unwrap(), newer);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let wrong =
            [json!("PHASE_ARMED"), json!("armed"), json!(1_u64 << 40), json!(-(1_i64 << 40)), json!([]), Value::Null];
        for wrong in wrong {
            serde_json::from_value::<Migration>(json!({ "phase": wrong })).expect_err("not a phase");
        }
    }
}
