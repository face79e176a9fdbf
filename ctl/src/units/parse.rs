//! From text to numbers, exactly: a decimal number, then a unit. Integer arithmetic only; what does not fit is refused.

use std::time::Duration;

/// Why a text is not such a quantity. clap puts the flag's name and the text in front.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidQuantity {
    /// No digits in front, or something that is no number.
    #[error("expected a number, then a unit: {units}")]
    NotANumber {
        /// Units to choose from.
        units: String,
    },
    /// A unit nobody knows here, or one that may mean two things (`Gb`, `MB`).
    #[error("unknown unit {unit:?}; use one of {units}")]
    UnknownUnit {
        /// As given.
        unit: String,
        /// Units to choose from.
        units: String,
    },
    /// More than the protocol's field can hold.
    #[error("is too large")]
    TooLarge,
    /// Zero, where the protocol would read "the default".
    #[error("must be more than 0")]
    Zero,
    /// A fraction of what can only be counted whole.
    #[error("is not a whole number of {0}")]
    Fraction(&'static str),
}

/// A unit: its spellings (case does not matter) and how many of what is counted it is.
type Unit = (&'static [&'static str], u128);

const KIB: &[Unit] =
    &[(&["K", "KiB"], 1), (&["M", "MiB"], 1 << 10), (&["G", "GiB"], 1 << 20), (&["T", "TiB"], 1 << 30)];

/// Eighths of a byte, so that bits can be counted.
const EIGHTHS: &[Unit] = &[
    (&["bit"], 1),
    (&["kbit"], 1_000),
    (&["Mbit"], 1_000_000),
    (&["Gbit"], 1_000_000_000),
    (&["Tbit"], 1_000_000_000_000),
    (&["KiB"], 8 << 10),
    (&["MiB"], 8 << 20),
    (&["GiB"], 8 << 30),
    (&["TiB"], 8 << 40),
];

const NANOSECONDS: &[Unit] = &[
    (&["us"], 1_000),
    (&["ms"], 1_000_000),
    (&["s"], 1_000_000_000),
    (&["m", "min"], 60_000_000_000),
    (&["h"], 3_600_000_000_000),
];

/// Memory, in KiB. Units are powers of 1024; a bare number counts MiB.
pub(crate) fn memory_kib(text: &str) -> Result<u64, InvalidQuantity> {
    let kib = quantity(text, KIB, 1 << 10)?.exactly("KiB")?;
    u64::try_from(kib).map_err(|_| InvalidQuantity::TooLarge)
}

/// A disk's length, in bytes; written as memory is.
pub(crate) fn disk_bytes(text: &str) -> Result<u64, InvalidQuantity> {
    memory_kib(text)?.checked_mul(1 << 10).ok_or(InvalidQuantity::TooLarge)
}

/// A rate, in bytes per second; more than 0. `bit` and its multiples are powers of 1000, bytes are `KiB` to `TiB`;
/// `/s` may follow. A bare number counts bytes.
pub(crate) fn rate(text: &str) -> Result<u64, InvalidQuantity> {
    let eighths = quantity(text.strip_suffix("/s").unwrap_or(text), EIGHTHS, 8)?.rounded_down();
    let bytes = u64::try_from(eighths / 8).map_err(|_| InvalidQuantity::TooLarge)?;
    if bytes == 0 { Err(InvalidQuantity::Zero) } else { Ok(bytes) }
}

/// A span of time, more than 0. A bare number counts seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, InvalidQuantity> {
    let nanoseconds = quantity(text, NANOSECONDS, 1_000_000_000)?.rounded_down();
    match u64::try_from(nanoseconds) {
        Ok(0) => Err(InvalidQuantity::Zero),
        Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
        Err(_) => Err(InvalidQuantity::TooLarge),
    }
}

/// A span of time in whole milliseconds, as the protocol's limits take it.
pub(crate) fn duration_ms(text: &str) -> Result<u32, InvalidQuantity> {
    let span = duration(text)?;
    if span.subsec_nanos() % 1_000_000 != 0 {
        return Err(InvalidQuantity::Fraction("milliseconds"));
    }
    u32::try_from(span.as_millis()).map_err(|_| InvalidQuantity::TooLarge)
}

/// The same, or 0.
pub(crate) fn duration_ms_or_zero(text: &str) -> Result<u32, InvalidQuantity> {
    match duration_ms(text) {
        Err(InvalidQuantity::Zero) => Ok(0),
        read => read,
    }
}

/// A quantity in billionths of what is counted.
struct Billionths(u128);

impl Billionths {
    /// Digits allowed after the decimal point.
    const DIGITS: usize = 9;
    const ONE: u128 = 1_000_000_000;

    fn exactly(self, unit: &'static str) -> Result<u128, InvalidQuantity> {
        if self.0.is_multiple_of(Self::ONE) { Ok(self.0 / Self::ONE) } else { Err(InvalidQuantity::Fraction(unit)) }
    }

    fn rounded_down(self) -> u128 {
        self.0 / Self::ONE
    }
}

/// Reads "12", "1.5G", "10 Gbit": the number times its unit. `bare` is the size of a missing unit.
fn quantity(text: &str, units: &[Unit], bare: u128) -> Result<Billionths, InvalidQuantity> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = whole.len() + fraction.len();
    if digits == 0 || fraction.contains('.') || fraction.len() > Billionths::DIGITS {
        return Err(InvalidQuantity::NotANumber { units: spell(units) });
    }
    let size = match units.iter().find(|(names, _)| names.iter().any(|name| name.eq_ignore_ascii_case(unit))) {
        Some((_, size)) => *size,
        None if unit.is_empty() => bare,
        None => return Err(InvalidQuantity::UnknownUnit { unit: unit.to_owned(), units: spell(units) }),
    };
    let padded = format!("{whole}{fraction:0<width$}", width = Billionths::DIGITS);
    let billionths: Option<u128> = padded.parse().ok();
    billionths.and_then(|count| count.checked_mul(size)).map(Billionths).ok_or(InvalidQuantity::TooLarge)
}

fn spell(units: &[Unit]) -> String {
    units.iter().map(|(names, _)| names.join(" or ")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_takes_the_usual_spellings() {
        let same = ["256", "256M", "256m", "256MiB", "256 MiB", "262144K", "262144KiB", "0.25G", "0.25GiB"];
        for text in same {
            assert_eq!(memory_kib(text), Ok(262_144), "{text}");
        }
        assert_eq!(memory_kib("262136KiB"), Ok(262_136));
        assert_eq!(memory_kib("1T"), Ok(1 << 30));
        assert_eq!(memory_kib("1000000000"), Ok(1_024_000_000_000), "the controller says what is too much");
        assert_eq!(memory_kib("0"), Ok(0), "the controller says what is too little");
    }

    #[test]
    fn memory_refuses_the_rest() {
        for text in ["", " ", "M", "-1", "1..5", "1.2.3", "x", "1.0000000001G", "½"] {
            assert!(matches!(memory_kib(text), Err(InvalidQuantity::NotANumber { .. })), "{text}");
        }
        for text in ["1MB", "1 Gb", "5,5", "1G1", "1 000", "1é", "0x10"] {
            assert!(matches!(memory_kib(text), Err(InvalidQuantity::UnknownUnit { .. })), "{text}");
        }
        assert_eq!(memory_kib("0.5K"), Err(InvalidQuantity::Fraction("KiB")));
        assert_eq!(memory_kib("18446744073709551615T"), Err(InvalidQuantity::TooLarge));
        assert_eq!(memory_kib(&"9".repeat(5_000)), Err(InvalidQuantity::TooLarge));
    }

    #[test]
    fn rates_are_bytes_per_second() {
        assert_eq!(rate("10Gbit"), Ok(1_250_000_000));
        assert_eq!(rate("2.5gbit/s"), Ok(312_500_000));
        assert_eq!(rate("1000MiB"), Ok(1_048_576_000));
        assert_eq!(rate("1250000000"), Ok(1_250_000_000));
        assert_eq!(rate("7bit"), Err(InvalidQuantity::Zero));
        assert!(matches!(rate("10Gb"), Err(InvalidQuantity::UnknownUnit { .. })), "bits or bytes?");
        assert_eq!(rate("99999999999999999999TiB"), Err(InvalidQuantity::TooLarge));
    }

    #[test]
    fn durations_are_seconds_unless_said() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("300us"), Ok(Duration::from_micros(300)));
        assert_eq!(duration("0"), Err(InvalidQuantity::Zero));
        assert_eq!(duration("99999999h"), Err(InvalidQuantity::TooLarge));
        assert_eq!(duration_ms("5m"), Ok(300_000));
        assert_eq!(duration_ms("1.5ms"), Err(InvalidQuantity::Fraction("milliseconds")));
        assert_eq!(duration_ms("1200h"), Err(InvalidQuantity::TooLarge), "the field has 32 bits");
        assert_eq!([duration_ms_or_zero("0"), duration_ms_or_zero("1.5s")], [Ok(0), Ok(1_500)]);
        assert_eq!(duration_ms_or_zero("-1"), duration_ms("-1"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = (memory_kib(&text), rate(&text), duration(&text), duration_ms(&text));
        }

        #[test]
        fn memory_in_any_unit_is_that_many_kib(count in any::<u64>(), unit in 0..KIB.len(), spelling in 0..2_usize) {
            let (names, size) = KIB[unit];
            let expected = u64::try_from(u128::from(count) * size).map_err(|_| InvalidQuantity::TooLarge);
            prop_assert_eq!(memory_kib(&format!("{count}{}", names[spelling])), expected);
        }

        #[test]
        fn bits_are_an_eighth(bytes in 1..u64::MAX / 8) {
            prop_assert_eq!(rate(&format!("{}bit", bytes * 8)), Ok(bytes));
            prop_assert_eq!(rate(&bytes.to_string()), Ok(bytes));
        }
    }
}
