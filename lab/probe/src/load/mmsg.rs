//! Many datagrams a system call.

use std::io;
use std::mem::zeroed;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Most datagrams of a call.
pub(super) const BATCH: usize = 64;

/// Bytes of a datagram.
pub(super) const LEN: usize = 64;

/// Datagrams of [`LEN`] bytes.
pub(super) struct Datagrams {
    /// Their contents.
    pub(super) bytes: [[u8; LEN]; BATCH],
}

impl Datagrams {
    /// Empty ones.
    pub(super) fn new() -> Self {
        Self { bytes: [[0; LEN]; BATCH] }
    }

    /// Sends the first `count` over a connected socket; how many it took.
    pub(super) fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize> {
        // SAFETY: the call reads `count` headers, each with one buffer in `self.bytes`; all of them live until it returns.
        self.with_headers(count, |headers, count| unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count, 0) })
    }

    /// Waits for datagrams, up to the socket's timeout, and takes what there is; how many. Shorter ones end as they ended
    /// before, longer ones are cut.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.with_headers(BATCH, |headers, count| {
            // SAFETY: the call writes to `count` headers, each with one buffer in `self.bytes`; all of them live until it
            // returns, and there is no timeout to point to.
            unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, count, libc::MSG_WAITFORONE, std::ptr::null_mut()) }
        })
    }

    fn with_headers(
        &mut self,
        count: usize,
        call: impl FnOnce(*mut libc::mmsghdr, libc::c_uint) -> libc::c_int,
    ) -> io::Result<usize> {
        let count = count.min(BATCH);
        // SAFETY: pointers and plain integers; all zeroes is a value of both.
        let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        for ((bytes, vector), header) in self.bytes.iter_mut().zip(&mut vectors).zip(&mut headers) {
            *vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: LEN };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        let done = call(headers.as_mut_ptr(), count as libc::c_uint);
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }
}
