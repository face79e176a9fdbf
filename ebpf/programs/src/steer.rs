//! Tap egress: every frame for the guest, wherever it came from, passes here.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, macros::classifier, programs::TcContext};
use throughline_abi::{Sight, Verdict, decide, is_group};

use crate::{DROP, NEXT, maps::TAPS, port::Port, tunnel};

/// Pass, drop, to the hold, or to the carry.
#[classifier]
pub fn steer(context: TcContext) -> i32 {
    // SAFETY: reading the program's own context.
    let (tap, mark) = unsafe { ((*context.skb.skb).ifindex, (*context.skb.skb).mark) };
    // SAFETY: the value is copied at once; user space adds and removes entries, it does not rewrite them.
    let Some(port) = unsafe { TAPS.get(tap) }.copied().and_then(Port::at) else { return NEXT };
    let own_mark = port.mark();
    let sight = Sight {
        mode: port.mode(),
        line: port.line(),
        line_limit: port.line_limit(),
        marked: own_mark != 0 && mark == own_mark,
        group: context.load::<u8>(0).is_ok_and(is_group),
    };
    match decide(sight) {
        Verdict::Pass => {
            port.count_passed();
            NEXT
        }
        Verdict::Mute => {
            port.count_muted();
            DROP
        }
        Verdict::Divert => divert(&context, port),
        Verdict::Overflow => {
            port.count_overflow();
            DROP
        }
        Verdict::Carry => {
            port.count_carried();
            tunnel::carry(&context, port)
        }
        Verdict::Flooded => {
            port.count_flooded();
            DROP
        }
    }
}

/// To the end of the line.
///
/// A clone, not a redirect: only the clone's result says whether the ring took it (and only if the hold has no queueing
/// discipline to hide that), and a frame counted but not in the ring would keep the line sealed for ever.
#[inline(always)]
fn divert(context: &TcContext, port: Port) -> i32 {
    let bytes = context.len();
    port.join_line();
    if context.clone_redirect(port.hold(), 0).is_ok() {
        // SAFETY: a helper without arguments.
        port.count_held(bytes, unsafe { bpf_get_smp_processor_id() });
    } else {
        port.leave_line();
        port.count_overflow();
    }
    DROP
}
