//! Empties a port's line: reads frames from the hold and writes them back to it, where `refill` sends them on.
//!
//! One thread a port. A frame is subtracted from the line only after it has been written back, and writing back is
//! synchronous as far as the tap's ring or the carry device, so whatever comes after it comes behind it.
//!
//! What makes this lose nothing and reorder nothing (each was seen to, without):
//!
//! | cause | cure |
//! |---|---|
//! | the tap's ring is full | `room`: no more frames than the ring takes between two looks at it empty |
//! | the burst is more than the underlay takes | `pace`: bytes per second, and a yield after every few frames |
//! | a frame is written back on another CPU than later ones go straight on | `follow`: the thread runs where `steer` diverts |
//! | direct frames overtake those in the departed guest's own rings | the line is sealed until those are drained |
//! | a write fails for want of memory | the same frame is tried again |

mod device;
mod follow;
mod pace;
mod room;
mod thread;

use std::{
    io::{self, Write as _},
    num::NonZeroU64,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use crate::{Direction, LANES, Mode, PortHandle};
use device::Device;
use room::Room;
use thread::{Shared, Worker};

/// Every lane of a line.
const ALL_LANES: u32 = (1 << LANES) - 1;

/// Where a port's line goes.
#[derive(Debug)]
pub enum Exit {
    /// Into the port's own tap: abort at the source, and the opening of the gate at the destination.
    Tap {
        /// A `dup` of each queue of the tap. Only looked at, to see when their rings are empty; never read: they are the
        /// guest's.
        tap: Vec<OwnedFd>,
    },
    /// Through the carry tunnel, after the guest.
    Carry {
        /// A `dup` of each queue of the tap whose guest has left; none: nothing is drained. Frames that were in its rings when
        /// the guest paused go to the front of the line, ring by ring: frames of one flow are in one of them. Never give the
        /// tap of a guest that may resume here: what is read from it is not put back.
        drain: Vec<OwnedFd>,
    },
}

/// How fast.
#[derive(Clone, Copy, Debug, Default)]
pub struct PumpOptions {
    /// Most bytes per second; `None`: as fast as one thread can. Set it below what the underlay takes without dropping.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// What a pump has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PumpCounts {
    /// Frames that had been in the tap's own ring, written back.
    pub from_tap: u64,
    /// Frames that had waited in the hold, written back.
    pub from_hold: u64,
    /// Writes that had to be repeated.
    pub retried: u64,
    /// Frames the kernel would not take back. Anything but 0 breaks the promise.
    pub lost: u64,
    /// Frames that an earlier process had taken out of the hold's ring, or counted, and took with it when it died.
    pub unaccounted: u64,
}

/// Why a pump could not be started. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The descriptor is not that of a tap.
    #[error("the {role}'s descriptor is not that of a tap; the line cannot be released")]
    NotATap {
        /// "hold" or "tap".
        role: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Frames of one cannot be written to the other.
    #[error(
        "the tap's vnet header has {tap} bytes, the hold's {hold}: its frames cannot join the line; create both with \
         IFF_VNET_HDR"
    )]
    HeaderLength {
        /// The tap's, 0 if it has none.
        tap: u32,
        /// The hold's, 0 if it has none.
        hold: u32,
    },
    /// The thread could not be started.
    #[error("the thread that empties the line could not be started")]
    Thread(#[source] io::Error),
}

/// A running pump. Dropping it stops it.
#[derive(Debug)]
pub struct Pump {
    shared: Arc<Shared>,
    port: PortHandle,
    /// Its end wakes the thread.
    wake: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Releases `port`'s line to `exit`: sets direction and mode in the order that seals, then empties the line until
    /// stopped. `hold` are the descriptors of the hold's queues, the lane of all first; this pump alone reads them.
    ///
    /// # Errors
    /// [`PumpError`]; the port is as it was.
    pub fn release(port: &PortHandle, hold: Vec<OwnedFd>, exit: Exit, options: PumpOptions) -> Result<Self, PumpError> {
        let (direction, mode) = match exit {
            Exit::Tap { .. } => (Direction::Tap, Mode::Release),
            Exit::Carry { .. } => (Direction::Carry, Mode::Carry),
        };
        Self::start(port, hold, exit, options, ALL_LANES, |port| {
            port.set_direction(direction);
            port.set_mode(mode);
        })
    }

    /// Stands at `port`'s gate: empties no lane into the tap before it is opened. The mode stays as it is.
    ///
    /// # Errors
    /// As [`Pump::release`].
    pub fn at_gate(port: &PortHandle, hold: Vec<OwnedFd>, tap: Vec<OwnedFd>) -> Result<Self, PumpError> {
        Self::start(port, hold, Exit::Tap { tap }, PumpOptions::default(), 0, |port| {
            port.set_direction(Direction::Tap);
        })
    }

    /// Opens the gate for some lanes, one bit each: what waits in them goes into the tap, later frames follow, then go
    /// straight.
    pub fn open_lanes(&self, lanes: u32) {
        self.port.open_lanes(lanes);
        self.shared.serve(lanes);
        self.wake();
    }

    /// Opens the gate for all that is left.
    pub fn open_all(&self) {
        self.port.set_mode(Mode::Release);
        self.shared.serve(ALL_LANES);
        self.wake();
    }

    fn start(
        port: &PortHandle,
        hold: Vec<OwnedFd>,
        exit: Exit,
        options: PumpOptions,
        served: u32,
        turn: impl FnOnce(&PortHandle),
    ) -> Result<Self, PumpError> {
        let mut queues = devices(hold, "hold")?;
        let (room, drain) = match exit {
            Exit::Tap { tap } => (Some(Room::new(devices(tap, "tap")?, queues.len())?), Vec::new()),
            Exit::Carry { drain } => (None, devices(drain, "tap")?),
        };
        // All queues of a tap have the same.
        if let Some(tap) = drain.first().map(Device::header_len) {
            follow_header(&mut queues, tap)?;
        }
        for device in queues.iter().chain(&drain) {
            device.set_nonblocking().map_err(PumpError::Thread)?;
        }
        let (wake, woken) = UnixStream::pair().map_err(PumpError::Thread)?;
        woken.set_nonblocking(true).map_err(PumpError::Thread)?;

        let sealed = !drain.is_empty();
        let shared = Arc::new(Shared::new(sealed, served));
        let worker = Worker::new(port.clone(), queues, drain, room, options, Arc::clone(&shared), woken);
        let (start, started) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("pump-{}", port.tap_ifindex()))
            .spawn(move || {
                if started.recv().is_ok() {
                    worker.run();
                }
            })
            .map_err(PumpError::Thread)?;
        // Nothing can fail from here on. The seal first: with frames in the tap's ring the line is not empty, though none
        // of them was counted. Direction before mode and before the thread: what is written back must go the new way.
        if sealed {
            port.seal();
        }
        turn(port);
        let _ = start.send(());
        Ok(Self { shared, port: port.clone(), wake: Some(wake), thread: Some(thread) })
    }

    fn wake(&self) {
        // A full pipe has woken it already.
        let _ = self.wake.as_ref().map(|mut wake| wake.write(&[0]));
    }

    /// What it has done so far.
    pub fn counts(&self) -> PumpCounts {
        self.shared.counts()
    }

    /// Whether at this moment nothing is in line: the tap's rings are drained, and every frame diverted has been written back.
    pub fn is_line_empty(&self) -> bool {
        self.shared.is_drained() && self.port.line() <= 0
    }

    /// Stops after the frame in hand and waits for the thread; what it did. Frames that still wait stay in the hold, in
    /// order, for the next pump.
    pub fn stop(mut self) -> PumpCounts {
        self.join();
        self.shared.counts()
    }

    fn join(&mut self) {
        self.shared.stop();
        drop(self.wake.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(tap = self.port.tap_ifindex(), "the thread that empties the line panicked");
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.join();
    }
}

fn devices(queues: Vec<OwnedFd>, role: &'static str) -> Result<Vec<Device>, PumpError> {
    queues.into_iter().map(|queue| Device::new(queue, role)).collect()
}

/// The guest's driver decides the length of the tap's vnet header: 10 bytes before it is loaded, 12 after. Without a header
/// on tap or hold, checksums and segments would be lost between the two.
fn follow_header(queues: &mut [Device], tap: u32) -> Result<(), PumpError> {
    for hold in queues.iter_mut().filter(|hold| hold.header_len() != tap) {
        if tap == 0 || hold.header_len() == 0 || hold.set_header_len(tap).is_err() {
            return Err(PumpError::HeaderLength { tap, hold: hold.header_len() });
        }
    }
    Ok(())
}
