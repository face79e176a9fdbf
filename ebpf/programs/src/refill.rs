//! Hold ingress: frames the agent wrote back.

use aya_ebpf::{macros::classifier, programs::TcContext};
use throughline_abi::direction;

use crate::{DROP, maps::HOLDS, port::Port, tunnel};

/// To the tap, or to the carry, by the port's direction. Not by its mode: a port that is held again during a flush to the
/// carry must not deliver to the guest that left.
#[classifier]
pub fn refill(context: TcContext) -> i32 {
    // SAFETY: reading the program's own context.
    let hold = unsafe { (*context.skb.skb).ifindex };
    // SAFETY: the value is copied at once; user space adds and removes entries, it does not rewrite them.
    let Some(port) = unsafe { HOLDS.get(hold) }.copied().and_then(Port::at) else { return DROP };
    port.count_refilled();
    match port.direction() {
        direction::CARRY => tunnel::carry(&context, port),
        _ => tunnel::deliver(&context, port),
    }
}
