//! Messages to domain types and back. What comes from outside is checked here, field by field, and nowhere else.

mod disks;
mod fence;
mod field;
mod news;
mod plan;
mod power;
mod replica_tests;
mod replicas;
mod requests;
mod resources;

pub use disks::disk_fate;
pub use field::{InvalidField, Problem};
pub use power::{power_of, stop_of};
pub use replica_tests::observed_test;
pub use replicas::{points, replica_name, rhythm_fields};
pub use requests::{nested, parsed};
