//! Who is let in and who is not, with a real controller on loopback: the reason is looked for at both ends.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test; clippy exempts only the tests themselves")]

mod change;
mod controller;
mod pki;
mod refused;
mod strangers;
