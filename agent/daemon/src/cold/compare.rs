//! What a file has, in sums: two files are the same if all of theirs are.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::LazyLock};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use sha2::{Digest as _, Sha256};

/// Bytes that one sum is of; the last region of a file may be shorter.
pub(super) const REGION: u64 = 4 << 20;
/// Bytes of a sum.
pub(super) const SUM: usize = 32;
/// Most sums in a message.
pub(super) const SUMS: usize = 1024;
/// Bytes of a piece: what is sent at once, and what is left out if it is zero.
pub(super) const PIECE: usize = 128 << 10;

/// SHA-256 of a region.
pub(super) type Sum = [u8; SUM];

/// That of a whole region of zeroes.
static ZEROES: LazyLock<Sum> = LazyLock::new(|| sum_of(&vec![0; REGION as usize]));

fn sum_of(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}

/// How many regions a file of that length has.
pub(super) fn regions(length: u64) -> u64 {
    length.div_ceil(REGION)
}

/// Bytes of a region.
pub(super) fn region_length(region: u64, length: u64) -> usize {
    (length - region * REGION).min(REGION) as usize
}

/// The sum of a region of a file of that length. Where the file has no data nothing is read.
pub(super) fn sum(file: &File, region: u64, length: u64, room: &mut Vec<u8>) -> io::Result<Sum> {
    let whole = region_length(region, length) as u64 == REGION;
    if whole && !has_data(file, region * REGION)? {
        return Ok(*ZEROES);
    }
    read(file, region, length, room)?;
    Ok(sum_of(room))
}

/// Reads a region; what is beyond the file's end is zeroes.
pub(super) fn read(file: &File, region: u64, length: u64, room: &mut Vec<u8>) -> io::Result<()> {
    room.clear();
    room.resize(region_length(region, length), 0);
    let mut at = 0;
    while at < room.len() {
        match file.read_at(&mut room[at..], region * REGION + at as u64) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the file has data in the region that begins there.
pub(super) fn has_data(file: &File, start: u64) -> io::Result<bool> {
    let from = i64::try_from(start).map_err(io::Error::other)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => Ok(data.cast_unsigned() < start + REGION),
        Err(Errno::ENXIO) => Ok(false),
        // A block device does not tell.
        Err(Errno::EINVAL) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_zeroes_are_the_same_and_a_bit_is_not() {
        let path = std::env::temp_dir().join(format!("throughline-compare-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let (length, mut room) = (2 * REGION + 4096, Vec::new());
        file.set_len(length).unwrap();
        assert_eq!((regions(length), region_length(2, length)), (3, 4096));
        let mut sums = || (0..3).map(|region| sum(&file, region, length, &mut room).unwrap()).collect::<Vec<_>>();
        let blank = sums();
        assert_eq!(blank[0], blank[1]);
        file.write_all_at(&vec![0; REGION as usize], 0).unwrap();
        assert_eq!(sums(), blank, "zeroes that were written");
        file.write_all_at(&[1], REGION + 7).unwrap();
        let changed = sums();
        assert!(changed[0] == blank[0] && changed[1] != blank[1] && changed[2] == blank[2]);
        assert!(!has_data(&file, 2 * REGION).unwrap() && has_data(&file, REGION).unwrap());
        std::fs::remove_file(path).unwrap();
    }
}
