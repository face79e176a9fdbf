//! A tap's descriptor: whole frames in, whole frames out, each with its vnet header.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd,
};

use super::PumpError;

#[derive(Debug)]
pub(super) struct Device {
    fd: OwnedFd,
    /// Name of the interface in its namespace, with its end.
    name: [u8; libc::IFNAMSIZ],
    header_len: u32,
}

impl Device {
    pub(super) fn new(fd: OwnedFd, role: &'static str) -> Result<Self, PumpError> {
        // SAFETY: plain old data, all zero is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills one `ifreq`; on anything but a tap's descriptor the ioctl fails.
        Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })
            .map_err(|errno| PumpError::NotATap { role, source: errno.into() })?;
        // SAFETY: TUNGETIFF fills the flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let mut header_len: libc::c_int = 0;
        if flags & libc::IFF_VNET_HDR != 0 {
            // SAFETY: the kernel fills one int.
            Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut header_len) })
                .map_err(|errno| PumpError::NotATap { role, source: errno.into() })?;
        }
        let name = request.ifr_name.map(|byte| byte as u8);
        Ok(Self { fd, name, header_len: header_len.unsigned_abs() })
    }

    pub(super) fn header_len(&self) -> u32 {
        self.header_len
    }

    /// Gives every frame read or written from now on a vnet header of `length` bytes. The header is made at the descriptor,
    /// not in the ring: frames that wait already come with the new one.
    pub(super) fn set_header_len(&mut self, length: u32) -> io::Result<()> {
        let wanted = length.cast_signed();
        // SAFETY: the kernel reads one int.
        Errno::result(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const wanted) })?;
        self.header_len = length;
        Ok(())
    }

    /// Frames its ring takes: `txqueuelen`.
    pub(super) fn ring_len(&self) -> io::Result<u32> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        // SAFETY: plain old data, all zero is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name.map(|byte| byte as libc::c_char);
        // SAFETY: the kernel reads the name and fills the queue length, which shares its place with the MTU.
        Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFTXQLEN, &raw mut request) })?;
        // SAFETY: filled by the ioctl; any bits are a valid int.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs())
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&self.fd, FcntlArg::F_GETFL)?);
        fcntl(&self.fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    }

    /// One frame into `buffer`; its length, or `None` if none waits.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match unistd::read(&self.fd, buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// One frame, whole.
    pub(super) fn write(&self, frame: &[u8]) -> Result<(), Errno> {
        unistd::write(&self.fd, frame).map(|_| ())
    }

    /// Whether a frame waits in its ring.
    pub(super) fn has_frames(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(ready) if ready > 0)
    }
}

/// Waits for a frame on any of `devices`, or for a word on `woken` or its end.
pub(super) fn wait<'a>(devices: impl Iterator<Item = &'a Device>, woken: BorrowedFd<'_>) {
    let mut fds: Vec<_> = devices.map(|device| PollFd::new(device.fd.as_fd(), PollFlags::POLLIN)).collect();
    fds.push(PollFd::new(woken, PollFlags::POLLIN));
    // An interrupted wait is a short one: the caller looks again.
    let _ = poll(&mut fds, PollTimeout::NONE);
}
