//! The controller as its callers and agents see it: the real server on a loopback port, spoken to over real gRPC.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fencing;
mod migration;
mod privilege;
mod resources;
mod service;
mod support;
