//! Frames from this process, put on a device as they are.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Ethernet's least, without the checksum.
pub(crate) const LEAST_FRAME: usize = 60;

/// Sends frames out of a device, in order.
///
/// The socket is bound to no protocol, so it receives nothing; each frame is sent under its own EtherType, without
/// which the kernel would not look into it for a flow hash and all would take one queue.
pub(crate) fn send<'a>(device: u32, frames: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
    // SAFETY: socket(2) takes no pointers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just returned to us and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    frames.into_iter().try_for_each(|frame| send_one(&socket, device, frame))
}

fn send_one(socket: &OwnedFd, device: u32, frame: &[u8]) -> io::Result<()> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    let [high, low] = frame.get(12..14).and_then(|t| t.try_into().ok()).ok_or_else(|| invalid("no EtherType"))?;
    // SAFETY: sockaddr_ll is plain data for which all zeroes is a valid value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as libc::c_ushort;
    to.sll_protocol = u16::from_ne_bytes([high, low]);
    to.sll_ifindex = i32::try_from(device).map_err(|_| invalid("interface index out of range"))?;
    // SAFETY: frame and address outlive the call; the lengths are theirs.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The Internet checksum of bytes and a partial sum (RFC 1071).
pub(crate) fn checksum(partial: u32, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    let mut sum = words.fold(partial, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_rfc_1071_example() {
        assert_eq!(checksum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(0, &[0x01]), !0x0100, "an odd byte is the high half of its word");
    }
}
