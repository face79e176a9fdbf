//! The crate against the running kernel, in network namespaces of its own. Needs root, `ip` and `bridge` (iproute2).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must stop, its helpers included")]

mod addresses;
mod devices;
mod entries;
mod fabric;
mod frames;
mod multicast;
mod queues;
mod support;
