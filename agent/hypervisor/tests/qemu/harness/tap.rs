//! Taps in the test's namespace, frames into their rings and out again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use super::ip;

/// What tells a test's frame: destination, source and an EtherType for experiments (IEEE 802).
const HEADER: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];

/// A new tap with a vnet header, up; with `IFF_MULTI_QUEUE` as `kind` a further queue of one that is there.
pub(super) fn open(name: &str, kind: libc::c_int) -> OwnedFd {
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
    // SAFETY: all of ifreq is valid when zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | kind) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "TUNSETIFF {name}: {}", io::Error::last_os_error());
    ip(&format!("link set {name} addrgenmode none"));
    ip(&format!("link set {name} up"));
    tun.into()
}

/// Sends numbered frames into the ring of the tap `name`.
pub(crate) fn inject(name: &str, numbers: std::ops::Range<u32>) {
    let index = nix::net::if_::if_nametoindex(name).unwrap();
    // SAFETY: socket(2) with constants; the result is checked.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0, "AF_PACKET: {}", io::Error::last_os_error());
    // SAFETY: just made, and ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all of sockaddr_ll is valid when zero.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    for number in numbers {
        let frame = [&HEADER[..], &number.to_be_bytes(), &[0; 42]].concat();
        // SAFETY: both pointers are to live values of the sizes given.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        assert_eq!(sent, frame.len() as isize, "send: {}", io::Error::last_os_error());
    }
}

/// Name of the tap that a descriptor is of.
pub(crate) fn name_of(tap: &OwnedFd) -> String {
    // SAFETY: all of ifreq is valid when zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    assert_eq!(result, 0, "TUNGETIFF: {}", io::Error::last_os_error());
    request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8)).collect()
}

/// The length of the vnet header before each frame: 10 until a guest's driver makes QEMU set another.
fn vnet_header(tap: &OwnedFd) -> usize {
    let mut length: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut length) };
    assert_eq!(result, 0, "TUNGETVNETHDRSZ: {}", io::Error::last_os_error());
    usize::try_from(length).unwrap()
}

/// Empties a tap's ring: the numbers of the test's frames in it, in order.
pub(crate) fn read_frames(tap: &OwnedFd) -> Vec<u32> {
    let header = vnet_header(tap);
    let mut tap = File::from(tap.try_clone().unwrap());
    let mut numbers = Vec::new();
    let mut frame = [0; 2048];
    loop {
        match tap.read(&mut frame) {
            Ok(length) => {
                let frame = &frame[header..length];
                if frame.starts_with(&HEADER) {
                    numbers.push(u32::from_be_bytes(frame[14..18].try_into().unwrap()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return numbers,
            Err(error) => panic!("read the tap: {error}"),
        }
    }
}
