//! The crate against real QEMUs with translated guests. Needs root, qemu-system-x86, qemu-utils, busybox-static, e2fsprogs, iproute2
//! and the guest kernel (`THROUGHLINE_GUEST_KERNEL`, else `make setup` puts it in the cache); panics where one is missing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod confined;
mod disks;
mod harness;
mod lifecycle;
mod quiesced;
mod replica;
mod sealed;
mod switchover;
