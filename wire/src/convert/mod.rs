//! Messages to domain types and back. What comes from outside is checked here, field by field, and nowhere else.

mod field;
mod plan;
mod resources;

pub use field::{InvalidField, Problem};
