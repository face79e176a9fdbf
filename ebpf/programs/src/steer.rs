//! Tap egress: every frame for the guest, wherever it came from, passes here.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, macros::classifier, programs::TcContext};
use throughline_abi::{Sight, Verdict, decide, has_room, is_group, mode};

use crate::{DROP, NEXT, lane, maps::TAPS, port::Port, tunnel};

/// Length of a VLAN tag, which `len` leaves out while the kernel keeps it beside the frame.
const VLAN_TAG: u32 = 4;
/// Longest frame that the hold's ring takes whole: a longer one the kernel segments on the way, whatever the hold takes,
/// and a frame that was counted once must not come out as many.
const LONGEST_WHOLE: u32 = 65_535;

/// Pass, drop, to the hold, or to the carry.
#[classifier]
pub fn steer(context: TcContext) -> i32 {
    // SAFETY: reading the program's own context.
    let tap = unsafe { (*context.skb.skb).ifindex };
    // SAFETY: the value is copied at once; user space adds and removes entries, it does not rewrite them.
    let Some(slot) = unsafe { TAPS.get(tap) }.copied() else { return NEXT };
    let Some(port) = Port::at(slot) else { return NEXT };
    // All there is to say of a port that is only prepared, and what its frames cost is felt for as long as pre-copy takes.
    let mode = port.mode();
    if mode == mode::PASS {
        port.count_passed();
        return NEXT;
    }
    let lane = lane::of(&context, port, slot);
    let bytes = length(&context);
    let sight = Sight {
        mode,
        ahead: port.lane(lane),
        lane_open: port.open_lanes() & 1 << (lane & 31) != 0,
        has_room: has_room(port.line(), port.line_limit(), port.line_bytes(), bytes, port.bytes_limit()),
        marked: is_marked(&context, port),
        group: context.load::<u8>(0).is_ok_and(is_group),
    };
    match decide(sight) {
        Verdict::Pass => {
            port.count_passed();
            if !sight.marked {
                port.see_lane(lane);
            }
            NEXT
        }
        Verdict::Mute => {
            port.count_muted();
            DROP
        }
        Verdict::Divert => divert(&context, port, lane, bytes),
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

#[inline(always)]
fn is_marked(context: &TcContext, port: Port) -> bool {
    let own = port.mark();
    // SAFETY: reading the program's own context.
    own != 0 && unsafe { (*context.skb.skb).mark } == own
}

/// Bytes of the frame as whoever reads it from the hold will see it.
#[inline(always)]
fn length(context: &TcContext) -> u32 {
    // SAFETY: reading the program's own context.
    let tagged = unsafe { (*context.skb.skb).vlan_present } != 0;
    if tagged { context.len() + VLAN_TAG } else { context.len() }
}

/// To the end of its lane.
///
/// A clone, not a redirect: only the clone's result says whether the ring took it (and only if the hold has no queueing
/// discipline to hide that), and a frame counted but not in the ring would keep the line sealed for ever.
#[inline(always)]
fn divert(context: &TcContext, port: Port, lane: u32, bytes: u32) -> i32 {
    if context.len() > LONGEST_WHOLE {
        port.count_overflow();
        return DROP;
    }
    port.see_lane(lane);
    port.join_line(lane, bytes);
    // SAFETY: writing the program's own context, a word that is ours to write.
    unsafe { (*context.skb.skb).queue_mapping = lane };
    if context.clone_redirect(port.hold(), 0).is_ok() {
        // SAFETY: a helper without arguments.
        port.count_held(bytes, unsafe { bpf_get_smp_processor_id() });
    } else {
        port.leave_line(lane, bytes);
        port.count_overflow();
    }
    DROP
}
