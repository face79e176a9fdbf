//! Taps as the agent makes them: vnet header of 12 bytes, offloads on.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::netns::{ifindex, ip, run};

/// Bytes of the vnet header, as QEMU sets it.
pub(crate) const VNET_HEADER: usize = 12;
/// What the agent asks for: checksums, and super-frames of TCP and UDP whole.
const OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN | libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A tap, and its descriptors.
pub(crate) struct Tap {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    /// Its queue, or the first of several.
    file: File,
    further: Vec<File>,
}

impl Tap {
    /// A tap that is up, in the calling thread's namespace, its ring taking `ring` frames.
    pub(crate) fn new(name: &str, ring: u32) -> Self {
        Self::with_queues(name, ring, 1)
    }

    /// The same with several queues, each with such a ring.
    pub(crate) fn with_queues(name: &str, ring: u32, queues: usize) -> Self {
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let mut tap = Self::open(name, ring, libc::IFF_VNET_HDR | several);
        tap.further = (1..queues).map(|_| open_queue(name, libc::IFF_VNET_HDR | several)).collect();
        tap.set_header(VNET_HEADER);
        // SAFETY: the ioctl reads a number.
        let offloads = unsafe { libc::ioctl(tap.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(OFFLOADS)) };
        assert_eq!(offloads, 0, "TUNSETOFFLOAD");
        tap
    }

    /// A tap whose frames come bare.
    pub(crate) fn without_header(name: &str, ring: u32) -> Self {
        Self::open(name, ring, 0)
    }

    /// Changes the length of the vnet header, as QEMU does when the guest's driver comes or goes.
    pub(crate) fn set_header(&self, length: usize) {
        let length = length as libc::c_int;
        // SAFETY: the ioctl reads an int.
        let set = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) };
        assert_eq!(set, 0, "TUNSETVNETHDRSZ");
    }

    fn open(name: &str, ring: u32, flags: libc::c_int) -> Self {
        let file = open_queue(name, flags);
        ip(&format!("link set dev {name} txqueuelen {ring}"));
        ip(&format!("link set dev {name} up"));
        Self { name: name.to_owned(), ifindex: ifindex(name), file, further: Vec::new() }
    }

    /// A hold: a tap whose full ring is told.
    pub(crate) fn hold(name: &str, ring: u32) -> Self {
        let hold = Self::new(name, ring);
        noqueue(name);
        hold
    }

    /// A hold with a queue for each of `lanes` lanes.
    pub(crate) fn hold_with_lanes(name: &str, ring: u32, lanes: usize) -> (Self, Vec<OwnedFd>) {
        let hold = Self::open(name, ring, libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE);
        hold.set_header(VNET_HEADER);
        noqueue(name);
        let more = (1..lanes).map(|_| open_queue(name, libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE).into());
        let queues = std::iter::once(hold.dup()).chain(more).collect();
        (hold, queues)
    }

    /// Another descriptor of it.
    pub(crate) fn dup(&self) -> OwnedFd {
        self.file.try_clone().unwrap().into()
    }

    /// Other descriptors of all its queues.
    pub(crate) fn queues(&self) -> Vec<OwnedFd> {
        std::iter::once(&self.file).chain(&self.further).map(|queue| queue.try_clone().unwrap().into()).collect()
    }

    /// Only for reading and writing frames.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self { name: String::new(), ifindex: 0, file: fd.into(), further: Vec::new() }
    }

    /// Next frame in the ring, without its vnet header.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        self.read_with_header().map(|(_, frame)| frame)
    }

    /// Next frame in the ring, and its vnet header.
    pub(crate) fn read_with_header(&self) -> Option<([u8; VNET_HEADER], Vec<u8>)> {
        let mut buffer = vec![0; 80 * 1024];
        match (&self.file).read(&mut buffer) {
            Ok(length) => Some((buffer[..VNET_HEADER].try_into().unwrap(), buffer[VNET_HEADER..length].to_vec())),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    /// Whether a frame waits in the ring of its queue, or of the first of several.
    pub(crate) fn has_frames(&self) -> bool {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    /// Takes the queue out of service, as QEMU does with those its guest does not use.
    pub(crate) fn detach(&self) {
        // SAFETY: plain old data.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as i16;
        // SAFETY: the ioctl reads an `ifreq`.
        let detached = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) };
        assert_eq!(detached, 0, "TUNSETQUEUE");
    }

    /// Writes a frame with its vnet header, as a guest sends it.
    pub(crate) fn write(&self, header: &[u8; VNET_HEADER], frame: &[u8]) {
        let buffer = [header, frame].concat();
        assert_eq!((&self.file).write(&buffer).unwrap(), buffer.len());
    }
}

fn open_queue(name: &str, flags: libc::c_int) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("/dev/net/tun: these tests need the tun driver");
    // SAFETY: plain old data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as i16;
    // SAFETY: the ioctl reads and fills an `ifreq`.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(made, 0, "TUNSETIFF {name}");
    file
}

fn noqueue(name: &str) {
    run("tc", &format!("qdisc replace dev {name} root noqueue"));
}
