//! The controller as its callers and agents see it: the real server on a loopback port, spoken to over real gRPC.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod audit;
mod disks;
mod fencing;
mod limits;
mod migration;
mod power;
mod privilege;
mod replicas;
mod resources;
mod retention;
mod roles;
mod service;
mod stolen;
mod support;
