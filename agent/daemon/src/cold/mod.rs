//! A guest that moves while it is stopped: its disks' files are copied and compared byte for byte, then it changes hands. The decisions
//! are [`throughline_cutover::ColdSource`]'s and [`throughline_cutover::ColdDestination`]'s.

mod compare;
pub mod destination;
mod receive;
mod send;
pub mod source;
#[cfg(test)]
mod tests;

pub use destination::Incoming;
pub use receive::{copy, is_within};
