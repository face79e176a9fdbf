//! Where a raw disk has data. The rest is holes, which read as zeroes and need not be copied.

use std::{fs::File, io, path::Path};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use throughline_cutover::{Disk, GuestName};

use super::{DiskError, Store};

/// What a chart has one bit for, bytes: also what the copy's own bitmap has.
pub(super) const GRAIN: u64 = 64 << 10;

/// A range of a disk that may have data, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub start: u64,
    /// Where it has ended.
    pub end: u64,
}

impl Store {
    /// Where a raw disk of a guest has data now, in whole grains of 64 KiB, in order; neighbours are one. Its QEMU may run: what
    /// the guest writes meanwhile may be in it or not.
    ///
    /// # Errors
    /// [`DiskError::Missing`], or the system's.
    pub fn extents(&self, guest: &GuestName, disk: &Disk) -> Result<Vec<Extent>, DiskError> {
        let path = self.kept_path(guest, disk);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DiskError::Missing { guest: guest.clone(), disk: disk.name.clone() });
            }
            result => result.map_err(DiskError::io("open", &path))?,
        };
        extents(&file, disk.size.bytes()).map_err(DiskError::io("look for data in", Path::new(&path)))
    }
}

/// Where the first `size` bytes of a file have data.
pub(super) fn extents(file: &File, size: u64) -> Result<Vec<Extent>, Errno> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, at, Whence::SeekData) {
            // No more data.
            Err(Errno::ENXIO) => break,
            // A block device does not tell.
            Err(Errno::EINVAL) => return Ok(vec![Extent { start: 0, end: size }]),
            result => result?,
        };
        at = seek(file, start, Whence::SeekHole)?;
        found.push(Extent { start, end: at });
    }
    Ok(in_grains(&found, size))
}

fn seek(file: &File, from: u64, whence: Whence) -> Result<u64, Errno> {
    let from = i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
    lseek(file, from, whence).map(i64::cast_unsigned)
}

/// Rounds outward to grains within `size`, and joins what then meets.
fn in_grains(extents: &[Extent], size: u64) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::new();
    for extent in extents {
        let start = extent.start / GRAIN * GRAIN;
        let end = extent.end.next_multiple_of(GRAIN).min(size);
        match joined.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ if start < end => joined.push(Extent { start, end }),
            _ => {}
        }
    }
    joined
}

/// At most `most` extents (one at least) with the same data: the smallest gaps are filled first. What is filled is copied though it need not be.
pub(super) fn at_most(mut extents: Vec<Extent>, most: usize) -> Vec<Extent> {
    let mut gap = GRAIN;
    while extents.len() > most.max(1) {
        let mut joined: Vec<Extent> = Vec::new();
        for extent in extents {
            match joined.last_mut() {
                Some(last) if extent.start - last.end <= gap => last.end = extent.end,
                _ => joined.push(extent),
            }
        }
        extents = joined;
        gap = gap.saturating_mul(2);
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u64, u64)]) -> Vec<Extent> {
        ranges.iter().map(|&(start, end)| Extent { start: start * GRAIN, end: end * GRAIN }).collect()
    }

    #[test]
    fn what_touches_a_grain_is_all_of_it() {
        let size = 10 * GRAIN;
        let found = [
            Extent { start: 1, end: 2 },
            Extent { start: 4096, end: 8192 },
            Extent { start: GRAIN, end: GRAIN + 1 },
            Extent { start: 5 * GRAIN - 1, end: 5 * GRAIN },
            Extent { start: 9 * GRAIN + 4096, end: size },
        ];
        assert_eq!(in_grains(&found, size), of(&[(0, 2), (4, 5), (9, 10)]));
        // The last grain may be a part of one.
        let odd = GRAIN + 4096;
        assert_eq!(in_grains(&[Extent { start: GRAIN, end: odd }], odd), [Extent { start: GRAIN, end: odd }]);
        assert_eq!(in_grains(&[], size), []);
    }

    #[test]
    fn smallest_gaps_are_filled_until_few_are_left() {
        let many = of(&[(0, 1), (2, 3), (10, 11), (13, 14), (100, 101)]);
        assert_eq!(at_most(many.clone(), 5), many);
        assert_eq!(at_most(many.clone(), 4), of(&[(0, 3), (10, 11), (13, 14), (100, 101)]));
        assert_eq!(at_most(many.clone(), 3), of(&[(0, 3), (10, 14), (100, 101)]));
        assert_eq!(at_most(many, 0), of(&[(0, 101)]));
    }
}
