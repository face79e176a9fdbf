//! A guest's disk on the command line, `name=NAME,size=SIZE,format=FORMAT,bus=BUS,image=PATH,over=PATH,device=NAME,shared=NAME`, and as text.

use throughline_wire::v1::{Disk, DiskBus, DiskFormat, disk::Place};

use crate::units::{self, InvalidQuantity};

/// Why a text is no disk. clap puts the flag's name and the text in front.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidDisk {
    /// A part without "=", or with an unknown key.
    #[error(
        "{0:?} is none of name=NAME, size=SIZE, format=FORMAT, bus=BUS, image=PATH, over=PATH, device=NAME, shared=NAME"
    )]
    Part(String),
    /// It begins as an image and over one.
    #[error("it has image= and over=; give one of them")]
    Image,
    /// It is in two places.
    #[error("it has device= and shared=; give one of them")]
    Place,
    /// A key came twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// A key that must be there is not.
    #[error("{0}= is missing")]
    Missing(&'static str),
    /// Not a size.
    #[error("size {0}")]
    Size(#[from] InvalidQuantity),
    /// Not a format.
    #[error("format {0:?} is none of raw, qcow2")]
    Format(String),
    /// Not a bus.
    #[error("bus {0:?} is none of virtio-blk, virtio-scsi")]
    Bus(String),
}

/// Reads a disk. Whether its name, size and image are good ones is for the controller and the host to say.
pub(super) fn disk(text: &str) -> Result<Disk, InvalidDisk> {
    let (mut name, mut size, mut format, mut bus, mut image) = (None, None, None, None, None);
    let (mut over, mut device, mut shared) = (None, None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("name", value)) => once("name", &mut name, value.to_owned())?,
            Some(("size", value)) => once("size", &mut size, units::disk_bytes(value)?)?,
            Some(("format", value)) => once("format", &mut format, read_format(value)?)?,
            Some(("bus", value)) => once("bus", &mut bus, read_bus(value)?)?,
            Some(("image", value)) => once("image", &mut image, value.to_owned())?,
            Some(("over", value)) => once("over", &mut over, value.to_owned())?,
            Some(("device", value)) => once("device", &mut device, value.to_owned())?,
            Some(("shared", value)) => once("shared", &mut shared, value.to_owned())?,
            _ => return Err(InvalidDisk::Part(part.to_owned())),
        }
    }
    let place = match (device, shared) {
        (Some(_), Some(_)) => return Err(InvalidDisk::Place),
        (device, shared) => device.map(Place::Device).or(shared.map(Place::Shared)),
    };
    if image.is_some() && over.is_some() {
        return Err(InvalidDisk::Image);
    }
    Ok(Disk {
        name: name.ok_or(InvalidDisk::Missing("name"))?,
        size: size.ok_or(InvalidDisk::Missing("size"))?,
        format: format.unwrap_or_default().into(),
        bus: bus.unwrap_or_default().into(),
        over: over.is_some(),
        image: image.or(over).unwrap_or_default(),
        place,
    })
}

fn once<T>(key: &'static str, slot: &mut Option<T>, value: T) -> Result<(), InvalidDisk> {
    if slot.replace(value).is_some() { Err(InvalidDisk::Twice(key)) } else { Ok(()) }
}

fn read_format(text: &str) -> Result<DiskFormat, InvalidDisk> {
    match text {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        other => Err(InvalidDisk::Format(other.to_owned())),
    }
}

fn read_bus(text: &str) -> Result<DiskBus, InvalidDisk> {
    match text {
        "virtio-blk" => Ok(DiskBus::VirtioBlk),
        "virtio-scsi" => Ok(DiskBus::VirtioScsi),
        other => Err(InvalidDisk::Bus(other.to_owned())),
    }
}

/// "root 10 GiB raw virtio-blk", where it is kept and what it began as; a number where the value is from a newer protocol.
pub(super) fn shown(disk: &Disk) -> String {
    let format = match DiskFormat::try_from(disk.format) {
        Ok(DiskFormat::Unspecified | DiskFormat::Raw) => "raw".to_owned(),
        Ok(DiskFormat::Qcow2) => "qcow2".to_owned(),
        Err(_) => disk.format.to_string(),
    };
    let bus = match DiskBus::try_from(disk.bus) {
        Ok(DiskBus::Unspecified | DiskBus::VirtioBlk) => "virtio-blk".to_owned(),
        Ok(DiskBus::VirtioScsi) => "virtio-scsi".to_owned(),
        Err(_) => disk.bus.to_string(),
    };
    let image = match (disk.image.as_str(), disk.over) {
        ("", _) => String::new(),
        (image, false) => format!(" from {image}"),
        (image, true) => format!(" over {image}"),
    };
    let place = match &disk.place {
        None => String::new(),
        Some(Place::Device(name)) => format!(" device {name}"),
        Some(Place::Shared(name)) => format!(" shared {name}"),
    };
    format!("{} {} {format} {bus}{place}{image}", disk.name, units::bytes(disk.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read() {
        let root = disk("name=root,size=1GiB").unwrap();
        assert_eq!((root.name.as_str(), root.size, root.format(), root.bus()), {
            ("root", 1 << 30, DiskFormat::Unspecified, DiskBus::Unspecified)
        });
        let data = disk("bus=virtio-scsi,image=/srv/base.qcow2,format=qcow2,size=20G,name=data").unwrap();
        assert_eq!((data.size, data.format(), data.bus()), (20 << 30, DiskFormat::Qcow2, DiskBus::VirtioScsi));
        assert_eq!(shown(&data), "data 20 GiB qcow2 virtio-scsi from /srv/base.qcow2");
        assert_eq!(shown(&root), "root 1 GiB raw virtio-blk");
        let [device, shared] =
            ["device=lv0", "shared=nfs1"].map(|place| shown(&disk(&format!("name=d,size=1G,{place}")).unwrap()));
        assert_eq!(device, "d 1 GiB raw virtio-blk device lv0");
        let over = shown(&disk("name=d,size=1G,format=qcow2,over=/srv/base.qcow2").unwrap());
        assert_eq!(over, "d 1 GiB qcow2 virtio-blk over /srv/base.qcow2");
        assert_eq!(shared, "d 1 GiB raw virtio-blk shared nfs1");
        assert_eq!(disk("name=root,size=64").unwrap().size, 64 << 20, "as with --memory");
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert_eq!(disk(""), Err(InvalidDisk::Part(String::new())));
        assert_eq!(disk("name=a,size=1G,cache=none"), Err(InvalidDisk::Part("cache=none".to_owned())));
        assert_eq!(disk("name=a,size=1G,device=a,shared=b"), Err(InvalidDisk::Place));
        assert_eq!(disk("name=a,size=1G,image=/a,over=/b"), Err(InvalidDisk::Image));
        assert_eq!(disk("size=1G"), Err(InvalidDisk::Missing("name")));
        assert_eq!(disk("name=a"), Err(InvalidDisk::Missing("size")));
        assert_eq!(disk("name=a,name=b,size=1G"), Err(InvalidDisk::Twice("name")));
        assert_eq!(disk("name=a,size=1G,format=vmdk"), Err(InvalidDisk::Format("vmdk".to_owned())));
        assert_eq!(disk("name=a,size=1G,bus=ide"), Err(InvalidDisk::Bus("ide".to_owned())));
        assert!(matches!(disk("name=a,size=1GB"), Err(InvalidDisk::Size(_))));
        assert_eq!(disk("name=a,size=17179869184T"), Err(InvalidDisk::Size(InvalidQuantity::TooLarge)));
    }
}
