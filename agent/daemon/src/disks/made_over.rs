//! Disks that are over an image: a qcow2 that has what differs, and beneath it a file that stays where it is, of which any number of
//! disks are made. What is beneath is the agent's to open, by the path that an operator named; a disk's head has its SHA-256 where others
//! have a name, and it is compared whenever it is opened: another image there would be another disk.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use throughline_cutover::{Disk, GuestName};

use super::{
    DiskError, Store,
    folder::Half,
    make::tool_failed,
    operators_image, qcow2,
    sums::{NoSum, Sum},
};

/// How long whoever makes or opens a disk waits for its image to be read: others wait for them, and they come again.
const PATIENCE: Duration = Duration::from_secs(2);

impl Store {
    /// Makes a file blank, and over the disk's image, which is read, and not copied.
    pub(super) fn blank_over(&self, guest: &GuestName, disk: &Disk, half: &Half<'_>) -> Result<(), DiskError> {
        let sum = self.sum(guest, disk, &self.image(guest, disk)?, Instant::now() + PATIENCE)?;
        let made = self.tools.create_over(half.file(), disk.size.bytes(), &qcow2::backing_name(&sum));
        made.map_err(tool_failed(guest, disk))
    }

    /// What a disk's open file is over, open to read; `None`: over nothing.
    ///
    /// # Errors
    /// [`DiskError::Image`] if it is not there, or is another one by now; [`DiskError::ImageBeingRead`]; [`DiskError::Unfit`].
    pub fn open_image(&self, guest: &GuestName, disk: &Disk, file: &File) -> Result<Option<File>, DiskError> {
        let Some(sum) = self.over(guest, disk, file)? else { return Ok(None) };
        self.find_image(guest, disk, &sum, Instant::now() + PATIENCE).map(Some)
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

    /// That this host has the image with that sum, which a disk is over that is to come here. It is waited `until` then for it to be read.
    ///
    /// # Errors
    /// [`DiskError::Image`] if this host has none that can be read, or another one; [`DiskError::ImageBeingRead`].
    pub fn check_image(&self, guest: &GuestName, disk: &Disk, sum: &[u8], until: Instant) -> Result<(), DiskError> {
        self.find_image(guest, disk, sum, until).map(drop)
    }

    fn find_image(&self, guest: &GuestName, disk: &Disk, sum: &[u8], until: Instant) -> Result<File, DiskError> {
        let image = self.image(guest, disk)?;
        if self.sum(guest, disk, &image, until)? == *sum {
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

    fn sum(&self, guest: &GuestName, disk: &Disk, image: &File, until: Instant) -> Result<Sum, DiskError> {
        self.sums.of(image, until).map_err(|why| match why {
            NoSum::BeingRead { .. } | NoSum::Changed => DiskError::ImageBeingRead {
                guest: guest.clone(),
                disk: disk.name.clone(),
                image: disk.image.clone(),
                how_far: why.to_string(),
            },
            NoSum::Io(_) => refused(guest, disk, why.to_string()),
        })
    }
}

fn refused(guest: &GuestName, disk: &Disk, why: String) -> DiskError {
    DiskError::Image { guest: guest.clone(), disk: disk.name.clone(), image: disk.image.clone(), why }
}
