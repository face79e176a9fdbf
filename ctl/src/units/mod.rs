//! Quantities as people write and read them: memory, rates, spans of time, dates.

mod parse;
mod show;

pub(crate) use parse::{InvalidQuantity, disk_bytes, duration, duration_ms, duration_ms_or_zero, memory_kib, rate};
pub(crate) use show::{bytes, per_second, span, utc};
