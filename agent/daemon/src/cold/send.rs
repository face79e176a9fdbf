//! The source's end of one disk's copying. Blocks: for a thread of its own.

use std::{
    fs::File,
    io,
    time::{Duration, Instant},
};

use throughline_wire::v1::{DiskData, DiskSent, DiskSums, DiskWhole, disk_data::Piece, disk_from_source::Message};
use tokio::sync::mpsc;

use super::compare::{self, PIECE, REGION, SUM, Sum, has_data, regions};

/// How often what was sent may read back otherwise before that counts as the destination's fault.
const ROUNDS: u32 = 3;

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// The file.
    #[error("the disk's file here cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Nobody hears, or nobody wants it any more.
    #[error("the stream to the destination broke")]
    Broken,
    /// It says something that it has no business to say.
    #[error("the destination compares otherwise than this version does")]
    Nonsense,
    /// What is written there does not come back.
    #[error(
        "what was written at the destination reads back otherwise, {ROUNDS} times over; its disk is not to be relied on"
    )]
    Differs,
}

/// A disk on its way.
#[derive(Debug)]
pub(super) struct Sending<'a> {
    /// Its file. Nobody writes to it.
    pub(super) file: &'a File,
    /// Bytes of it.
    pub(super) length: u64,
    /// Bytes a second, at most.
    pub(super) bandwidth: u64,
    /// To the destination.
    pub(super) to: mpsc::Sender<Message>,
    /// From it.
    pub(super) from: mpsc::Receiver<DiskSums>,
}

impl Sending<'_> {
    /// Sends what differs until nothing does. `over` hears of every region that has data and is over, bytes of it, once.
    pub(super) fn run(mut self, mut over: impl FnMut(u64)) -> Result<(), SendError> {
        let mut ours: Vec<Option<Sum>> = vec![None; regions(self.length) as usize];
        let mut pace = Pace::new(self.bandwidth);
        for round in 0..=ROUNDS {
            let different = self.compare(&mut ours, |region| {
                if round == 0 {
                    over(region)
                }
            })?;
            if different.is_empty() {
                return self.say(Message::Whole(DiskWhole {}));
            }
            if round == ROUNDS {
                break;
            }
            for region in different {
                self.send_region(region, &mut pace)?;
                if round == 0 {
                    over(self.data_in(region)?);
                }
            }
            self.say(Message::Sent(DiskSent {}))?;
        }
        Err(SendError::Differs)
    }

    /// Regions that differ; `same` hears of the data in each of the others.
    fn compare(&mut self, ours: &mut [Option<Sum>], mut same: impl FnMut(u64)) -> Result<Vec<u64>, SendError> {
        let (mut different, mut room, mut next) = (Vec::new(), Vec::new(), 0);
        loop {
            let DiskSums { first, sums, last } = self.from.blocking_recv().ok_or(SendError::Broken)?;
            if first != next as u64 || sums.len() % SUM != 0 || next + sums.len() / SUM > ours.len() {
                return Err(SendError::Nonsense);
            }
            for theirs in sums.chunks_exact(SUM) {
                // The disk is wanted by somebody else as soon as this is not wanted any more.
                if self.to.is_closed() {
                    return Err(SendError::Broken);
                }
                let region = next as u64;
                let mine = match ours[next] {
                    Some(mine) => mine,
                    None => compare::sum(self.file, region, self.length, &mut room)?,
                };
                ours[next] = Some(mine);
                if mine == *theirs {
                    same(self.data_in(region)?)
                } else {
                    different.push(region)
                }
                next += 1;
            }
            if last {
                return if next == ours.len() { Ok(different) } else { Err(SendError::Nonsense) };
            }
        }
    }

    /// Bytes that a region counts for.
    fn data_in(&self, region: u64) -> Result<u64, SendError> {
        let length = compare::region_length(region, self.length) as u64;
        Ok(if has_data(self.file, region * REGION)? { length } else { 0 })
    }

    fn send_region(&self, region: u64, pace: &mut Pace) -> Result<(), SendError> {
        let mut room = Vec::new();
        compare::read(self.file, region, self.length, &mut room)?;
        for (at, piece) in room.chunks(PIECE).enumerate() {
            let offset = region * REGION + (at * PIECE) as u64;
            let zeroes = piece.iter().all(|byte| *byte == 0);
            let piece = if zeroes {
                Piece::Zeroes(piece.len() as u64)
            } else {
                pace.wait_for(piece.len() as u64);
                Piece::Data(piece.to_vec())
            };
            self.say(Message::Data(DiskData { offset, piece: Some(piece) }))?;
        }
        Ok(())
    }

    fn say(&self, message: Message) -> Result<(), SendError> {
        self.to.blocking_send(message).map_err(|_| SendError::Broken)
    }
}

/// Keeps to a rate.
#[derive(Debug)]
struct Pace {
    /// When what was sent so far has had its time.
    due: Instant,
    rate: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { due: Instant::now(), rate: rate.max(1) }
    }

    fn wait_for(&mut self, bytes: u64) {
        let now = Instant::now();
        std::thread::sleep(self.due.saturating_duration_since(now));
        // What was not used while nothing was sent is not caught up with.
        self.due = self.due.max(now) + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
    }
}
