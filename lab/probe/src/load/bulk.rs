//! TCP as fast as it goes: one connection each way, numbered chunks, with an eye on the kernel's retransmissions.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::Rises;
use super::sink::Loads;
use crate::clock::realtime_ns;
use crate::peer::{End, Retransmission};
use crate::stream::{CONGESTION_CONTROL, SAMPLE, total_retransmits};

/// Bytes of a chunk: its number, what its sender has retransmitted so far, then zeroes.
const CHUNK: usize = 16 << 10;
const HEADER: usize = 12;

/// How long an end may take to send what it has begun when the load ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Bulk, as both ends saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Bytes the guest received.
    pub to_guest: u64,
    /// Bytes the peer received.
    pub from_guest: u64,
    /// Chunks that were not the ones expected, both ends.
    pub corrupted: u64,
    /// Connections that broke, both ends.
    pub resets: u64,
    /// Retransmissions of both ends, in the order in which they became known.
    pub retransmissions: Vec<Retransmission>,
}

/// Bulk, as the guest saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCounts {
    /// Bytes received.
    pub received: u64,
    /// Chunks that were not the ones expected.
    pub corrupted: u64,
    /// Connections that broke.
    pub resets: u64,
}

/// What one end counts.
#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    corrupted: AtomicU64,
    resets: AtomicU64,
    open: AtomicU64,
}

impl Counters {
    /// Serves one connection to its end.
    fn serve(&self, ended: io::Result<()>) {
        if let Err(error) = ended {
            eprintln!("a bulk connection broke: {error}");
            self.resets.fetch_add(1, Ordering::SeqCst);
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn wait_until_closed(&self) {
        let deadline = Instant::now() + LAST_WORDS;
        while self.open.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The guest's end of one load.
#[derive(Debug, Default)]
pub(super) struct Guest {
    counters: Counters,
    stop: AtomicBool,
}

impl Guest {
    /// Ends it, and waits for what is still under way.
    pub(super) fn finish(&self) -> GuestCounts {
        self.stop.store(true, Ordering::SeqCst);
        self.counters.wait_until_closed();
        GuestCounts {
            received: self.counters.received.load(Ordering::SeqCst),
            corrupted: self.counters.corrupted.load(Ordering::SeqCst),
            resets: self.counters.resets.load(Ordering::SeqCst),
        }
    }
}

/// Serves bulk connections of all loads until the process ends.
pub fn accept(listener: &TcpListener, loads: &Arc<Loads>) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        let loads = loads.clone();
        thread::spawn(move || {
            let mut hello = [0; 5];
            let Ok(()) = connection.read_exact(&mut hello) else { return };
            let [a, b, c, d, way] = hello;
            let Some(guest) = loads.bulk(u32::from_be_bytes([a, b, c, d])) else { return };
            guest.counters.open.fetch_add(1, Ordering::SeqCst);
            let ended = match way {
                b'<' => send(&mut connection, &guest.stop, |_| {}),
                _ => receive(&mut connection, &guest.counters, |_| {}),
            };
            guest.counters.serve(ended);
        });
    }
}

/// The peer's end of one load.
#[derive(Debug)]
pub struct Peer {
    counters: Arc<Counters>,
    rises: Arc<Mutex<Rises>>,
    threads: Vec<JoinHandle<()>>,
}

impl Peer {
    /// Connects both ways and sends, until `stop`, and receives, until the guest ends.
    pub(super) fn start(guest: SocketAddrV4, load: u32, stop: &Arc<AtomicBool>) -> io::Result<Self> {
        let mut peer = Self { counters: Arc::default(), rises: Arc::default(), threads: Vec::new() };
        for way in [b'>', b'<'] {
            let mut connection = TcpStream::connect_timeout(&guest.into(), Duration::from_secs(5))?;
            let [a, b, c, d] = load.to_be_bytes();
            connection.write_all(&[a, b, c, d, way])?;
            let (counters, rises, stop) = (peer.counters.clone(), peer.rises.clone(), stop.clone());
            counters.open.fetch_add(1, Ordering::SeqCst);
            peer.threads.push(thread::spawn(move || {
                let note = |end, segments| {
                    let rise = Retransmission { at_ns: realtime_ns(), end, segments };
                    rises.lock().unwrap_or_else(PoisonError::into_inner).push(rise);
                };
                let ended = match way {
                    b'<' => receive(&mut connection, &counters, |segments| note(End::Guest, segments)),
                    _ => send(&mut connection, &stop, |segments| note(End::Peer, segments)),
                };
                counters.serve(ended);
            }));
        }
        Ok(peer)
    }

    /// Waits for the end of both ways, once the guest has been told.
    pub(super) fn finish(self, guest: &GuestCounts) -> Report {
        self.counters.wait_until_closed();
        // One that is still open then is as good as broken.
        let stuck = self.counters.open.load(Ordering::SeqCst);
        Report {
            to_guest: guest.received,
            from_guest: self.counters.received.load(Ordering::SeqCst),
            corrupted: guest.corrupted + self.counters.corrupted.load(Ordering::SeqCst),
            resets: guest.resets + self.counters.resets.load(Ordering::SeqCst) + stuck,
            retransmissions: self.rises.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

fn send(connection: &mut TcpStream, stop: &AtomicBool, mut retransmitted: impl FnMut(u32)) -> io::Result<()> {
    setsockopt(connection, sockopt::TcpCongestion, &CONGESTION_CONTROL.into())?;
    connection.set_write_timeout(Some(SAMPLE))?;
    let (mut chunk, mut known) = (vec![0; CHUNK], 0);
    let mut look = |connection: &TcpStream| {
        let total = total_retransmits(connection)?;
        if total > known {
            retransmitted(total - known);
            known = total;
        }
        Ok::<_, io::Error>(total)
    };
    for number in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let total = look(connection)?;
        chunk[..8].copy_from_slice(&number.to_be_bytes());
        chunk[8..HEADER].copy_from_slice(&total.to_be_bytes());
        let (mut rest, mut deadline) = (&chunk[..], None);
        while !rest.is_empty() {
            match connection.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => drop(look(connection)?),
                Err(error) => return Err(error),
            }
            if stop.load(Ordering::SeqCst) {
                let last = *deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                if Instant::now() > last {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
    look(connection)?;
    connection.shutdown(Shutdown::Write)?;
    // The other end closes when it has everything; what is retransmitted until then is still told.
    connection.set_read_timeout(Some(SAMPLE))?;
    let deadline = Instant::now() + LAST_WORDS;
    while Instant::now() < deadline {
        look(connection)?;
        match connection.read(&mut [0; 16]) {
            Ok(0) => break,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn receive(connection: &mut TcpStream, counters: &Counters, mut retransmitted: impl FnMut(u32)) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut known = 0;
    for number in 0_u64.. {
        let mut filled = 0;
        while filled < CHUNK {
            match connection.read(&mut chunk[filled..])? {
                0 if filled == 0 => return Ok(()),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => filled += length,
            }
        }
        counters.received.fetch_add(CHUNK as u64, Ordering::SeqCst);
        let total = u32::from_be_bytes([chunk[8], chunk[9], chunk[10], chunk[11]]);
        if chunk[..8] != number.to_be_bytes() || total < known {
            counters.corrupted.fetch_add(1, Ordering::SeqCst);
        } else if total > known {
            retransmitted(total - known);
            known = total;
        }
    }
    Ok(())
}
