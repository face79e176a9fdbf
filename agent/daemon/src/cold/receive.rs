//! The destination's end of one disk's copying, and who may begin one.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise},
};
use throughline_cutover::{DestinationEvent, Disk, DiskFormat, Failure, MigrationPlan};
use throughline_wire::v1::{
    DiskData, DiskFromDestination, DiskFromSource, DiskSums, disk_data::Piece, disk_from_source::Message,
};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use super::{
    Incoming,
    compare::{self, SUMS, regions},
};
use crate::{disks::is_device, host::Host};

/// Most bytes of data in a piece.
const LARGEST_PIECE: usize = 256 << 10;
/// How soon a source that does not read is told again.
const TELL_AGAIN: Duration = Duration::from_millis(10);
/// Messages that wait on either way.
const QUEUE: usize = 16;
/// What a qcow2 file may take beyond what is in it, bytes: an eighth, and this.
const LEAST_OVERHEAD: u64 = 64 << 20;

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("the disk's file at the destination cannot be read or written: {0}")]
    File(#[from] io::Error),
    #[error("the source's stream broke")]
    Broken,
    #[error("the source sends what is not in the file, or what it has no business to send")]
    Nonsense,
}

/// Longest that the file of a disk may be, bytes. A block device has its length, and is found unfit in the end if that is not the file's.
fn longest(disk: &Disk) -> u64 {
    let size = disk.size.bytes();
    match disk.format {
        DiskFormat::Raw => size,
        DiskFormat::Qcow2 => size + size / 8 + LEAST_OVERHEAD,
    }
}

/// Takes what the source sends of one disk; what it is answered comes out. The source has proved itself.
///
/// # Errors
/// `FAILED_PRECONDITION` for a disk that is not expected, or is being copied already.
pub fn copy(
    host: Arc<Host>,
    plan: Arc<MigrationPlan>,
    incoming: Arc<Incoming>,
    events: mpsc::UnboundedSender<DestinationEvent>,
    from_source: Streaming<DiskFromSource>,
    (disk, length): (String, u64),
) -> Result<mpsc::Receiver<Result<DiskFromDestination, Status>>, Status> {
    let expected = plan.guest.disks_to_bring().find(|it| it.name.as_str() == disk).cloned();
    let expected = expected.filter(|disk| length > 0 && length <= longest(disk));
    let unexpected = || Status::failed_precondition(format!("disk {disk:?} of {length} bytes is not awaited here"));
    let disk = expected.ok_or_else(unexpected)?;
    let file = incoming.take(&disk.name).ok_or_else(unexpected)?;
    let (answer, answers) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        match take(file.clone(), length, from_source, &incoming, &answer).await {
            Ok(()) => is_in(&host, &plan, &disk, file, &incoming, &events).await,
            Err(error) => {
                warn!(migration = plan.id, disk = %disk.name, %error, "a disk did not come to its end");
                if let ReceiveError::File(error) = &error {
                    let message = format!("disk {} cannot be written at the destination: {error}", disk.name);
                    let _ = events.send(DestinationEvent::MemoryFailed(Failure::new("DISK_COPY", message)));
                }
                incoming.put_back(disk.name, file);
                let _ = answer.try_send(Err(Status::aborted(error.to_string())));
            }
        }
    });
    Ok(answers)
}

async fn is_in(
    host: &Host,
    plan: &MigrationPlan,
    disk: &Disk,
    file: Arc<File>,
    incoming: &Incoming,
    events: &mpsc::UnboundedSender<DestinationEvent>,
) {
    let checked = match plan.id.parse() {
        Ok(copy) => {
            let (guest, disk) = (plan.guest.name.clone(), disk.clone());
            host.with_disks(move |store| store.check_received(&guest, &disk, &copy, &file)).await
        }
        Err(error) => Err(error.into()),
    };
    let all = incoming.is_in();
    match checked {
        Ok(()) => info!(migration = plan.id, disk = %disk.name, "is here, byte for byte"),
        Err(failure) => return drop(events.send(DestinationEvent::MemoryFailed(failure))),
    }
    if all {
        let _ = events.send(DestinationEvent::MemoryIn);
    }
}

/// Turns a stream into a channel that a thread can read, and reads it there.
async fn take(
    file: Arc<File>,
    length: u64,
    mut from_source: Streaming<DiskFromSource>,
    incoming: &Arc<Incoming>,
    answer: &mpsc::Sender<Result<DiskFromDestination, Status>>,
) -> Result<(), ReceiveError> {
    let (pass_on, messages) = mpsc::channel(QUEUE);
    let closed = incoming.clone();
    let listening = tokio::spawn(async move {
        let pass = async {
            while let Some(Ok(DiskFromSource { message: Some(message) })) = from_source.next().await {
                if pass_on.send(message).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = pass => {}
            () = closed.closes() => {}
        }
    });
    let to = answer.clone();
    let done = tokio::task::spawn_blocking(move || Receiving { file: &file, length, to, from: messages }.run()).await;
    listening.abort();
    done.unwrap_or_else(|panicked| Err(io::Error::other(panicked).into()))
}

/// A disk that comes.
#[derive(Debug)]
pub(super) struct Receiving<'a> {
    pub(super) file: &'a File,
    pub(super) length: u64,
    pub(super) to: mpsc::Sender<Result<DiskFromDestination, Status>>,
    pub(super) from: mpsc::Receiver<Message>,
}

impl Receiving<'_> {
    /// Compares and writes until the source says that nothing differs. What is compared comes from the disk itself.
    pub(super) fn run(mut self) -> Result<(), ReceiveError> {
        if !is_device(self.file)? {
            self.file.set_len(self.length)?;
        }
        loop {
            self.file.sync_all()?;
            posix_fadvise(self.file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)?;
            self.tell_sums()?;
            if self.take_data()? {
                return Ok(());
            }
        }
    }

    fn tell_sums(&self) -> Result<(), ReceiveError> {
        let (regions, mut room, mut first) = (regions(self.length), Vec::new(), 0);
        loop {
            let end = regions.min(first + SUMS as u64);
            let mut sums = Vec::with_capacity(SUMS * compare::SUM);
            for region in first..end {
                if self.is_over() {
                    return Err(ReceiveError::Broken);
                }
                sums.extend(compare::sum(self.file, region, self.length, &mut room)?);
            }
            let last = end == regions;
            let sums = DiskFromDestination { sums: Some(DiskSums { first, sums, last }) };
            self.tell(sums)?;
            if last {
                return Ok(());
            }
            first = end;
        }
    }

    /// Nobody sends or listens any more.
    fn is_over(&self) -> bool {
        self.to.is_closed() || (self.from.is_closed() && self.from.is_empty())
    }

    /// A source that does not read is not waited for when the file is wanted back.
    fn tell(&self, sums: DiskFromDestination) -> Result<(), ReceiveError> {
        let mut sums = Ok(sums);
        while !self.is_over() {
            match self.to.try_send(sums) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(again)) => sums = again,
                Err(TrySendError::Closed(_)) => break,
            }
            std::thread::sleep(TELL_AGAIN);
        }
        Err(ReceiveError::Broken)
    }

    /// True: nothing differs. False: that was all, to be compared again.
    fn take_data(&mut self) -> Result<bool, ReceiveError> {
        let mut came = false;
        loop {
            match self.from.blocking_recv().ok_or(ReceiveError::Broken)? {
                Message::Data(data) => self.write(&data)?,
                Message::Sent(_) => return Ok(false),
                // Only of what was compared.
                Message::Whole(_) if !came => return Ok(true),
                Message::Whole(_) | Message::Begin(_) => return Err(ReceiveError::Nonsense),
            }
            came = true;
        }
    }

    fn write(&self, data: &DiskData) -> Result<(), ReceiveError> {
        if !is_within(data, self.length) {
            return Err(ReceiveError::Nonsense);
        }
        match &data.piece {
            Some(Piece::Data(bytes)) => self.file.write_all_at(bytes, data.offset)?,
            Some(Piece::Zeroes(zeroes)) => punch(self.file, data.offset, *zeroes)?,
            None => {}
        }
        Ok(())
    }
}

/// Whether a piece has something, not too much at once, and none of it beyond the end of a file of that length.
pub fn is_within(data: &DiskData, length: u64) -> bool {
    let bytes = match &data.piece {
        Some(Piece::Data(bytes)) if bytes.len() <= LARGEST_PIECE => bytes.len() as u64,
        Some(Piece::Zeroes(zeroes)) => *zeroes,
        Some(Piece::Data(_)) | None => return false,
    };
    bytes > 0 && data.offset.checked_add(bytes).is_some_and(|end| end <= length)
}

/// Zeroes that take no room.
fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let (offset, length) = (i64::try_from(offset), i64::try_from(length));
    let (offset, length) = (offset.map_err(io::Error::other)?, length.map_err(io::Error::other)?);
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, hole, offset, length) {
        // Not every file system has holes.
        Err(Errno::EOPNOTSUPP) => write_zeroes(file, offset.cast_unsigned(), length.cast_unsigned()),
        result => Ok(result?),
    }
}

fn write_zeroes(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let zeroes = vec![0; LARGEST_PIECE];
    for at in (0..length).step_by(LARGEST_PIECE) {
        let count = (length - at).min(LARGEST_PIECE as u64) as usize;
        file.write_all_at(&zeroes[..count], offset + at)?;
    }
    Ok(())
}
