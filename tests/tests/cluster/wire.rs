//! Frames put on a node's devices, and frames seen there.

use std::mem::size_of_val;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::lab::Lab;

/// Room for what the watcher is late to read; the guest's memory passes some of these devices too.
const RECEIVE_BUFFER: usize = 64 << 20;
/// What is kept of a frame.
const KEEP: usize = 192;

/// A frame on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The device.
    pub(crate) device: String,
    /// It left by this device; else it came in.
    pub(crate) out: bool,
    /// Its beginning.
    pub(crate) frame: Vec<u8>,
}

impl Seen {
    /// The tenant's frame in one of a VXLAN tunnel to this UDP port.
    pub(crate) fn inner(&self, port: u16) -> Option<&[u8]> {
        const OUTER: usize = 14 + 20 + 8 + 8;
        let frame = self.frame.as_slice();
        let vxlan = frame.get(12..14)? == [0x08, 0x00] && frame[23] == 17 && frame.get(36..38)? == port.to_be_bytes();
        vxlan.then(|| frame.get(OUTER..))?
    }
}

/// Watches all devices of a node, those to come included.
pub(crate) struct Watch {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Keeps the frames that `keep` wants.
    pub(crate) fn start(lab: &Lab, node: &str, keep: impl Fn(&Seen) -> bool + Send + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (noting, stopped) = (seen.clone(), stop.clone());
        let thread = lab.inside(node, || {
            let protocol = SockProtocol::EthAll;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).unwrap();
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
            thread::spawn(move || watch(&socket, keep, &noting, &stopped))
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Waits a little for what is on its way, and returns everything seen.
    pub(crate) fn end(mut self) -> Vec<Seen> {
        thread::sleep(Duration::from_millis(300));
        self.finish();
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn finish(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.finish();
    }
}

fn watch(socket: &OwnedFd, keep: impl Fn(&Seen) -> bool, seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    let mut buffer = [0; KEEP];
    while !stop.load(Ordering::SeqCst) {
        let Ok((length, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        let out = from.pkttype() == libc::PACKET_OUTGOING;
        let Ok(device) = if_indextoname(from.ifindex() as u32) else { continue };
        let frame = buffer[..length.min(KEEP)].to_vec();
        let one = Seen { device: device.to_string_lossy().into_owned(), out, frame };
        if keep(&one) {
            seen.lock().unwrap().push(one);
        }
    }
}

/// Puts frames on one device of a node.
pub(crate) struct Sender(OwnedFd);

impl Sender {
    pub(crate) fn open(lab: &Lab, node: &str, device: &str) -> Self {
        lab.inside(node, || {
            // Protocol 0 receives nothing.
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
            // SAFETY: plain integers and bytes; all zeroes is a value.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = if_nametoindex(device).unwrap() as i32;
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: the pointer is to `address`, alive for the call, and the length is its own.
            let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
            assert_eq!(result, 0, "{device}: {}", std::io::Error::last_os_error());
            Self(socket)
        })
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.0, frame).unwrap(), frame.len());
    }
}

/// Set when it goes: whoever sends until then ends also when the test fails.
pub(crate) struct Stopped<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
