//! What the peer asks the guest: one line of JSON a request, one a response, over TCP.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::arrivals::Summary;
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
}

impl Default for Ports {
    fn default() -> Self {
        Self { control: 7000, echo: 7001, stream: 7002 }
    }
}

/// From peer to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Begin a session: counters start at 0, packets go to the asking address.
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
    Mark,
    /// What became of the packets sent to you with these numbers?
    Report {
        /// The first number.
        from: u64,
        /// One past the last number.
        to: u64,
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

/// The peer's end of a control connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// How long the guest may take to answer a request.
    const ANSWER: Duration = Duration::from_secs(10);

    /// Connects to the guest, which may still be booting: tries for `patience`.
    pub fn connect(guest: Ipv4Addr, port: u16, patience: Duration) -> io::Result<Self> {
        let address = SocketAddrV4::new(guest, port).into();
        let deadline = Instant::now() + patience;
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(Self::ANSWER))?;
                    return Ok(Self { stream: BufReader::new(stream) });
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<Response> {
        write(self.stream.get_mut(), request)?;
        match read(&mut self.stream)? {
            Some(Response::Refused(why)) => Err(io::Error::other(format!("the guest refused {request:?}: {why}"))),
            Some(response) => Ok(response),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the guest closed the control connection")),
        }
    }
}
