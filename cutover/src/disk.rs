//! A guest's disks, as it was asked for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{DiskName, PlaceName};

/// What a disk's size is a multiple of, bytes.
const STEP: u64 = 1 << 20;
/// The largest disk, bytes: 64 TiB.
const LARGEST: u64 = 64 << 40;

/// Most disks a guest may have.
pub const MOST_DISKS: usize = 8;

/// Why a disk was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDisk {
    /// Not a size a disk may have.
    #[error("is {0} bytes; give a multiple of 1 MiB, from 1 MiB to 64 TiB")]
    Size(u64),
    /// Not a format.
    #[error("is {0:?}; give raw or qcow2")]
    Format(String),
    /// Not a bus.
    #[error("is {0:?}; give virtio-blk or virtio-scsi")]
    Bus(String),
}

/// What the guest sees as the disk's length, bytes: whole MiB, at most 64 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskSize(u64);

impl DiskSize {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for DiskSize {
    type Error = InvalidDisk;
    fn try_from(bytes: u64) -> Result<Self, InvalidDisk> {
        if !(STEP..=LARGEST).contains(&bytes) || !bytes.is_multiple_of(STEP) {
            return Err(InvalidDisk::Size(bytes));
        }
        Ok(Self(bytes))
    }
}

impl From<DiskSize> for u64 {
    fn from(size: DiskSize) -> Self {
        size.0
    }
}

/// How a disk's file is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskFormat {
    /// Byte for byte; sparse where nothing was written.
    #[default]
    Raw,
    /// QEMU's own, version 3.
    Qcow2,
}

impl DiskFormat {
    /// As QEMU and people call it; also the file's extension.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DiskFormat {
    type Err = InvalidDisk;
    fn from_str(text: &str) -> Result<Self, InvalidDisk> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            other => Err(InvalidDisk::Format(other.chars().take(32).collect())),
        }
    }
}

/// By what the guest finds the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskBus {
    /// A PCI device of its own: `/dev/vda` in a Linux guest.
    #[default]
    VirtioBlk,
    /// A unit of the guest's one SCSI controller: `/dev/sda`.
    VirtioScsi,
}

impl DiskBus {
    /// As people call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VirtioBlk => "virtio-blk",
            Self::VirtioScsi => "virtio-scsi",
        }
    }
}

impl fmt::Display for DiskBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DiskBus {
    type Err = InvalidDisk;
    fn from_str(text: &str) -> Result<Self, InvalidDisk> {
        match text {
            "virtio-blk" => Ok(Self::VirtioBlk),
            "virtio-scsi" => Ok(Self::VirtioScsi),
            other => Err(InvalidDisk::Bus(other.chars().take(32).collect())),
        }
    }
}

/// Where a disk is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskPlace {
    /// A file of its host's agent. It goes with the guest.
    #[default]
    Directory,
    /// The block device that each host has under this name. What is on it goes with the guest.
    Device(PlaceName),
    /// A file on storage that hosts have in common under this name. It stays where it is, whichever of them has the guest.
    Shared(PlaceName),
}

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Unique among the guest's disks; also its serial number in the guest.
    pub name: DiskName,
    /// Length.
    pub size: DiskSize,
    /// How it is kept.
    pub format: DiskFormat,
    /// How it is attached.
    pub bus: DiskBus,
    /// Path, on the host where the guest is created, of an image in the same format that it begins as; empty: it begins blank, or, a
    /// block device, as what is on it.
    pub image: String,
    /// Where.
    #[serde(default)]
    pub place: DiskPlace,
    /// It began *over* its image, which stays where it is: the disk's own file, a qcow2, has what differs. A move may have made it a file
    /// of its own since; only the file tells.
    #[serde(default)]
    pub over: bool,
}

impl Disk {
    /// Whether what is on it has to be brought to a host that its guest moves to.
    pub const fn goes_along(&self) -> bool {
        !matches!(self.place, DiskPlace::Shared(_))
    }
}

/// What becomes of a guest's disks on its host when the guest ends for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskFate {
    /// They stay where they are. What was ordered before there was a choice kept everything, too.
    #[default]
    Keep,
    /// They are deleted, with all that is on them.
    Delete,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_mebibytes_within_limits() {
        for good in [1 << 20, 3 << 20, 64 << 40] {
            assert_eq!(DiskSize::try_from(good).map(DiskSize::bytes), Ok(good));
        }
        for bad in [0, 1, (1 << 20) - 1, (1 << 20) + 512, (64 << 40) + (1 << 20), u64::MAX] {
            assert_eq!(DiskSize::try_from(bad), Err(InvalidDisk::Size(bad)));
        }
    }

    #[test]
    fn formats_and_buses_have_one_name_each() {
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            assert_eq!(format.as_str().parse(), Ok(format));
        }
        for bus in [DiskBus::VirtioBlk, DiskBus::VirtioScsi] {
            assert_eq!(bus.as_str().parse(), Ok(bus));
        }
        assert!("vmdk".parse::<DiskFormat>().is_err() && "ide".parse::<DiskBus>().is_err());
    }
}
