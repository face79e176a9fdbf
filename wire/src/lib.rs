//! The protocol `throughline.v1`: generated code, and its conversion to domain types, once, with typed errors.

mod convert;
pub mod limits;
mod names;
mod secret;
mod status;

pub use convert::{
    InvalidField, Problem, disk_fate, nested, observed_test, parsed, points, power_of, replica_name, rhythm_fields,
    stop_of,
};
pub use status::{ERROR_DOMAIN, Explanation, Refusal, status, try_again};

/// Generated from `proto/throughline/v1/*.proto`.
pub mod v1 {
    tonic::include_proto!("throughline.v1");
}

/// The protocol's own description, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
