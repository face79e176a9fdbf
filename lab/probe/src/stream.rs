//! A paced TCP stream, numbered messages both ways over one connection, with an eye on the kernel's retransmissions.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use crate::clock::{Pacer, monotonic_ns};

/// Bytes of a message: its number, then bytes that follow from it.
pub const MESSAGE: usize = 1000;

/// How the stream's loss recovery is to behave, whatever the system's default is (BBR ignores single losses).
pub(crate) const CONGESTION_CONTROL: &str = "cubic";

/// How often the kernel's counters are looked at.
pub(crate) const SAMPLE: Duration = Duration::from_millis(5);

/// Bytes that may wait for the connection before no more messages are made.
const BACKLOG: usize = 64 << 10;

/// What one end of the stream has seen, over all its connections.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages handed to TCP.
    pub sent: AtomicU64,
    /// Messages received whole.
    pub received: AtomicU64,
    /// Messages that were not the one expected.
    pub corrupted: AtomicU64,
    /// Connections that ended before their time.
    pub resets: AtomicU64,
    /// Segments retransmitted.
    pub retransmits: Arc<AtomicU32>,
}

/// Sends `rate` messages a second and checks those received, until `stop`, the other end's orderly close, or an error.
/// `retransmitted` is told the increase each time the kernel's count has risen.
pub fn exchange(
    stream: &mut TcpStream,
    rate: u32,
    counters: &Counters,
    stop: &AtomicBool,
    mut retransmitted: impl FnMut(u32),
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::TcpCongestion, &CONGESTION_CONTROL.into())?;
    let mut ends =
        Ends { counters, pacer: Pacer::new(rate), outgoing: Vec::new(), incoming: Vec::new(), sent: 0, received: 0 };
    let mut known = 0;
    while !stop.load(Ordering::SeqCst) {
        wait(stream, !ends.outgoing.is_empty(), ends.pacer.remaining().min(SAMPLE))?;
        ends.make_messages();
        ends.flush(stream)?;
        if ends.fetch(stream)? == Connection::Closed {
            return Ok(());
        }
        let total = total_retransmits(stream)?;
        if total > known {
            counters.retransmits.fetch_add(total - known, Ordering::SeqCst);
            retransmitted(total - known);
            known = total;
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Connection {
    Open,
    Closed,
}

struct Ends<'a> {
    counters: &'a Counters,
    pacer: Pacer,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    sent: u64,
    received: u64,
}

impl Ends<'_> {
    fn make_messages(&mut self) {
        while self.pacer.remaining().is_zero() {
            self.pacer.advance(monotonic_ns());
            if self.outgoing.len() < BACKLOG {
                self.outgoing.extend_from_slice(&message(self.sent));
                self.sent += 1;
                self.counters.sent.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match stream.write(&self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn fetch(&mut self, stream: &mut TcpStream) -> io::Result<Connection> {
        let mut buffer = [0; 16 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(Connection::Closed),
                Ok(length) => self.take(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Connection::Open),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        while self.incoming.len() >= MESSAGE {
            if self.incoming[..MESSAGE] == message(self.received) {
                self.counters.received.fetch_add(1, Ordering::SeqCst);
            } else {
                self.counters.corrupted.fetch_add(1, Ordering::SeqCst);
            }
            self.received += 1;
            self.incoming.drain(..MESSAGE);
        }
    }
}

fn message(number: u64) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    let mut state = number;
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&state.to_be_bytes()[..chunk.len()]);
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
    }
    bytes
}

fn wait(stream: &TcpStream, writing: bool, timeout: Duration) -> io::Result<()> {
    let interest = if writing { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
    match ppoll(&mut [PollFd::new(stream.as_fd(), interest)], Some(TimeSpec::from_duration(timeout)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `tcpi_total_retrans` of the connection.
pub(crate) fn total_retransmits(stream: &TcpStream) -> io::Result<u32> {
    // SAFETY: tcp_info is plain integers; all zeroes is a value of it.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers are to `info` and its length, both alive for the call.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if result == 0 { Ok(info.tcpi_total_retrans) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(counters: &Counters) -> Ends<'_> {
        Ends { counters, pacer: Pacer::new(1), outgoing: Vec::new(), incoming: Vec::new(), sent: 0, received: 0 }
    }

    #[test]
    fn a_stream_cut_anywhere_is_put_together() {
        let counters = Counters::default();
        let mut ends = ends(&counters);
        let bytes: Vec<u8> = (0..3).flat_map(message).collect();
        bytes.chunks(7).for_each(|chunk| ends.take(chunk));
        assert_eq!(counters.received.load(Ordering::SeqCst), 3);
        assert_eq!(counters.corrupted.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_missing_or_changed_message_is_noticed() {
        let counters = Counters::default();
        let mut ends = ends(&counters);
        ends.take(&message(0));
        ends.take(&message(2));
        let mut changed = message(2);
        changed[999] ^= 1;
        ends.take(&changed);
        assert_eq!(counters.received.load(Ordering::SeqCst), 1);
        assert_eq!(counters.corrupted.load(Ordering::SeqCst), 2);
    }
}
