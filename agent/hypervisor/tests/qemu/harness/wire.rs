//! What passes on the wire: the loopback, on which both ends of a stream are here.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike},
};

/// Of each frame.
const KEEP: usize = 512;

/// Sees the beginning of every frame from now on.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    seen: JoinHandle<(Vec<Vec<u8>>, usize)>,
}

impl Wire {
    pub(crate) fn tap() -> Self {
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        Self { stop, seen: thread::spawn(move || watch(&socket, &stopped)) }
    }

    /// Whether those bytes passed, and how much passed in all.
    pub(crate) fn look_for(self, bytes: &[u8]) -> (bool, usize) {
        thread::sleep(Duration::from_millis(200));
        self.stop.store(true, Ordering::SeqCst);
        let (frames, total) = self.seen.join().unwrap();
        (frames.iter().any(|frame| frame.windows(bytes.len()).any(|window| window == bytes)), total)
    }
}

fn watch(socket: &OwnedFd, stop: &AtomicBool) -> (Vec<Vec<u8>>, usize) {
    let (mut frames, mut total) = (Vec::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::SeqCst) {
        let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty()) else { continue };
        total += length;
        // The stream's beginning is in one of the first.
        if frames.len() < 2_000 {
            frames.push(buffer[..length.min(KEEP)].to_vec());
        }
    }
    (frames, total)
}
