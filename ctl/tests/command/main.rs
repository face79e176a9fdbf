//! The real command against a controller that says what the test tells it to.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test; clippy exempts only the tests themselves")]

mod failing;
mod fake;
mod replicas;
mod resources;
mod run;
mod watching;
