//! The end inside the guest: answers, sends and keeps its memory busy for one peer at a time.

use std::io::{self, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::arrivals::{Arrival, Log};
use crate::control::{self, GuestReport, Ports, Request, Response};
use crate::load::{bulk, sink::Loads};
use crate::{disk, echo, memory, oneway, stream};

/// How the guest end is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen on.
    pub address: Ipv4Addr,
    /// Ports to listen on.
    pub ports: Ports,
    /// Memory to watch, bytes.
    pub memory: usize,
    /// Bytes of it rewritten a second.
    pub memory_rate: usize,
    /// Disks to write to.
    pub disks: Vec<disk::writer::Config>,
}

/// Serves peers, one after the other, for as long as the process lives.
pub fn run(config: &Config) -> io::Result<()> {
    let memory = memory::start(config.memory, config.memory_rate);
    let disks: Arc<[_]> = config.disks.iter().cloned().map(disk::writer::start).collect();
    let current = Arc::new(Current::default());

    let echoes = echo::socket(SocketAddrV4::new(config.address, config.ports.echo))?;
    let session = current.clone();
    thread::spawn(move || {
        if let Err(error) = stay_on_this_processor() {
            eprintln!("echoes may be sent from several processors, in any order: {error}");
        }
        let ended =
            echo::respond(&echoes, |packet, at_ns| session.get().note_echo(packet.session, packet.sequence, at_ns));
        eprintln!("packets are no longer echoed: {ended:?}");
    });

    let streams = TcpListener::bind(SocketAddrV4::new(config.address, config.ports.stream))?;
    let session = current.clone();
    thread::spawn(move || accept_streams(&streams, &session));

    let loads = Arc::new(Loads::default());
    let sink = echo::socket(SocketAddrV4::new(config.address, config.ports.sink))?;
    let counting = loads.clone();
    thread::spawn(move || {
        let ended = counting.count(&sink);
        eprintln!("the packets of loads are no longer counted: {ended:?}");
    });
    let bulks = TcpListener::bind(SocketAddrV4::new(config.address, config.ports.bulk))?;
    let loading = loads.clone();
    thread::spawn(move || bulk::accept(&bulks, &loading));

    let control = TcpListener::bind(SocketAddrV4::new(config.address, config.ports.control))?;
    loop {
        // One that was gone before it was accepted is the network's doing, and no reason to end.
        let Ok((connection, peer)) = control.accept().inspect_err(|error| eprintln!("cannot accept a peer: {error}"))
        else {
            continue;
        };
        let (current, memory, disks, loads) = (current.clone(), memory.clone(), disks.clone(), loads.clone());
        thread::spawn(move || {
            // A peer that went away is no error of the guest's; its session ends when the next one begins.
            let conversation =
                Conversation { peer: peer.ip(), current: &current, memory: &memory, disks: &disks, loads: &loads };
            let _ = conversation.hold(connection);
        });
    }
}

/// The kernel gives each datagram of a socket that is not connected to the card's queue of the processor it is sent from, and
/// knows no order between queues: a thread that wanders would reorder by itself what it sends.
fn stay_on_this_processor() -> nix::Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &here)
}

/// The session now served; the first one is nobody's.
#[derive(Debug, Default)]
struct Current(Mutex<Arc<Session>>);

impl Current {
    fn get(&self) -> Arc<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, session: Arc<Session>) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        current.stop.store(true, Ordering::SeqCst);
        *current = session;
    }
}

#[derive(Debug, Default)]
struct Session {
    id: u32,
    stream_rate: u32,
    arrivals: Log,
    oneway_next: Arc<AtomicU64>,
    stream: stream::Counters,
    stop: Arc<AtomicBool>,
}

impl Session {
    fn note_echo(&self, session: u32, sequence: u64, at_ns: u64) -> bool {
        let ours = session == self.id;
        if ours {
            self.arrivals.push(Arrival { sequence, at_ns });
        }
        ours
    }

    fn report(&self, from: u64, to: u64, memory: memory::Status, disks: Vec<disk::Status>) -> GuestReport {
        GuestReport {
            echo: self.arrivals.summarise(from..to),
            memory,
            disks,
            stream_received: self.stream.received.load(Ordering::SeqCst),
            stream_corrupted: self.stream.corrupted.load(Ordering::SeqCst),
            stream_resets: self.stream.resets.load(Ordering::SeqCst),
            stream_retransmits: self.stream.retransmits.load(Ordering::SeqCst),
        }
    }
}

fn accept_streams(listener: &TcpListener, current: &Current) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        let session = current.get();
        thread::spawn(move || {
            let ended = stream::exchange(&mut connection, session.stream_rate, &session.stream, &session.stop, |_| {});
            if ended.is_err() && !session.stop.load(Ordering::SeqCst) {
                session.stream.resets.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

struct Conversation<'a> {
    peer: IpAddr,
    current: &'a Current,
    memory: &'a Mutex<memory::Region>,
    disks: &'a [Arc<disk::writer::Progress>],
    loads: &'a Loads,
}

impl Conversation<'_> {
    fn hold(&self, mut connection: TcpStream) -> io::Result<()> {
        connection.set_nodelay(true)?;
        let mut requests = BufReader::new(connection.try_clone()?);
        while let Some(request) = control::read(&mut requests)? {
            let response = self.answer(request).unwrap_or_else(|error| Response::Refused(error.to_string()));
            control::write(&mut connection, &response)?;
        }
        Ok(())
    }

    fn answer(&self, request: Request) -> io::Result<Response> {
        let session = self.current.get();
        match request {
            Request::Begin { session: id, .. } if id == session.id => Ok(Response::Begun),
            Request::Begin { session, oneway_port, oneway_pps, stream_rate } => {
                self.begin(Session { id: session, stream_rate, ..Session::default() }, oneway_port, oneway_pps)
            }
            Request::Mark { session: id } | Request::Report { session: id, .. } if id != session.id => {
                Ok(Response::Refused(format!(
                    "session {id} is not the one being served, {}: this end was started anew, or serves another peer",
                    session.id
                )))
            }
            Request::Mark { .. } => Ok(Response::Mark {
                oneway: session.oneway_next.load(Ordering::SeqCst),
                stream_sent: session.stream.sent.load(Ordering::SeqCst),
            }),
            Request::Report { from, to, .. } if from <= to => {
                let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner).verify();
                Ok(Response::Report(session.report(from, to, memory, self.disks())))
            }
            Request::Report { from, to, .. } => Ok(Response::Refused(format!("from {from} is after to {to}"))),
            Request::Disks => Ok(Response::Disks(self.disks())),
            Request::LoadBegin { load } => {
                self.loads.begin(load);
                Ok(Response::LoadBegun)
            }
            Request::LoadEnd { load, sent } => Ok(match self.loads.end(load, &sent) {
                Some(counts) => Response::Load(counts),
                None => Response::Refused(format!("there is no load {load}: this end was started anew")),
            }),
        }
    }

    fn disks(&self) -> Vec<disk::Status> {
        self.disks.iter().map(|disk| disk.status()).collect()
    }

    fn begin(&self, session: Session, port: u16, pps: u32) -> io::Result<Response> {
        let session = Arc::new(session);
        oneway::start_sender(
            SocketAddr::new(self.peer, port),
            session.id,
            pps,
            session.oneway_next.clone(),
            session.stream.retransmits.clone(),
            session.stop.clone(),
        )?;
        self.current.replace(session);
        Ok(Response::Begun)
    }
}
