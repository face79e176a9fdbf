//! The connection a source's memory goes over, and what QEMU leaves unset on it.

use std::{io, net::SocketAddrV4, os::fd::RawFd};

use nix::sys::socket::{SockaddrIn, getpeername, setsockopt, sockopt::TcpNoDelay};
use tracing::warn;

use crate::{Guest, process::Process};

impl Guest {
    /// Has the connection to `uri` send small writes at once. QEMU 7.2 leaves Nagle's algorithm on: the last words of a
    /// migration then wait for the acknowledgement of what went before, which the receiver delays by up to 40 ms, and all
    /// that time the guest stands. A failure costs that time and nothing else, so it is logged and passed over.
    pub(crate) fn send_at_once(&self, uri: &str) {
        let Some(destination) = uri.strip_prefix("tcp:").and_then(|address| address.parse::<SocketAddrV4>().ok())
        else {
            return;
        };
        match set_no_delay(self.process(), destination) {
            Ok(true) => {}
            Ok(false) => {
                warn!(guest = %self.name(), uri, "the migration's connection was not found; its end may lag by 40 ms")
            }
            Err(error) => warn!(guest = %self.name(), uri, %error, "the migration's end may lag by 40 ms"),
        }
    }
}

/// True if the process had a connection to that address.
fn set_no_delay(process: &Process, destination: SocketAddrV4) -> io::Result<bool> {
    for number in sockets(process.pid())? {
        // A descriptor may be closed between the listing and here.
        let Ok(socket) = process.duplicate_fd(number) else { continue };
        let peer = getpeername::<SockaddrIn>(std::os::fd::AsRawFd::as_raw_fd(&socket));
        if peer.is_ok_and(|peer| SocketAddrV4::from(peer) == destination) {
            setsockopt(&socket, TcpNoDelay, &true)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Numbers of the sockets among a process's descriptors.
fn sockets(pid: i32) -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let is_socket = std::fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        if let (true, Some(number)) = (is_socket, entry.file_name().to_str().and_then(|name| name.parse().ok())) {
            found.push(number);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn finds_the_connection_among_others_and_only_that() {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (ours, other) = (listen(), listen());
        let address = |listener: &TcpListener| match listener.local_addr().unwrap() {
            std::net::SocketAddr::V4(address) => address,
            std::net::SocketAddr::V6(_) => unreachable!("bound to IPv4"),
        };
        let wanted = TcpStream::connect(address(&ours)).unwrap();
        let unwanted = TcpStream::connect(address(&other)).unwrap();
        let process = Process::open(std::process::id().cast_signed()).unwrap();
        assert!(set_no_delay(&process, address(&ours)).unwrap());
        assert!(getsockopt(&wanted, TcpNoDelay).unwrap());
        assert!(!getsockopt(&unwanted, TcpNoDelay).unwrap());
        let nowhere = SocketAddrV4::new([127, 0, 0, 1].into(), 1);
        assert!(!set_no_delay(&process, nowhere).unwrap());
    }
}
