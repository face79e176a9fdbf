//! A chart: a bitmap of where a raw disk has data, in the only form in which QEMU takes a bitmap from outside: in a qcow2 file. The
//! disk's own content is not in it.
//!
//! QEMU copies what its bitmap says; a raw disk's begins as its chart, so that holes are not copied as zeroes that take room.

use std::{
    fs::File,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use throughline_cutover::{Disk, GuestName};

use super::{
    DiskError, Extent, Store,
    extents::{GRAIN, at_most},
    make::tool_failed,
    tools::Form,
};

/// Name of the bitmap in a chart.
pub const BITMAP: &str = "chart";
/// Most extents in a chart: what a file with more of them is charted by takes seconds.
const MOST: usize = 16_384;
/// Most bytes that are marked by one command: qemu-io takes just under 2 GiB.
const STROKE: u64 = 1 << 30;

impl Store {
    /// Draws where a raw disk has data now: see [`Store::extents`]. A file in memory, open to read only, for QEMU to take
    /// bitmap [`BITMAP`] from; nothing else has a way to it.
    ///
    /// # Errors
    /// [`DiskError::Missing`], [`DiskError::Tool`].
    pub fn chart(&self, guest: &GuestName, disk: &Disk) -> Result<OwnedFd, DiskError> {
        self.draw(guest, disk, &at_most(self.extents(guest, disk)?, MOST))
    }

    /// The same with all of the disk marked.
    ///
    /// # Errors
    /// [`DiskError::Tool`].
    pub fn chart_of_all(&self, guest: &GuestName, disk: &Disk) -> Result<OwnedFd, DiskError> {
        self.draw(guest, disk, &[Extent { start: 0, end: disk.size.bytes() }])
    }

    fn draw(&self, guest: &GuestName, disk: &Disk, extents: &[Extent]) -> Result<OwnedFd, DiskError> {
        let file = Path::new("a file in memory");
        let memory = memfd_create(c"throughline-chart", MFdFlags::MFD_CLOEXEC).map_err(DiskError::io("make", file))?;
        let memory = File::from(memory);
        let failed = |error| tool_failed(guest, disk)(error);
        self.tools.create(&memory, disk.size.bytes(), Form::Chart).map_err(failed)?;
        self.tools.add_bitmap(&memory, BITMAP, GRAIN).map_err(failed)?;
        self.tools.write_zeroes(&memory, &strokes(extents)).map_err(failed)?;
        let read_only = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()));
        read_only.map(OwnedFd::from).map_err(DiskError::io("open", file))
    }
}

/// The same in pieces that one command can mark.
fn strokes(extents: &[Extent]) -> Vec<Extent> {
    let pieces = |extent: &Extent| {
        let Extent { start, end } = *extent;
        (start..end).step_by(STROKE as usize).map(move |at| Extent { start: at, end: end.min(at + STROKE) })
    };
    extents.iter().flat_map(pieces).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strokes_cover_the_same_and_none_is_too_long() {
        let extents = [Extent { start: 0, end: GRAIN }, Extent { start: STROKE, end: 3 * STROKE + GRAIN }];
        let cut = strokes(&extents);
        assert_eq!(cut.len(), 4);
        assert!(cut.iter().all(|it| it.end - it.start <= STROKE));
        assert_eq!(cut.iter().map(|it| it.end - it.start).sum::<u64>(), 2 * STROKE + 2 * GRAIN);
        assert_eq!((cut[1].start, cut[3].end), (STROKE, 3 * STROKE + GRAIN));
    }
}
