//! Carry ingress, at the destination: frames the source sends after the guest.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::classifier, programs::TcContext};
use throughline_abi::{MARKER_PAYLOAD_LEN, MARKER_PAYLOAD_OFFSET, MarkerKey, MarkerPayload};

use crate::{
    DROP, lane,
    maps::{LANDINGS, MARKERS_SEEN},
    port::{self, Port},
    tunnel,
};

/// To the tap of the port the tunnel key stands for, if its source is the one agreed on. Markers end here.
#[classifier]
pub fn land(context: TcContext) -> i32 {
    let Some(origin) = tunnel::origin(&context) else { return DROP };
    // SAFETY: the value is copied at once; user space adds and removes entries, it does not rewrite them.
    let Some(landing) = unsafe { LANDINGS.get(origin.carry_id) }.copied() else { return DROP };
    let Some(port) = Port::at(landing.slot) else { return DROP };
    if origin.vtep != landing.source_vtep {
        port.count_refused();
        return DROP;
    }
    match context.load::<[u8; 6]>(0) {
        Ok(mac) if mac == landing.marker_mac => consume(&context, origin.carry_id),
        _ => {
            port.count_landed();
            port.see_lane(lane::of(&context, port, landing.slot));
            tunnel::deliver(&context, port)
        }
    }
}

/// Notes a marker. Whatever else was sent to its address ends here too.
#[inline(always)]
fn consume(context: &TcContext, carry_id: u32) -> i32 {
    let marker = context
        .load::<[u8; MARKER_PAYLOAD_LEN]>(MARKER_PAYLOAD_OFFSET)
        .ok()
        .and_then(|wire| MarkerPayload::parse(&wire))
        .filter(|marker| marker.carry_id == carry_id);
    if let Some(marker) = marker {
        note(MarkerKey { carry_id, peer: marker.peer }, 1 << marker.sequence);
    }
    DROP
}

#[inline(always)]
fn note(key: MarkerKey, bit: u64) {
    // Two CPUs may come first at once: the loser's insertion fails and its bit goes into the winner's entry.
    if MARKERS_SEEN.get_ptr_mut(&key).is_none() {
        let _ = MARKERS_SEEN.insert(&key, 0_u64, u64::from(BPF_NOEXIST));
    }
    if let Some(seen) = MARKERS_SEEN.get_ptr_mut(&key) {
        // SAFETY: a pointer to a whole value of the map, eight bytes and aligned.
        unsafe { port::or(seen, bit) }
    }
}
