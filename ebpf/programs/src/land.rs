//! Carry ingress: frames the source sends after the guest, and whatever else somebody sends there.

use core::ptr;

use aya_ebpf::{macros::classifier, programs::TcContext};
use throughline_abi::{MARKER_PAYLOAD_LEN, MARKER_PAYLOAD_OFFSET, MARKERS, MarkerKey, MarkerPayload, stray};

use crate::{
    DROP, lane,
    maps::{AWAITED, LANDINGS, STRAYS},
    port::{self, Port},
    tunnel,
};

/// To the tap of the port the tunnel key stands for, if its source is the one agreed on. Markers end here. All else is
/// dropped and counted, for nobody has any business here but the sources of moves under way.
#[classifier]
pub fn land(context: TcContext) -> i32 {
    let Some(origin) = tunnel::origin(&context) else { return drop_stray(stray::NO_KEY) };
    // SAFETY: the value is copied at once; user space adds and removes entries, it does not rewrite them.
    let Some(landing) = unsafe { LANDINGS.get(origin.carry_id) }.copied() else { return drop_stray(stray::UNKNOWN_ID) };
    let Some(port) = Port::at(landing.slot) else { return DROP };
    if origin.vtep != landing.source_vtep {
        port.count_refused();
        return DROP;
    }
    match context.load::<[u8; 6]>(0) {
        Ok(mac) if mac == landing.marker_mac => {
            if !note(&context, origin.carry_id) {
                port.count_forged();
            }
            DROP
        }
        _ => {
            port.count_landed();
            port.see_lane(lane::of(&context, port, landing.slot));
            tunnel::deliver(&context, port)
        }
    }
}

#[inline(always)]
fn drop_stray(kind: u32) -> i32 {
    if let Some(count) = STRAYS.get_ptr_mut(kind) {
        // SAFETY: this processor's own value; a program is not interrupted by itself.
        unsafe { *count += 1 }
    }
    DROP
}

/// Notes a marker; false if it is none that a peer of this move can have sent.
#[inline(always)]
fn note(context: &TcContext, carry_id: u32) -> bool {
    let Ok(wire) = context.load::<[u8; MARKER_PAYLOAD_LEN]>(MARKER_PAYLOAD_OFFSET) else { return false };
    let Some(marker) = MarkerPayload::parse(&wire) else { return false };
    let Some(awaited) = AWAITED.get_ptr_mut(&MarkerKey { carry_id, peer: marker.peer.into() }) else { return false };
    // Masked, so that the verifier sees what is true anyway: there are that many.
    let sequence = marker.sequence as usize & (MARKERS as usize - 1);
    // SAFETY: within the array of a whole value of the map, which nobody writes while it is there.
    let tag = unsafe { ptr::read_volatile((&raw const (*awaited).tags).cast::<u64>().add(sequence)) };
    if tag != marker.tag {
        return false;
    }
    // SAFETY: a word of a whole value of the map, eight bytes and aligned.
    unsafe { port::or(&raw mut (*awaited).seen, 1 << sequence) }
    true
}
