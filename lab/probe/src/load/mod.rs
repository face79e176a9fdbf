//! Load: more traffic to the guest than it could echo, numbered all the same, and TCP as fast as it goes.
//!
//! ```text
//!   peer                                              guest
//!   flood  numbered UDP, many flows, --pps  ────────►  counts arrivals for each flow
//!   bulk   chunks, as fast as it goes       ◄─ TCP ─►  chunks, as fast as it goes; a connection each way
//! ```
//!
//! A load is a window of its own: it begins, goes on, ends, and is reported once. Several peers may load one guest.

pub mod bulk;
pub mod flood;
mod mmsg;
pub mod sink;
mod track;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock::realtime_ns;
use crate::control::{Client, Ports, Request, Response};
use crate::peer::Retransmission;

/// After the last packet was sent: by then all should have arrived.
const DRAIN: Duration = Duration::from_millis(1500);

/// How often the guest is asked again for those that have not, as long as each time there are fewer: an emulated guest that
/// is behind has tens of thousands of packets before it, and has not lost them.
const LATE: u32 = 4;

/// Which load, and how much.
#[derive(Debug, Clone)]
pub struct Config {
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The guest's ports.
    pub ports: Ports,
    /// Numbered UDP packets a second to the guest, over all flows; 0: none.
    pub pps: u32,
    /// UDP flows, each from a port of its own.
    pub flows: u32,
    /// Whether to send and fetch as fast as TCP goes.
    pub bulk: bool,
    /// How long to wait for the guest to answer at first.
    pub patience: Duration,
}

/// What became of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Packets sent.
    pub sent: u64,
    /// Of them, arrived at least once.
    pub arrived: u64,
    /// Of them, not arrived.
    pub lost: u64,
    /// When those were sent, nanoseconds since 1970; the first [`sink::MOST_LOST`] of them.
    pub lost_sent_at_ns: Vec<u64>,
    /// Arrivals of a packet that had already arrived.
    pub duplicated: u64,
    /// First arrivals that came after one of the same flow with a higher number.
    pub reordered: u64,
    /// The furthest any of them had fallen behind, in numbers of its flow.
    pub displacement: u64,
    /// How long packets were sent, nanoseconds.
    pub lasted_ns: u64,
    /// TCP as fast as it goes.
    pub bulk: bulk::Report,
}

/// A load on its way; it ends when it is dropped.
#[derive(Debug)]
pub struct Load {
    id: u32,
    control: Client,
    flood: flood::Sender,
    bulk: Option<bulk::Peer>,
    began: Instant,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Waits for the guest to answer, then starts.
    pub fn start(config: &Config) -> io::Result<Self> {
        let mut control = Client::connect(config.guest, config.ports.control, config.patience)?;
        let id = (realtime_ns() / 1000) as u32 ^ std::process::id().rotate_left(16);
        let stop = Arc::new(AtomicBool::new(false));
        control.ask(&Request::LoadBegin { load: id })?;
        let bulk = match config.bulk {
            true => Some(bulk::Peer::start(SocketAddrV4::new(config.guest, config.ports.bulk), id, &stop)?),
            false => None,
        };
        let began = Instant::now();
        let target = SocketAddrV4::new(config.guest, config.ports.sink);
        let flood = flood::Sender::start(target, id, config.pps, config.flows, &stop)?;
        Ok(Self { id, control, flood, bulk, began, stop })
    }

    /// Ends it, waits for what is still under way, and asks the guest.
    pub fn finish(mut self) -> io::Result<Report> {
        self.stop.store(true, Ordering::SeqCst);
        let lasted_ns = self.began.elapsed().as_nanos() as u64;
        let sent = self.flood.finish();
        let guest = self.ask_guest(sent.iter().map(flood::Sent::count).collect())?;
        let sent_at = |&(flow, number): &(u32, u64)| sent.get(flow as usize).map_or(0, |sent| sent.at_ns(number));
        let all = sent.iter().map(flood::Sent::count).sum();
        Ok(Report {
            sent: all,
            arrived: guest.arrived,
            lost: all - guest.arrived,
            lost_sent_at_ns: guest.lost.iter().map(sent_at).collect(),
            duplicated: guest.duplicated,
            reordered: guest.reordered,
            displacement: guest.displacement,
            lasted_ns,
            bulk: self.bulk.take().map(|bulk| bulk.finish(&guest.bulk)).unwrap_or_default(),
        })
    }

    /// Asks the guest what arrived of `sent`, and again while something is missing and more arrives.
    fn ask_guest(&mut self, sent: Vec<u64>) -> io::Result<sink::Counts> {
        let all: u64 = sent.iter().sum();
        let request = Request::LoadEnd { load: self.id, sent };
        let mut arrived = None;
        for _ in 0..LATE {
            let guest = self.ask_after_a_while(&request)?;
            if guest.arrived == all || arrived.replace(guest.arrived) == Some(guest.arrived) {
                return Ok(guest);
            }
        }
        self.ask_after_a_while(&request)
    }

    fn ask_after_a_while(&mut self, request: &Request) -> io::Result<sink::Counts> {
        thread::sleep(DRAIN);
        match self.control.ask(request)? {
            Response::Load(guest) => Ok(guest),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the guest's answer was another one's")),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// The kernel's count of retransmitted segments, with the moment at which each rise became known.
pub(crate) type Rises = Vec<Retransmission>;
