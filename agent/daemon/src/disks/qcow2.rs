//! The head of a qcow2 file, as far as it tells how long the disk is and what else QEMU would open for it.
//!
//! See docs/interop/qcow2.txt in QEMU's sources. Numbers are big-endian.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::sums::{Sum, hex, unhex};

/// What is read of a file.
const LENGTH: usize = 104;
/// Where the name of a backing file is in it, and how long that is.
const BACKING: std::ops::Range<usize> = 8..20;
/// How such a name begins of a disk that is over an image, and its length.
const BY_SUM: &str = "sha256:";
const BACKING_NAME: usize = BY_SUM.len() + 64;
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Of the features that a reader must know: the disk's content is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// A file that is no disk one could use.
#[derive(Debug, thiserror::Error)]
pub enum InvalidQcow2 {
    /// The system refused.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is not in format qcow2")]
    Magic,
    /// An old one.
    #[error("it is of version {0} of qcow2; convert it (qemu-img amend -o compat=1.1)")]
    Version(u32),
    /// It has a backing file.
    #[error("it rests on another file; make it one of its own (qemu-img convert)")]
    Backing,
    /// It has an external data file.
    #[error("its content is in another file; make it one (qemu-img convert)")]
    ExternalData,
    /// It is encrypted.
    #[error("it is encrypted, and nobody here has the key")]
    Encrypted,
}

/// Reads the head of a file; gives the length of the disk, bytes.
pub(super) fn read(file: &File) -> Result<u64, InvalidQcow2> {
    qcow2_length(&head(file)?)
}

/// The same of a disk that may be over an image; and that image's sum, if it is over one. What is over something else is no disk of ours.
pub(super) fn read_over(file: &File) -> Result<(u64, Option<Sum>), InvalidQcow2> {
    let mut head = head(file)?;
    let (at, length) = (long(&head, BACKING.start), word(&head, BACKING.end - 4));
    if at == 0 {
        return Ok((qcow2_length(&head)?, None));
    }
    let mut name = [0; BACKING_NAME];
    if length as usize != BACKING_NAME {
        return Err(InvalidQcow2::Backing);
    }
    file.read_exact_at(&mut name, at)?;
    let sum = std::str::from_utf8(&name).ok().and_then(read_backing_name).ok_or(InvalidQcow2::Backing)?;
    head[BACKING].fill(0);
    Ok((qcow2_length(&head)?, Some(sum)))
}

/// What a disk's head says that is over the image with that sum: nothing that anybody could open.
pub(super) fn backing_name(sum: &Sum) -> String {
    BY_SUM.to_owned() + &hex(sum)
}

fn read_backing_name(name: &str) -> Option<Sum> {
    unhex(name.strip_prefix(BY_SUM)?)
}

fn word(head: &[u8; LENGTH], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

fn long(head: &[u8; LENGTH], at: usize) -> u64 {
    u64::from(word(head, at)) << 32 | u64::from(word(head, at + 4))
}

fn head(file: &File) -> Result<[u8; LENGTH], InvalidQcow2> {
    let mut head = [0; LENGTH];
    match file.read_exact_at(&mut head, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(InvalidQcow2::Magic),
        result => Ok(result.map(|()| head)?),
    }
}

/// The length of the disk that begins with these bytes.
///
/// # Errors
/// If it is none, or one that rests on other files.
pub fn qcow2_length(head: &[u8]) -> Result<u64, InvalidQcow2> {
    let head: &[u8; LENGTH] = head.first_chunk().ok_or(InvalidQcow2::Magic)?;
    if head[..4] != MAGIC {
        return Err(InvalidQcow2::Magic);
    }
    match (word(head, 4), long(head, 8), word(head, 32), long(head, 72)) {
        (3, 0, 0, features) if features & EXTERNAL_DATA == 0 => Ok(long(head, 24)),
        (3, 0, 0, _) => Err(InvalidQcow2::ExternalData),
        (3, 0, _, _) => Err(InvalidQcow2::Encrypted),
        (3, ..) => Err(InvalidQcow2::Backing),
        (version, ..) => Err(InvalidQcow2::Version(version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(changes: &[(usize, u8)]) -> [u8; LENGTH] {
        let mut head = [0; LENGTH];
        head[..4].copy_from_slice(&MAGIC);
        head[7] = 3;
        // 5 GiB.
        head[24..32].copy_from_slice(&(5_u64 << 30).to_be_bytes());
        for (at, byte) in changes {
            head[*at] = *byte;
        }
        head
    }

    #[test]
    fn a_disk_on_its_own_is_as_long_as_its_head_says() {
        assert_eq!(qcow2_length(&head(&[])).unwrap(), 5 << 30);
        // Dirty, and compressed otherwise: QEMU's affair.
        assert_eq!(qcow2_length(&head(&[(79, 0b1001)])).unwrap(), 5 << 30);
    }

    #[test]
    fn an_image_is_known_by_its_sum_alone() {
        let sum: Sum = std::array::from_fn(|at| at as u8 * 7);
        let name = backing_name(&sum);
        assert_eq!((name.len(), read_backing_name(&name)), (BACKING_NAME, Some(sum)));
        for strange in ["/srv/base.qcow2", "sha256:00", &name[..BACKING_NAME - 1], &name.replace('0', "g")] {
            assert_eq!(read_backing_name(strange), None, "{strange}");
        }
    }

    #[test]
    fn what_would_open_another_file_is_none() {
        assert!(matches!(qcow2_length(&head(&[(15, 1)])), Err(InvalidQcow2::Backing)));
        assert!(matches!(qcow2_length(&head(&[(79, 0b100)])), Err(InvalidQcow2::ExternalData)));
        assert!(matches!(qcow2_length(&head(&[(35, 2)])), Err(InvalidQcow2::Encrypted)));
        assert!(matches!(qcow2_length(&head(&[(7, 2)])), Err(InvalidQcow2::Version(2))));
        assert!(matches!(qcow2_length(&head(&[(0, 0)])), Err(InvalidQcow2::Magic)));
    }
}
