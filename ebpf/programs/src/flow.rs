//! Which queue of a tap takes a frame.

use aya_ebpf::{macros::socket_filter, programs::SkBuffContext};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
/// Where things are in a frame.
mod offset {
    pub(super) const SOURCE: usize = 6;
    pub(super) const TYPE: usize = 12;
    pub(super) const IPV4: usize = 14;
    pub(super) const IPV4_FRAGMENT: usize = 20;
    pub(super) const IPV4_PROTOCOL: usize = 23;
    pub(super) const IPV4_ADDRESSES: usize = 26;
    pub(super) const IPV6_PROTOCOL: usize = 20;
    pub(super) const IPV6_ADDRESSES: usize = 22;
    pub(super) const IPV6_PAYLOAD: usize = 54;
}
/// "More fragments", and how far into the datagram this one is.
const FRAGMENTED: u16 = 0x3fff;

/// A tap with several queues asks this which of them takes a frame (`TUNSETSTEERINGEBPF`), and takes the remainder. By
/// nothing but the frame, so that it is the same wherever the frame waited and whatever the guest does: TCP by connection,
/// all else by the two addresses, for a datagram may come whole or in fragments that have no ports.
#[socket_filter]
pub fn flow(context: SkBuffContext) -> i64 {
    i64::from(of(&context) & 0x7fff_ffff)
}

#[inline(always)]
fn of(frame: &SkBuffContext) -> u32 {
    let hash = match frame.load::<u16>(offset::TYPE).map(u16::from_be) {
        Ok(IPV4) => ipv4(frame),
        Ok(IPV6) => ipv6(frame),
        _ => None,
    };
    hash.or_else(|| sender(frame)).unwrap_or(0)
}

#[inline(always)]
fn ipv4(frame: &SkBuffContext) -> Option<u32> {
    let hash = stir(0, &frame.load::<[u32; 2]>(offset::IPV4_ADDRESSES).ok()?);
    let whole = u16::from_be(frame.load(offset::IPV4_FRAGMENT).ok()?) & FRAGMENTED == 0;
    if !whole || frame.load::<u8>(offset::IPV4_PROTOCOL).ok()? != TCP {
        return Some(hash);
    }
    let header = usize::from(frame.load::<u8>(offset::IPV4).ok()? & 0x0f) * 4;
    Some(stir(hash, &[frame.load(offset::IPV4 + header).ok()?]))
}

/// A segment behind extension headers goes by its addresses.
#[inline(always)]
fn ipv6(frame: &SkBuffContext) -> Option<u32> {
    let hash = stir(0, &frame.load::<[u32; 8]>(offset::IPV6_ADDRESSES).ok()?);
    if frame.load::<u8>(offset::IPV6_PROTOCOL).ok()? != TCP {
        return Some(hash);
    }
    Some(stir(hash, &[frame.load(offset::IPV6_PAYLOAD).ok()?]))
}

/// What has no addresses that are known here: by who sent it.
#[inline(always)]
fn sender(frame: &SkBuffContext) -> Option<u32> {
    let [low, middle, high] = frame.load::<[u16; 3]>(offset::SOURCE).ok()?;
    Some(stir(0, &[u32::from(low) << 16 | u32::from(middle), u32::from(high)]))
}

/// Multiplication by an odd number with well-mixed bits, after each word; the high bits are folded down for the remainder.
#[inline(always)]
fn stir(hash: u32, words: &[u32]) -> u32 {
    words.iter().fold(hash, |hash, word| {
        let mixed = (hash ^ word).wrapping_mul(0x9e37_79b1);
        mixed ^ mixed >> 15
    })
}
