//! The observer on a hypervisor: when the frames of the echo probe were put on the guest's tap.
//!
//! It sees a frame as the tap's driver is handed it: after every tc program, before the tap's ring. A frame that waits
//! in the ring of a paused guest is seen when it began to wait.

use std::collections::HashMap;
use std::io;
use std::mem::size_of_val;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use crate::packet::{LEN, Packet};

/// Names of guests' taps begin so.
const TAP_PREFIX: &str = "tlt";
const ETHERNET: usize = 14;
const UDP_HEADER: usize = 8;
const RECEIVE_BUFFER: usize = 32 << 20;

/// Which frames to look for.
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// Their destination MAC.
    pub mac: [u8; 6],
    /// Their destination IPv4 address.
    pub address: Ipv4Addr,
    /// Their destination UDP port.
    pub port: u16,
}

/// A frame on its way to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The kernel's time stamp, nanoseconds since 1970.
    pub at_ns: u64,
    /// Its probe number.
    pub sequence: u64,
}

/// What was seen since the last time someone asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sightings {
    /// Frames put on a tap, in order.
    pub frames: Vec<Sighting>,
    /// Frames the observer itself missed; anything but 0 makes the rest worthless.
    pub missed: u32,
}

/// A packet socket on every device of the namespace, those to come included.
#[derive(Debug)]
pub struct Observer {
    socket: OwnedFd,
    taps: HashMap<usize, bool>,
}

impl Observer {
    /// Starts looking. Needs `CAP_NET_RAW`.
    pub fn start(filter: Filter) -> io::Result<Self> {
        // Protocol 0: nothing comes in until the filter is in place and the socket is bound.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
        attach(&socket, filter)?;
        bind_everywhere(&socket)?;
        Ok(Self { socket, taps: HashMap::new() })
    }

    /// Waits up to 50 ms for a frame; `None` if there was none, or it was on no guest's tap.
    pub fn look(&mut self) -> io::Result<Option<Sighting>> {
        let mut frame = [0; 256];
        let mut control = nix::cmsg_space!(libc::timespec);
        let mut buffers = [io::IoSliceMut::new(&mut frame)];
        let message =
            match recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::empty()) {
                Ok(message) => message,
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let device = message.address.map_or(0, |address| address.ifindex());
        let at_ns = message.cmsgs()?.find_map(|header| match header {
            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at).as_nanos() as u64),
            _ => None,
        });
        let length = message.bytes;
        let packet = payload(&frame[..length]).and_then(Packet::decode);
        Ok(match (at_ns, packet, self.is_tap(device)) {
            (Some(at_ns), Some(packet), true) => Some(Sighting { at_ns, sequence: packet.sequence }),
            _ => None,
        })
    }

    /// Frames the socket had no room for since it was last asked.
    pub fn missed(&self) -> io::Result<u32> {
        // SAFETY: plain integers; all zeroes is a value.
        let mut statistics: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the pointers are to `statistics` and its length, both alive for the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if result == 0 { Ok(statistics.tp_drops) } else { Err(io::Error::last_os_error()) }
    }

    /// A device's number is never used again, so its name is looked up once, while it surely exists.
    fn is_tap(&mut self, device: usize) -> bool {
        *self.taps.entry(device).or_insert_with(|| {
            if_indextoname(device as u32).is_ok_and(|name| name.to_bytes().starts_with(TAP_PREFIX.as_bytes()))
        })
    }
}

fn payload(frame: &[u8]) -> Option<&[u8]> {
    let header = usize::from(frame.get(ETHERNET)? & 0x0f) * 4;
    frame.get(ETHERNET + header + UDP_HEADER..)
}

fn bind_everywhere(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain integers and bytes; all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: the pointer is to `address`, alive for the call, and the length is its own.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets in frames that leave a device for the filter's MAC, address and port; so the socket costs the hypervisor's other
/// traffic (the guest's memory, above all) next to nothing.
fn attach(socket: &OwnedFd, filter: Filter) -> io::Result<()> {
    let mut program = program(filter);
    let bpf = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `bpf` points to `program`; both live for the call, and the kernel copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const bpf).cast(),
            size_of_val(&bpf) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Classic BPF: a row of "load, and if it is not this, drop".
fn program(filter: Filter) -> Vec<libc::sock_filter> {
    const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    const IPV4: u32 = 0x0800;
    const KEEP: u32 = (ETHERNET + 60 + UDP_HEADER + LEN) as u32;

    let [a, b, c, d, e, f] = filter.mac;
    let checks = [
        (WORD, PACKET_TYPE, u32::from(libc::PACKET_OUTGOING)),
        (WORD, 0, u32::from_be_bytes([a, b, c, d])),
        (HALF, 4, u32::from(u16::from_be_bytes([e, f]))),
        (HALF, 12, IPV4),
        (BYTE, 23, libc::IPPROTO_UDP as u32),
        (WORD, 30, filter.address.to_bits()),
        (libc::BPF_LD | libc::BPF_H | libc::BPF_IND, ETHERNET as u32 + 2, u32::from(filter.port)),
    ];
    // X := length of the IP header, for the one load that is relative to it.
    let mut program = vec![statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, ETHERNET as u32)];
    for (index, (load, offset, value)) in checks.iter().enumerate() {
        let to_drop = 2 * (checks.len() - index) - 1;
        program.push(statement(*load, *offset));
        program.push(libc::sock_filter {
            jf: to_drop as u8,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *value)
        });
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, KEEP));
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0));
    program
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}
