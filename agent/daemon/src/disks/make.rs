//! A disk's beginning: blank, or as an image that an operator names.

use std::fs::File;

use throughline_cutover::{Disk, DiskFormat, DiskPlace, GuestName};

use super::{
    DiskError, Store, check,
    elsewhere::open_target,
    folder::{Folder, Half, kept_name},
    operators_image, space,
    tools::{Form, ToolError},
};

/// How a disk came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    Anew,
    /// It was there: from a call before, or kept when an earlier guest of that name was deleted. It is as that left it, whatever
    /// image it was to begin as.
    Found,
}

impl Store {
    /// Makes a disk of a guest that is created here, as [`Disk::image`] or blank. One that is there is taken, and so is a block device.
    ///
    /// # Errors
    /// [`DiskError::Space`], [`DiskError::Image`], [`DiskError::Tool`], [`DiskError::Place`]; [`DiskError::Unfit`] or [`DiskError::Exists`] if what is there is not
    /// that disk. Nothing new is there then.
    pub fn create(&self, guest: &GuestName, disk: &Disk) -> Result<Made, DiskError> {
        let folder = Folder::make(&self.directory, guest)?;
        if folder.has(disk)? {
            let path = folder.kept(disk);
            return check(guest, disk, &path, &self.open_placed(guest, disk, &path)?).map(|()| Made::Found);
        }
        folder.check_free(disk)?;
        if let Some(incoming) = folder.incoming(disk)? {
            return Err(DiskError::Exists { guest: guest.clone(), path: folder.path().join(incoming.name) });
        }
        let Some(target) = self.elsewhere.of(guest, disk)? else {
            return self.make_in(&folder, guest, disk).map(|()| Made::Anew);
        };
        let mut made = Made::Found;
        if let (DiskPlace::Shared(_), Some(path)) = (&disk.place, target.parent()) {
            let shared = Folder::of_shared(path, guest)?;
            if !shared.has(disk)? {
                shared.check_free(disk)?;
                self.make_in(&shared, guest, disk)?;
                made = Made::Anew;
            }
        }
        self.check_device_free(guest, disk, &target)?;
        check(guest, disk, &target, &open_target(guest, disk, &target)?)?;
        folder.link(disk, &target, &kept_name(disk)).map(|()| made)
    }

    /// A file of the disk's name in a directory, blank, as its image, or over it.
    fn make_in(&self, folder: &Folder, guest: &GuestName, disk: &Disk) -> Result<(), DiskError> {
        if !disk.over && !disk.image.is_empty() {
            return self.copy_image(guest, disk, folder);
        }
        space::check(guest, disk, folder.path(), 0)?;
        let half = folder.begin(disk)?;
        self.blank(guest, disk, &half)?;
        half.finish(&kept_name(disk)).map(drop)
    }

    /// Makes a file blank, over the disk's image if it is to be over that.
    pub(super) fn blank(&self, guest: &GuestName, disk: &Disk, half: &Half<'_>) -> Result<(), DiskError> {
        match disk.format {
            DiskFormat::Raw => lengthen(disk, half),
            DiskFormat::Qcow2 if disk.over => self.blank_over(guest, disk, half),
            DiskFormat::Qcow2 => {
                self.tools.create(half.file(), disk.size.bytes(), Form::Disk).map_err(tool_failed(guest, disk))
            }
        }
    }

    /// Makes the disk from its image.
    fn copy_image(&self, guest: &GuestName, disk: &Disk, folder: &Folder) -> Result<(), DiskError> {
        let image = operators_image::open(disk).map_err(|why| DiskError::Image {
            guest: guest.clone(),
            disk: disk.name.clone(),
            image: disk.image.clone(),
            why,
        })?;
        let failed = |error| tool_failed(guest, disk)(error);
        let takes = self.will_take(disk, &image).map_err(failed)?;
        space::check(guest, disk, folder.path(), takes)?;
        let half = folder.begin(disk)?;
        self.tools.convert(&image, half.file(), disk.format, takes).map_err(failed)?;
        match disk.format {
            DiskFormat::Raw => lengthen(disk, &half)?,
            DiskFormat::Qcow2 => self.tools.resize(half.file(), disk.size.bytes()).map_err(failed)?,
        }
        half.finish(&kept_name(disk)).map(drop)
    }

    /// Bytes that a copy of the image takes.
    fn will_take(&self, disk: &Disk, image: &File) -> Result<u64, ToolError> {
        match disk.format {
            DiskFormat::Raw => image.metadata().map(|found| space::allocated(&found)).map_err(ToolError::Lend),
            // What is compressed in the image is not in the copy.
            DiskFormat::Qcow2 => self.tools.measure(image),
        }
    }
}

/// A raw disk's length is its file's, which has holes where nothing was written.
fn lengthen(disk: &Disk, half: &Half<'_>) -> Result<(), DiskError> {
    half.file().set_len(disk.size.bytes()).map_err(DiskError::io("lengthen", &half.path()))
}

pub(super) fn tool_failed(guest: &GuestName, disk: &Disk) -> impl FnOnce(ToolError) -> DiskError {
    move |source| DiskError::Tool { guest: guest.clone(), disk: disk.name.clone(), source }
}
