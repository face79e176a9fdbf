//! The thread that empties the line.

use std::{
    io::Read as _,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use super::{
    PumpCounts, PumpOptions,
    device::{Device, wait},
    follow::Follow,
    pace::{Pace, on_the_wire},
    room::Room,
};
use crate::PortHandle;

/// The longest frame there is: 64 KiB of GSO payload, its headers, the vnet header; and as much again.
const LONGEST: usize = 128 * 1024;
/// Frames between two yields, so that what was written is received before the backlog of the CPU (1000) could be full.
const BATCH: u32 = 64;
/// Between two attempts at what does not work yet.
const RETRY: Duration = Duration::from_micros(50);
/// How long a frame in hand is still tried after the pump was told to stop.
const LAST_ATTEMPTS: Duration = Duration::from_millis(100);
/// How long an adopted port's ring must be empty, and nothing diverted, before what its line still counts is known to be gone.
const QUIET: Duration = Duration::from_millis(2);

/// What thread and handle share.
#[derive(Debug)]
pub(super) struct Shared {
    stop: AtomicBool,
    /// Lanes to be emptied, one bit each.
    served: AtomicU32,
    /// Nothing is left in the tap's own rings.
    drained: AtomicBool,
    from_tap: AtomicU64,
    from_hold: AtomicU64,
    retried: AtomicU64,
    lost: AtomicU64,
    unaccounted: AtomicU64,
}

impl Shared {
    pub(super) fn new(drains: bool, served: u32) -> Self {
        Self {
            stop: AtomicBool::new(false),
            served: AtomicU32::new(served),
            drained: AtomicBool::new(!drains),
            from_tap: AtomicU64::new(0),
            from_hold: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            unaccounted: AtomicU64::new(0),
        }
    }

    pub(super) fn counts(&self) -> PumpCounts {
        PumpCounts {
            from_tap: self.from_tap.load(Relaxed),
            from_hold: self.from_hold.load(Relaxed),
            retried: self.retried.load(Relaxed),
            lost: self.lost.load(Relaxed),
            unaccounted: self.unaccounted.load(Relaxed),
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        self.drained.load(SeqCst)
    }

    pub(super) fn serve(&self, lanes: u32) {
        self.served.fetch_or(lanes, SeqCst);
    }

    fn serves(&self, lane: u32) -> bool {
        self.served.load(SeqCst) & (1 << lane) != 0
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, SeqCst);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(SeqCst)
    }
}

pub(super) struct Worker {
    port: PortHandle,
    /// The hold's queues, lane by lane.
    queues: Vec<Device>,
    /// The departed guest's, queue by queue.
    drain: Vec<Device>,
    room: Option<Room>,
    pace: Option<Pace>,
    follow: Follow,
    shared: Arc<Shared>,
    woken: UnixStream,
    /// Of an adopted port, until it has been found out what its line still counts.
    recount: bool,
    since_yield: u32,
}

impl Worker {
    pub(super) fn new(
        port: PortHandle,
        queues: Vec<Device>,
        drain: Vec<Device>,
        room: Option<Room>,
        options: PumpOptions,
        shared: Arc<Shared>,
        woken: UnixStream,
    ) -> Self {
        let pace = options.bytes_per_second.map(|rate| Pace::new(rate, Instant::now()));
        let recount = port.is_adopted();
        Self { port, queues, drain, room, pace, follow: Follow::default(), shared, woken, recount, since_yield: 0 }
    }

    pub(super) fn run(mut self) {
        let mut buffer = vec![0; LONGEST];
        self.follow.follow(&self.port);
        self.drain_tap(&mut buffer);
        while !self.shared.is_stopped() {
            let mut idle = true;
            for lane in 0..self.queues.len() as u32 {
                if self.shared.serves(lane) {
                    idle &= !self.empty(lane, &mut buffer);
                }
            }
            if idle {
                self.idle();
            }
        }
    }

    /// Frames of one lane, up to a few at a time: another lane may be waiting. False if there was none.
    fn empty(&mut self, lane: u32, buffer: &mut [u8]) -> bool {
        for frames in 0..BATCH {
            if self.shared.is_stopped() {
                return true;
            }
            // Before reading: in the hold's ring a frame can wait for ever, in hand it cannot.
            if !self.has_room() {
                thread::sleep(RETRY);
                return true;
            }
            let queue = &self.queues[lane as usize];
            match queue.read(buffer) {
                Ok(Some(length)) => {
                    let bytes = (length as u32).saturating_sub(queue.header_len());
                    if let Some(room) = &mut self.room {
                        room.charge(&buffer[..length], queue.header_len());
                    }
                    if self.write_back(&buffer[..length]) {
                        self.shared.from_hold.fetch_add(1, Relaxed);
                    }
                    // After the write, and for a lost frame too: a line that counts what is no more never opens.
                    self.port.subtract_line(lane, bytes);
                }
                Ok(None) => {
                    if let Some(room) = &mut self.room {
                        room.put_back();
                    }
                    return frames > 0;
                }
                Err(error) => {
                    tracing::warn!(%error, tap = self.port.tap_ifindex(), "the hold cannot be read; trying again");
                    thread::sleep(RETRY);
                    return true;
                }
            }
        }
        true
    }

    /// What is in the departed guest's rings, to the front of the line. These frames were never counted; the seal stands for
    /// them all.
    fn drain_tap(&mut self, buffer: &mut [u8]) {
        let taps = std::mem::take(&mut self.drain);
        if !taps.is_empty() && taps.iter().all(|tap| self.drain_ring(tap, buffer)) {
            self.port.unseal();
            self.shared.drained.store(true, SeqCst);
        }
        // Stopped before the end: the line stays sealed, for the pump that goes on.
    }

    /// What is in one of them; false if stopped before the end.
    fn drain_ring(&mut self, tap: &Device, buffer: &mut [u8]) -> bool {
        while !self.shared.is_stopped() {
            match tap.read(buffer) {
                Ok(Some(length)) => {
                    if self.write_back(&buffer[..length]) {
                        self.shared.from_tap.fetch_add(1, Relaxed);
                    }
                }
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!(%error, tap = self.port.tap_ifindex(), "the tap cannot be read; trying again");
                    thread::sleep(RETRY);
                }
            }
        }
        false
    }

    /// Nothing waits in the lanes that are served.
    fn idle(&mut self) {
        let ahead: i64 = self.served().map(|(lane, _)| self.port.lane(lane)).sum();
        if self.recount {
            self.recount();
        } else if ahead > 0 {
            // Counted but not in the ring yet: it will be, within the time a program takes.
            thread::yield_now();
        } else {
            if let Some(room) = &mut self.room {
                room.forget();
            }
            wait(self.served().map(|(_, queue)| queue), self.woken.as_fd());
            self.hear();
        }
        self.follow.follow(&self.port);
    }

    /// The lanes to be emptied, with their queues.
    fn served(&self) -> impl Iterator<Item = (u32, &Device)> {
        (0..).zip(&self.queues).filter(|(lane, _)| self.shared.serves(*lane))
    }

    /// Takes what woke the thread; what it means is in `shared`.
    fn hear(&mut self) {
        let mut words = [0; 64];
        while matches!(self.woken.read(&mut words), Ok(1..)) {}
    }

    /// A process that died may have counted what it then took with it. Once nothing waits and nothing moves, what the line
    /// still counts is that. Only of a port whose every lane is served: at a gate frames wait that nobody reads yet.
    fn recount(&mut self) {
        if self.served().count() < self.queues.len() {
            self.recount = false;
            return;
        }
        let before = self.port.counters();
        thread::sleep(QUIET);
        let now = self.port.counters();
        let waiting = self.queues.iter().any(Device::has_frames);
        if waiting || (before.held, before.lanes) != (now.held, now.lanes) {
            return;
        }
        self.recount = false;
        if let Ok(frames @ 1..) = u64::try_from(before.line) {
            self.port.subtract_gone(&before);
            self.shared.unaccounted.fetch_add(frames, Relaxed);
            tracing::warn!(tap = self.port.tap_ifindex(), frames, "the line counted frames that are gone");
        }
    }

    /// One frame to `refill`, however often it takes; false if it is lost.
    fn write_back(&mut self, frame: &[u8]) -> bool {
        self.keep_pace(frame.len());
        let mut stopped_at = None;
        loop {
            // Whichever queue it is written to, the frame enters by the one device.
            match self.queues[0].write(frame) {
                Ok(()) => {
                    self.breathe();
                    return true;
                }
                Err(Errno::EINTR) => {}
                // No memory now, or the hold is down: neither is the frame's fault.
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EIO) if self.may_retry(&mut stopped_at) => {
                    self.shared.retried.fetch_add(1, Relaxed);
                    thread::sleep(RETRY);
                }
                Err(errno) => {
                    tracing::error!(%errno, tap = self.port.tap_ifindex(), bytes = frame.len(), "a held frame is lost");
                    self.shared.lost.fetch_add(1, Relaxed);
                    return false;
                }
            }
        }
    }

    /// Whether what is written next has a place in the tap's ring.
    fn has_room(&mut self) -> bool {
        self.room.as_mut().is_none_or(Room::take)
    }

    fn keep_pace(&mut self, bytes: usize) {
        if let Some(pace) = &mut self.pace {
            let delay = pace.delay(on_the_wire(bytes), Instant::now());
            if !delay.is_zero() {
                thread::sleep(delay);
            }
        }
    }

    /// Whether there is still time for the frame in hand.
    fn may_retry(&self, stopped_at: &mut Option<Instant>) -> bool {
        if !self.shared.is_stopped() {
            return true;
        }
        stopped_at.get_or_insert_with(Instant::now).elapsed() < LAST_ATTEMPTS
    }

    /// Lets the receiving side of this CPU run, and follows the port to another.
    fn breathe(&mut self) {
        self.since_yield += 1;
        if self.since_yield >= BATCH {
            self.since_yield = 0;
            self.follow.follow(&self.port);
            thread::yield_now();
        }
    }
}
