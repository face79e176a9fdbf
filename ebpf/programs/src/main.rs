//! The tc programs of a move, one verdict each:
//!
//! | program | hook | does |
//! |---|---|---|
//! | [`steer`] | tap egress: every frame for the guest passes here | pass, drop, to the hold, to the carry |
//! | [`refill`] | hold ingress: what the agent writes back | to the tap, or to the carry |
//! | [`land`] | carry ingress, at the destination | to the tap; a marker is consumed and reported |
//!
//! A fourth, [`lane`], is not on a hook: a hold with several queues asks it which one takes a frame.
//!
//! What is decided is in `throughline-abi`, tested on the host; here is how it is done. Verified by the kernel when
//! loaded, tested there by `ebpf/loader/tests`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod land;
mod flow;
mod lane;
mod maps;
mod port;
mod refill;
mod steer;
mod tunnel;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};

/// On, and whatever other programs the interface has may still have their say (`TCX_NEXT`; the next filter under clsact).
const NEXT: i32 = TC_ACT_UNSPEC;
/// No further.
const DROP: i32 = TC_ACT_SHOT as i32;

/// What the kernel reads before it lends helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could be.
    loop {}
}
