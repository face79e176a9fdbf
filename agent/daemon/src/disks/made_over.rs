//! Disks that are over an image: a qcow2 that has what differs, and beneath it a file that stays where it is, of which any number of
//! disks are made. What is beneath is the agent's to open, by the path that an operator named; a disk's head has its SHA-256 where others
//! have a name, and it is compared whenever it is opened: another image there would be another disk.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex},
};

use sha2::{Digest as _, Sha256};
use throughline_cutover::{Disk, GuestName};

use super::{DiskError, Store, folder::Half, make::tool_failed, operators_image, qcow2};
use crate::lock::lock;

/// SHA-256 of an image.
pub type Sum = [u8; 32];

/// What is read at a time, bytes.
const PIECE: usize = 1 << 20;
/// Sums that are kept, of all images that were ever asked for.
const MOST_KEPT: usize = 256;

/// Sums of images, each for as long as the file is what it was: an image may have many gigabytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums(Arc<Mutex<HashMap<Stamp, Sum>>>);

/// What changes when a file does: device, number, length, and when it was written and changed, to the nanosecond.
type Stamp = [i128; 7];

fn stamp(found: &Metadata) -> Stamp {
    [
        found.dev().into(),
        found.ino().into(),
        found.len().into(),
        found.mtime().into(),
        found.mtime_nsec().into(),
        found.ctime().into(),
        found.ctime_nsec().into(),
    ]
}

impl Sums {
    fn of(&self, file: &File) -> io::Result<Sum> {
        let before = stamp(&file.metadata()?);
        if let Some(sum) = lock(&self.0).get(&before) {
            return Ok(*sum);
        }
        let sum = sum(file)?;
        // One that changed meanwhile has none.
        if stamp(&file.metadata()?) == before {
            let mut kept = lock(&self.0);
            if kept.len() >= MOST_KEPT {
                kept.clear();
            }
            kept.insert(before, sum);
        }
        Ok(sum)
    }
}

fn sum(mut file: &File) -> io::Result<Sum> {
    let (mut hasher, mut room) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut room)? {
            0 => return Ok(hasher.finalize().into()),
            count => hasher.update(&room[..count]),
        }
    }
}

impl Store {
    /// Makes a file blank, and over the disk's image, which is read, and not copied.
    pub(super) fn blank_over(&self, guest: &GuestName, disk: &Disk, half: &Half<'_>) -> Result<(), DiskError> {
        let sum = self.sum(disk, &self.image(guest, disk)?)?;
        let made = self.tools.create_over(half.file(), disk.size.bytes(), &qcow2::backing_name(&sum));
        made.map_err(tool_failed(guest, disk))
    }

    /// What a disk's open file is over, open to read; `None`: over nothing.
    ///
    /// # Errors
    /// [`DiskError::Image`] if it is not there, or is another one by now; [`DiskError::Unfit`].
    pub fn open_image(&self, guest: &GuestName, disk: &Disk, file: &File) -> Result<Option<File>, DiskError> {
        let Some(sum) = self.over(guest, disk, file)? else { return Ok(None) };
        self.check_image(guest, disk, &sum).map(Some)
    }

    /// The sum of the image that a kept disk is over; `None`: it is over none.
    ///
    /// # Errors
    /// [`DiskError::Unfit`]; the system's.
    pub fn image_of(&self, guest: &GuestName, disk: &Disk) -> Result<Option<Sum>, DiskError> {
        if !disk.over {
            return Ok(None);
        }
        let path = self.kept_path(guest, disk);
        let file = File::open(&path).map_err(DiskError::io("open", &path))?;
        self.over(guest, disk, &file)
    }

    /// Bytes that a copy of the image takes; none if it is not there any more, though a guest that runs still has it.
    pub fn image_takes(&self, guest: &GuestName, disk: &Disk) -> u64 {
        let taken = self.image(guest, disk).ok().and_then(|image| self.tools.measure(&image).ok());
        taken.unwrap_or_default()
    }

    /// That a file that is to be over the image with that sum, if any, is.
    ///
    /// # Errors
    /// [`DiskError::Image`]: the image was changed meanwhile.
    pub fn check_over(&self, guest: &GuestName, disk: &Disk, file: &File, sum: &[u8]) -> Result<(), DiskError> {
        let is = self.over(guest, disk, file)?;
        if is.as_ref().map_or(&[][..], |is| is) == sum {
            return Ok(());
        }
        Err(refused(guest, disk, "it was changed just now; migrate again".to_owned()))
    }

    /// The image with that sum, which a disk is over, here or elsewhere.
    ///
    /// # Errors
    /// [`DiskError::Image`] if this host has none, or another one; the system's.
    pub fn check_image(&self, guest: &GuestName, disk: &Disk, sum: &[u8]) -> Result<File, DiskError> {
        let image = self.image(guest, disk)?;
        if self.sum(disk, &image)? == *sum {
            return Ok(image);
        }
        let why = "this host has another one at that path than the disk is over; put that one there, or, if it comes from another host, \
                   move the guest with --flatten";
        Err(refused(guest, disk, why.to_owned()))
    }

    fn over(&self, guest: &GuestName, disk: &Disk, file: &File) -> Result<Option<Sum>, DiskError> {
        if !disk.over {
            return Ok(None);
        }
        let path = self.kept_path(guest, disk);
        let unfit = |why: qcow2::InvalidQcow2| DiskError::Unfit { guest: guest.clone(), path, why: why.to_string() };
        qcow2::read_over(file).map(|(_, over)| over).map_err(unfit)
    }

    fn image(&self, guest: &GuestName, disk: &Disk) -> Result<File, DiskError> {
        operators_image::open(disk).map_err(|why| refused(guest, disk, why))
    }

    fn sum(&self, disk: &Disk, image: &File) -> Result<Sum, DiskError> {
        self.sums.of(image).map_err(DiskError::io("read", disk.image.as_ref()))
    }
}

fn refused(guest: &GuestName, disk: &Disk, why: String) -> DiskError {
    DiskError::Image { guest: guest.clone(), disk: disk.name.clone(), image: disk.image.clone(), why }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn a_sum_is_kept_for_as_long_as_the_file_is_the_same() {
        let path = std::env::temp_dir().join(format!("throughline-sums-{}", std::process::id()));
        fs::write(&path, "one").unwrap();
        let (sums, open) = (Sums::default(), || File::open(&path).unwrap());
        let one = sums.of(&open()).unwrap();
        assert_eq!((sums.of(&open()).unwrap(), lock(&sums.0).len()), (one, 1));
        // The kernel's clock for files is coarse.
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&path, "two").unwrap();
        assert_ne!(sums.of(&open()).unwrap(), one);
        fs::remove_file(&path).unwrap();
    }
}
