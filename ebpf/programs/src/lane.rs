//! Which lane a frame for a port is in, and how it gets into that lane's queue of the hold.

use aya_ebpf::{
    macros::socket_filter,
    programs::{SkBuffContext, TcContext},
};
use throughline_abi::{LANE_OF_ALL, SenderKey};

use crate::{maps::SENDERS, port::Port};

/// Offset of the source address in a frame.
const SOURCE: usize = 6;

/// The lane of the frame's sender.
#[inline(always)]
pub(crate) fn of(context: &TcContext, port: Port, slot: u32) -> u32 {
    if port.has_lanes() == 0 {
        return LANE_OF_ALL;
    }
    let Ok(mac) = context.load::<[u8; 6]>(SOURCE) else { return LANE_OF_ALL };
    let key = SenderKey { slot, mac, reserved: [0; 2] };
    // SAFETY: the value is copied at once; user space adds and removes entries, it does not rewrite them.
    unsafe { SENDERS.get(key) }.copied().unwrap_or(LANE_OF_ALL)
}

/// The hold asks this which of its queues takes a frame (`TUNSETSTEERINGEBPF`): the one `steer` said.
#[socket_filter]
pub fn lane(context: SkBuffContext) -> i64 {
    // SAFETY: reading the program's own context.
    i64::from(unsafe { (*context.skb.skb).queue_mapping })
}
