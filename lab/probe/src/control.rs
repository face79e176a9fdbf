//! What the peer asks the guest: one line of JSON a request, one a response, over TCP.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::arrivals::Summary;
use crate::disk;
use crate::load::sink;
use crate::memory;

/// Ports of the guest end.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// TCP: requests of this module.
    pub control: u16,
    /// UDP: numbered packets to echo.
    pub echo: u16,
    /// TCP: the paced stream.
    pub stream: u16,
    /// UDP: numbered packets of loads, not echoed.
    pub sink: u16,
    /// TCP: as fast as it goes.
    pub bulk: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self::from(7000)
    }
}

impl Ports {
    /// Five ports in a row.
    pub fn from(first: u16) -> Self {
        Self { control: first, echo: first + 1, stream: first + 2, sink: first + 3, bulk: first + 4 }
    }
}

/// From peer to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Begin a session: counters start at 0, packets go to the asking address. Nothing happens if it has begun already.
    Begin {
        /// Number of the session; packets of others are ignored.
        session: u32,
        /// The peer's UDP port for one-way packets.
        oneway_port: u16,
        /// One-way packets a second.
        oneway_pps: u32,
        /// Messages a second on the stream.
        stream_rate: u32,
    },
    /// Where are you now?
    Mark {
        /// The session this is about.
        session: u32,
    },
    /// What became of the packets sent to you with these numbers?
    Report {
        /// The session this is about.
        session: u32,
        /// The first number.
        from: u64,
        /// One past the last number.
        to: u64,
    },
    /// How are your disks?
    Disks,
    /// A load begins, beside whatever session there is.
    LoadBegin {
        /// Its number.
        load: u32,
    },
    /// A load has ended: send no more of it, and tell what arrived.
    LoadEnd {
        /// Its number.
        load: u32,
        /// Packets sent, by flow.
        sent: Vec<u64>,
    },
}

/// From guest to peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The session has begun.
    Begun,
    /// To `Mark`.
    Mark {
        /// Number of the next one-way packet.
        oneway: u64,
        /// Messages sent on the stream so far.
        stream_sent: u64,
    },
    /// To `Report`.
    Report(GuestReport),
    /// To `Disks`: each that is written to.
    Disks(Vec<disk::Status>),
    /// To `LoadBegin`.
    LoadBegun,
    /// To `LoadEnd`.
    Load(sink::Counts),
    /// The request made no sense.
    Refused(String),
}

/// What the guest counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Packets that came to be echoed; times are the guest's `CLOCK_MONOTONIC`.
    pub echo: Summary,
    /// Its watched memory, every page just checked.
    pub memory: memory::Status,
    /// Disks that are written to.
    #[serde(default)]
    pub disks: Vec<disk::Status>,
    /// Messages received on the stream in this session.
    pub stream_received: u64,
    /// Of the stream's messages, those that were not the ones expected, in this session.
    pub stream_corrupted: u64,
    /// Stream connections that ended with an error in this session.
    pub stream_resets: u64,
    /// Segments its kernel retransmitted on the stream in this session.
    pub stream_retransmits: u32,
}

/// Writes one message.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one message; `None` at the end of the stream.
pub fn read<T: DeserializeOwned>(stream: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// What went wrong on the way to an answer that came in the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Requests that had no answer within [`Client::ANSWER`].
    pub stalls: u64,
    /// Connections that broke or were closed by the guest.
    pub breaks: u64,
}

/// The peer's end of a control connection.
///
/// A connection that stalls or breaks is what the probes are there to count, and no reason for them to end: it is noted,
/// replaced, and the request repeated on the new one, for [`Client::PATIENCE`]. Every request may be repeated.
#[derive(Debug)]
pub struct Client {
    guest: SocketAddr,
    stream: BufReader<TcpStream>,
    trouble: Trouble,
}

impl Client {
    /// How long the guest may take to answer a request on one connection.
    pub const ANSWER: Duration = Duration::from_secs(10);

    /// How long a request is repeated before the guest counts as gone.
    pub const PATIENCE: Duration = Duration::from_secs(40);

    /// Connects to the guest, which may still be booting: tries for `patience`.
    pub fn connect(guest: Ipv4Addr, port: u16, patience: Duration) -> io::Result<Self> {
        let guest = SocketAddrV4::new(guest, port).into();
        let stream = open(guest, Instant::now() + patience)?;
        Ok(Self { guest, stream, trouble: Trouble::default() })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The guest refused, answered nonsense, or did not answer for [`Client::PATIENCE`].
    pub fn ask(&mut self, request: &Request) -> io::Result<Response> {
        let deadline = Instant::now() + Self::PATIENCE;
        loop {
            match self.ask_once(request) {
                Ok(Response::Refused(why)) => {
                    return Err(io::Error::other(format!("the guest refused {request:?}: {why}")));
                }
                Ok(response) => return Ok(response),
                Err(error) if error.kind() == io::ErrorKind::InvalidData || Instant::now() >= deadline => {
                    return Err(error);
                }
                Err(error) => {
                    eprintln!("no answer to {request:?}, asking again: {error}");
                    self.note(&error);
                    self.stream = open(self.guest, deadline)?;
                }
            }
        }
    }

    /// What went wrong so far.
    pub fn trouble(&self) -> Trouble {
        self.trouble
    }

    fn ask_once(&mut self, request: &Request) -> io::Result<Response> {
        write(self.stream.get_mut(), request)?;
        read(&mut self.stream)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the guest closed the control connection"))
    }

    fn note(&mut self, error: &io::Error) {
        // A read that has timed out fails as one on a non-blocking socket does.
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            self.trouble.stalls += 1;
        } else {
            self.trouble.breaks += 1;
        }
    }
}

fn open(guest: SocketAddr, deadline: Instant) -> io::Result<BufReader<TcpStream>> {
    loop {
        match TcpStream::connect_timeout(&guest, Duration::from_millis(500)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Client::ANSWER))?;
                return Ok(BufReader::new(stream));
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
