//! Suites that look at Throughline as a whole: which crate may import which, and a cluster of real daemons and guests.
//!
//! The suites are in `tests/`; this library holds what they check with and what has tests of its own.

pub mod imports;
