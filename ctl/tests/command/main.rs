//! The real command against a controller that says what the test tells it to.

mod failing;
mod fake;
mod resources;
mod run;
mod watching;
