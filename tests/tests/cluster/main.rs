//! A cluster as operators have it: the lab runner plays three hosts and a controller in network namespaces, real daemons run
//! real guests in QEMU, and everything is asked for with the `throughline` command. Needs root, the guest image and all
//! programs (`make build`); what is missing fails the test that needs it.
//!
//! One test at a time, whatever the test harness would do: each is a handful of daemons, a guest emulated on one processor and
//! probes that count every packet of 1,000 and more a second each way. Two of them beside each other on a machine of two
//! processors would measure each other. [`lab::Lab`] holds the turn for as long as it lives.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

mod cancelling;
mod cold;
mod disks;
mod elsewhere;
mod failing;
mod failover;
mod faults;
mod fencing;
mod garbage;
mod guests;
mod input;
mod lab;
mod moving;
mod operator;
mod pings;
mod power;
mod privilege;
mod probe;
mod processes;
mod quiesced;
mod rehearsal;
mod restart;
mod segment;
mod stalling;
mod storage;
mod strangers;
mod wire;
