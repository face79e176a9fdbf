//! The end on a host that stays where it is: sends, counts, and reports what happened between two marks.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arrivals::Summary;
use crate::clock::realtime_ns;
use crate::control::{Client, GuestReport, Ports, Request, Response};
use crate::{disk, echo, memory, oneway, ping, stream};

/// What to probe, and how hard.
#[derive(Debug, Clone)]
pub struct Config {
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The guest's ports.
    pub ports: Ports,
    /// UDP port for the guest's one-way packets; 0: any. `oneway_via` tells the guest another one.
    pub oneway_port: u16,
    /// Port the guest is told to send one-way packets to, where something stands in between; the own one if absent.
    pub oneway_via: Option<u16>,
    /// Numbered UDP packets a second, each way.
    pub pps: u32,
    /// Messages a second on the TCP stream, each way.
    pub stream_rate: u32,
    /// ICMP echo requests a second.
    pub ping_rate: u32,
    /// How long to wait for the guest to answer at first.
    pub patience: Duration,
}

/// Which end of the TCP stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The peer's kernel.
    Peer,
    /// The guest's kernel.
    Guest,
}

/// The kernel's count of retransmitted segments has risen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retransmission {
    /// When the peer knew, nanoseconds since 1970: within 5 ms at its own end; for the guest's end, when the next
    /// one-way packet brought the news.
    pub at_ns: u64,
    /// Whose.
    pub end: End,
    /// By how many segments.
    pub segments: u32,
}

/// What happened between two marks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Packets the peer sent to be echoed, as the guest counted them; times are the guest's `CLOCK_MONOTONIC`.
    pub to_guest: Summary,
    /// When those that were lost had been sent, nanoseconds since 1970; the first [`Summary::NUMBERS`] of them.
    pub lost_sent_at_ns: Vec<u64>,
    /// The same packets, by the echoes that came back; times are nanoseconds since 1970.
    pub echoes: Summary,
    /// One-way packets the guest sent, as the peer counted them; times are nanoseconds since 1970.
    pub from_guest: Summary,
    /// ICMP echo; times are nanoseconds since 1970.
    pub ping: Summary,
    /// The guest's watched memory, since it booted.
    pub memory: memory::Status,
    /// The guest's disks that are written to, since it booted.
    #[serde(default)]
    pub disks: Vec<disk::Status>,
    /// The TCP stream.
    pub stream: StreamReport,
}

impl Report {
    /// Numbered packets that have not arrived, echoes among them.
    pub fn missing(&self) -> u64 {
        self.to_guest.lost + self.echoes.lost + self.from_guest.lost
    }

    /// Packets and echoes the guest sent that did not arrive. An echo of a packet that never came was never sent.
    pub fn lost_from_guest(&self) -> u64 {
        self.from_guest.lost + self.to_guest.arrived.saturating_sub(self.echoes.arrived)
    }

    /// Arrivals of what had already arrived, both ways, pings included. A packet that came twice is echoed twice.
    pub fn duplicated(&self) -> u64 {
        self.to_guest.duplicated.max(self.echoes.duplicated) + self.from_guest.duplicated + self.ping.duplicated
    }

    /// Arrivals after a later one of the same probe, both ways, pings included. A packet that came late is echoed late.
    pub fn reordered(&self) -> u64 {
        self.to_guest.reordered.max(self.echoes.reordered) + self.from_guest.reordered + self.ping.reordered
    }
}

/// The TCP stream between two marks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Messages sent, both ends.
    pub sent: u64,
    /// Of all sent before the second mark, not received yet, both ends.
    pub undelivered: u64,
    /// Messages that were not the ones expected, both ends, in this session.
    pub corrupted: u64,
    /// Connections that broke, both ends, in this session; that over which the guest is asked for its counts included.
    pub resets: u64,
    /// Times the guest did not answer for [`Client::ANSWER`] when asked for its counts, in this session.
    pub stalls: u64,
    /// Retransmissions between the marks, in the order in which they were noticed.
    pub retransmissions: Vec<Retransmission>,
}

/// Where everything stood at one moment.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at_ns: u64,
    echo: u64,
    oneway: u64,
    ping: u64,
    stream_sent: u64,
    guest_stream_sent: u64,
}

/// A probing session with one guest; its threads end when it is dropped.
#[derive(Debug)]
pub struct Peer {
    session: u32,
    control: Client,
    echo: Arc<echo::Sender>,
    oneway: Arc<oneway::Receiver>,
    ping: Arc<ping::Pinger>,
    stream: Arc<stream::Counters>,
    retransmissions: Arc<Retransmissions>,
    marks: Vec<Mark>,
    stop: Arc<AtomicBool>,
}

impl Peer {
    /// Waits for the guest to answer, then starts all probes.
    pub fn start(config: &Config) -> io::Result<Self> {
        let mut control = Client::connect(config.guest, config.ports.control, config.patience)?;
        let stop = Arc::new(AtomicBool::new(false));
        let session = session_id();
        let retransmissions = Arc::new(Retransmissions::default());

        let noted = retransmissions.clone();
        let oneway = oneway::Receiver::start(config.oneway_port, session, &stop, move |total, at_ns| {
            noted.guest_total(total, at_ns);
        })?;
        control.ask(&Request::Begin {
            session,
            oneway_port: config.oneway_via.unwrap_or(oneway.port),
            oneway_pps: config.pps,
            stream_rate: config.stream_rate,
        })?;
        let stream = start_stream(config, &retransmissions, &stop);
        let echo = echo::Sender::start(SocketAddrV4::new(config.guest, config.ports.echo), session, config.pps, &stop)?;
        let ping = ping::Pinger::start(config.guest, session, config.ping_rate, &stop)?;
        Ok(Self { session, control, echo, oneway, ping, stream, retransmissions, marks: Vec::new(), stop })
    }

    /// Ends one window and begins the next; returns the mark's number, counting from 0.
    pub fn mark(&mut self) -> io::Result<usize> {
        let request = Request::Mark { session: self.session };
        let Response::Mark { oneway, stream_sent: guest_stream_sent } = self.control.ask(&request)? else {
            return Err(unexpected("Mark"));
        };
        self.marks.push(Mark {
            at_ns: realtime_ns(),
            echo: self.echo.next(),
            oneway,
            ping: self.ping.next(),
            stream_sent: self.stream.sent.load(Ordering::SeqCst),
            guest_stream_sent,
        });
        Ok(self.marks.len() - 1)
    }

    /// What happened between two marks. Ask at least a second after the second one, or packets still under way count
    /// as lost; and for windows in order, for what lies before a window is forgotten.
    pub fn report(&mut self, from: usize, to: usize) -> io::Result<Report> {
        let (Some(&from), Some(&to)) = (self.marks.get(from), self.marks.get(to)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no marks {from} and {to}")));
        };
        let request = Request::Report { session: self.session, from: from.echo, to: to.echo };
        let Response::Report(guest) = self.control.ask(&request)? else { return Err(unexpected("Report")) };
        self.retransmissions.guest_total(guest.stream_retransmits, realtime_ns());
        self.echo.sent.summarise(from.echo..to.echo);
        Ok(Report {
            to_guest: guest.echo.clone(),
            lost_sent_at_ns: self.echo.sent.times(&guest.echo.lost_numbers),
            echoes: self.echo.echoes.summarise(from.echo..to.echo),
            from_guest: self.oneway.arrivals.summarise(from.oneway..to.oneway),
            ping: self.ping.answers.summarise(from.ping..to.ping),
            memory: guest.memory,
            stream: self.stream_report(from, to, &guest),
            disks: guest.disks,
        })
    }

    fn stream_report(&self, from: Mark, to: Mark, guest: &GuestReport) -> StreamReport {
        let received = self.stream.received.load(Ordering::SeqCst);
        StreamReport {
            sent: to.stream_sent - from.stream_sent + to.guest_stream_sent - from.guest_stream_sent,
            undelivered: to.stream_sent.saturating_sub(guest.stream_received)
                + to.guest_stream_sent.saturating_sub(received),
            corrupted: self.stream.corrupted.load(Ordering::SeqCst) + guest.stream_corrupted,
            resets: self.stream.resets.load(Ordering::SeqCst) + guest.stream_resets + self.control.trouble().breaks,
            stalls: self.control.trouble().stalls,
            retransmissions: self.retransmissions.during(from.at_ns..to.at_ns),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Retransmissions of both ends, as they became known.
#[derive(Debug, Default)]
struct Retransmissions(Mutex<(u32, Vec<Retransmission>)>);

impl Retransmissions {
    fn peer(&self, segments: u32) {
        self.lock().1.push(Retransmission { at_ns: realtime_ns(), end: End::Peer, segments });
    }

    fn guest_total(&self, total: u32, at_ns: u64) {
        let (known, events) = &mut *self.lock();
        if total > *known {
            events.push(Retransmission { at_ns, end: End::Guest, segments: total - *known });
            *known = total;
        }
    }

    fn during(&self, window: Range<u64>) -> Vec<Retransmission> {
        self.lock().1.iter().filter(|event| window.contains(&event.at_ns)).copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u32, Vec<Retransmission>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a stream open until `stop`: one that breaks is counted, and replaced.
fn start_stream(
    config: &Config,
    retransmissions: &Arc<Retransmissions>,
    stop: &Arc<AtomicBool>,
) -> Arc<stream::Counters> {
    let counters = Arc::new(stream::Counters::default());
    let address = SocketAddrV4::new(config.guest, config.ports.stream).into();
    let (rate, counted, noted, stop) = (config.stream_rate, counters.clone(), retransmissions.clone(), stop.clone());
    thread::spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            let ended = TcpStream::connect_timeout(&address, Duration::from_secs(3)).and_then(|mut stream| {
                stream::exchange(&mut stream, rate, &counted, &stop, |segments| noted.peer(segments))
            });
            if !stop.load(Ordering::SeqCst) {
                counted.resets.fetch_add(1, Ordering::SeqCst);
                eprintln!("the stream broke: {ended:?}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    });
    counters
}

/// Different for every peer that ever talks to the same guest.
fn session_id() -> u32 {
    (realtime_ns() / 1_000_000) as u32 ^ std::process::id().rotate_left(16)
}

fn unexpected(request: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the guest's answer to {request} was another one's"))
}
