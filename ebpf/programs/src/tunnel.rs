//! The carry tunnel: one VXLAN device in `external` mode, so that key and ends travel with each frame.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_ZERO_CSUM_TX, TC_ACT_SHOT, bpf_tunnel_key},
    helpers::{bpf_redirect, bpf_set_hash_invalid, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
    programs::TcContext,
};

use crate::port::Port;

/// `struct bpf_tunnel_key` up to and with `tunnel_label`: the size every kernel since 4.6 takes. Later members are not ours.
const KEY_LEN: u32 = core::mem::offset_of!(bpf_tunnel_key, tunnel_label) as u32 + 4;

/// Where a frame came from.
pub(crate) struct Origin {
    /// Its tunnel key.
    pub(crate) carry_id: u32,
    /// The end point that sent it, IPv4 in host byte order.
    pub(crate) vtep: u32,
}

/// Sends the frame to `port`'s carry tunnel; the program's result.
///
/// The flow hash is made anew: a frame that was written back has lost the one it came with, and the two must not differ,
/// or the outer UDP source port, hence the queue, differs for frames of one flow.
#[inline(always)]
pub(crate) fn carry(context: &TcContext, port: Port) -> i32 {
    // SAFETY: plain old data, all zero is a valid key.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = port.carry_id();
    key.__bindgen_anon_1.remote_ipv4 = port.remote_vtep();
    let skb = context.skb.skb;
    // SAFETY: `skb` is the program's own context and the key is as long as said.
    unsafe {
        // No outer UDP checksum: RFC 7348 section 4.1 and what tenant tunnels do by default.
        if bpf_skb_set_tunnel_key(skb, &raw mut key, KEY_LEN, u64::from(BPF_F_ZERO_CSUM_TX)) != 0 {
            return TC_ACT_SHOT as i32;
        }
        bpf_set_hash_invalid(skb);
        bpf_redirect(port.carry(), 0) as i32
    }
}

/// Sends the frame to `port`'s tap, marked as one that has had its turn; the program's result.
#[inline(always)]
pub(crate) fn deliver(context: &TcContext, port: Port) -> i32 {
    context.set_mark(port.mark());
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(port.tap(), 0) as i32 }
}

/// Where a frame that the carry device received came from; `None`: it did not come through a tunnel over IPv4.
#[inline(always)]
pub(crate) fn origin(context: &TcContext) -> Option<Origin> {
    // SAFETY: plain old data, all zero is a valid key.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: the context is the program's own and the key is as long as said. Without the flag for IPv6 the helper fails
    // on frames that came over it.
    let found = unsafe { bpf_skb_get_tunnel_key(context.as_ptr().cast(), &raw mut key, KEY_LEN, 0) } == 0;
    // SAFETY: the helper filled the IPv4 member of the union; any bits are a valid u32.
    found.then(|| Origin { carry_id: key.tunnel_id, vtep: unsafe { key.__bindgen_anon_1.remote_ipv4 } })
}
