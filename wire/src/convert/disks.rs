//! A guest's disks, and what becomes of them.

use throughline_cutover::{Disk, DiskBus, DiskFate, DiskFormat, DiskPlace, MOST_DISKS};

use super::{
    field::{InvalidField, Problem, number, parse, within},
    resources::path,
};
use crate::v1;

impl TryFrom<v1::Disk> for Disk {
    type Error = InvalidField;
    fn try_from(disk: v1::Disk) -> Result<Self, InvalidField> {
        let disk = Self {
            name: parse("name", &disk.name)?,
            size: number("size", disk.size)?,
            format: format(disk.format)?,
            bus: bus(disk.bus)?,
            image: if disk.image.is_empty() { disk.image } else { path("image", disk.image)? },
            place: place(disk.place)?,
            over: disk.over,
        };
        if disk.over && (disk.format != DiskFormat::Qcow2 || disk.image.is_empty()) {
            let words = "is said of a disk that is no qcow2 or has no image; only a qcow2 can be over one".to_owned();
            return Err(InvalidField::new("over", Problem::Other(words)));
        }
        if matches!(disk.place, DiskPlace::Device(_)) {
            let odd = |field, words: &str| Err(InvalidField::new(field, Problem::Other(words.to_owned())));
            if disk.format != DiskFormat::Raw {
                return odd("format", "is qcow2; a block device is raw");
            }
            if !disk.image.is_empty() {
                return odd(
                    "image",
                    "is given for a block device, which begins as what is on it; write the image to the device",
                );
            }
        }
        Ok(disk)
    }
}

impl From<Disk> for v1::Disk {
    fn from(disk: Disk) -> Self {
        let format = match disk.format {
            DiskFormat::Raw => v1::DiskFormat::Raw,
            DiskFormat::Qcow2 => v1::DiskFormat::Qcow2,
        };
        let bus = match disk.bus {
            DiskBus::VirtioBlk => v1::DiskBus::VirtioBlk,
            DiskBus::VirtioScsi => v1::DiskBus::VirtioScsi,
        };
        let (name, size) = (disk.name.into(), disk.size.bytes());
        let place = match disk.place {
            DiskPlace::Directory => None,
            DiskPlace::Device(name) => Some(v1::disk::Place::Device(name.into())),
            DiskPlace::Shared(name) => Some(v1::disk::Place::Shared(name.into())),
        };
        Self { name, size, format: format.into(), bus: bus.into(), image: disk.image, place, over: disk.over }
    }
}

fn format(value: i32) -> Result<DiskFormat, InvalidField> {
    match v1::DiskFormat::try_from(value) {
        Ok(v1::DiskFormat::Unspecified | v1::DiskFormat::Raw) => Ok(DiskFormat::Raw),
        Ok(v1::DiskFormat::Qcow2) => Ok(DiskFormat::Qcow2),
        Err(_) => Err(not_known("format", value)),
    }
}

fn bus(value: i32) -> Result<DiskBus, InvalidField> {
    match v1::DiskBus::try_from(value) {
        Ok(v1::DiskBus::Unspecified | v1::DiskBus::VirtioBlk) => Ok(DiskBus::VirtioBlk),
        Ok(v1::DiskBus::VirtioScsi) => Ok(DiskBus::VirtioScsi),
        Err(_) => Err(not_known("bus", value)),
    }
}

fn place(place: Option<v1::disk::Place>) -> Result<DiskPlace, InvalidField> {
    Ok(match place {
        None => DiskPlace::Directory,
        Some(v1::disk::Place::Device(name)) => DiskPlace::Device(parse("device", &name)?),
        Some(v1::disk::Place::Shared(name)) => DiskPlace::Shared(parse("shared", &name)?),
    })
}

fn not_known(field: &str, value: i32) -> InvalidField {
    InvalidField::new(field, Problem::Other(format!("is {value}, which this version does not know")))
}

/// Checks a guest's disks: so many at most, each with a name of its own.
pub(super) fn disks(disks: Vec<v1::Disk>) -> Result<Vec<Disk>, InvalidField> {
    within("disks", disks.len() as u64, 0..=MOST_DISKS as u64, "disks a guest")?;
    let mut checked: Vec<Disk> = Vec::with_capacity(disks.len());
    for (at, disk) in disks.into_iter().enumerate() {
        let field = format!("disks[{at}]");
        let disk = Disk::try_from(disk).map_err(|e| e.within(&field))?;
        if checked.iter().any(|other| other.name == disk.name) {
            let words = format!("is {} a second time; give each disk a name of its own", disk.name);
            return Err(InvalidField::new(format!("{field}.name"), Problem::Other(words)));
        }
        checked.push(disk);
    }
    Ok(checked)
}

/// What somebody said is to become of a guest's disks; `None`: nothing.
///
/// # Errors
/// A value this version does not know.
pub fn disk_fate(field: &str, value: i32) -> Result<Option<DiskFate>, InvalidField> {
    match v1::DiskFate::try_from(value) {
        Ok(v1::DiskFate::Unspecified) => Ok(None),
        Ok(v1::DiskFate::Keep) => Ok(Some(DiskFate::Keep)),
        Ok(v1::DiskFate::Delete) => Ok(Some(DiskFate::Delete)),
        Err(_) => Err(not_known(field, value)),
    }
}

impl From<DiskFate> for v1::DiskFate {
    fn from(fate: DiskFate) -> Self {
        match fate {
            DiskFate::Keep => Self::Keep,
            DiskFate::Delete => Self::Delete,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str) -> v1::Disk {
        v1::Disk { name: name.into(), size: 1 << 30, ..Default::default() }
    }

    fn field(change: impl FnOnce(&mut v1::Disk)) -> String {
        let mut second = disk("data");
        change(&mut second);
        disks(vec![disk("root"), second]).expect_err("must be refused").field
    }

    #[test]
    fn a_good_disk_round_trips() {
        for (format, bus) in [
            (v1::DiskFormat::Raw, v1::DiskBus::VirtioBlk),
            (v1::DiskFormat::Qcow2, v1::DiskBus::VirtioScsi),
            (v1::DiskFormat::Qcow2, v1::DiskBus::VirtioBlk),
        ] {
            let said =
                v1::Disk { format: format.into(), bus: bus.into(), image: "/srv/images/base".into(), ..disk("root") };
            assert_eq!(v1::Disk::from(Disk::try_from(said.clone()).expect("good")), said);
        }
    }

    #[test]
    fn where_a_disk_is_kept_round_trips() {
        use v1::disk::Place::{Device, Shared};
        for place in [None, Some(Device("web-1-data".into())), Some(Shared("nfs1".into()))] {
            let said = v1::Disk { format: 1, bus: 1, place, ..disk("root") };
            assert_eq!(v1::Disk::from(Disk::try_from(said.clone()).expect("good")), said);
        }
        let over = v1::Disk { format: 2, bus: 1, image: "/base.qcow2".into(), over: true, ..disk("root") };
        assert_eq!(v1::Disk::from(Disk::try_from(over.clone()).expect("good")), over);
        assert_eq!(field(|disk| disk.place = Some(Device("../sda".into()))), "disks[1].device");
        assert_eq!(field(|disk| disk.place = Some(Shared(String::new()))), "disks[1].shared");
        let device = || Some(Device("lv0".into()));
        assert_eq!(field(|disk| (disk.place, disk.format) = (device(), 2)), "disks[1].format");
        assert_eq!(field(|disk| (disk.place, disk.image) = (device(), "/base".into())), "disks[1].image");
        assert_eq!(field(|disk| (disk.over, disk.format) = (true, 2)), "disks[1].over");
        assert_eq!(field(|disk| (disk.over, disk.image) = (true, "/base".into())), "disks[1].over");
    }

    #[test]
    fn what_is_left_out_is_the_plainest() {
        let read = Disk::try_from(disk("root")).expect("good");
        assert_eq!((read.format, read.bus, read.image.as_str()), (DiskFormat::Raw, DiskBus::VirtioBlk, ""));
        assert_eq!(disks(vec![]), Ok(vec![]));
    }

    #[test]
    fn every_refusal_names_its_field() {
        assert_eq!(field(|disk| disk.name = "root".into()), "disks[1].name");
        assert_eq!(field(|disk| disk.name = "../root".into()), "disks[1].name");
        assert_eq!(field(|disk| disk.name = "a-name-too-long-".into()), "disks[1].name");
        assert_eq!(field(|disk| disk.size = 0), "disks[1].size");
        assert_eq!(field(|disk| disk.size = (1 << 20) + 512), "disks[1].size");
        assert_eq!(field(|disk| disk.size = u64::MAX), "disks[1].size");
        assert_eq!(field(|disk| disk.format = 9), "disks[1].format");
        assert_eq!(field(|disk| disk.bus = -1), "disks[1].bus");
        assert_eq!(field(|disk| disk.image = "base.img".into()), "disks[1].image");
        assert_eq!(field(|disk| disk.image = "/base,readonly=on".into()), "disks[1].image");
        let many = (0..=MOST_DISKS).map(|n| disk(&format!("d{n}"))).collect::<Vec<_>>();
        disks(many[1..].to_vec()).expect("as many as may be");
        assert_eq!(disks(many).expect_err("must be refused").field, "disks");
    }

    #[test]
    fn a_fate_is_said_or_not() {
        for fate in [DiskFate::Keep, DiskFate::Delete] {
            assert_eq!(disk_fate("disks", v1::DiskFate::from(fate).into()), Ok(Some(fate)));
        }
        assert_eq!(disk_fate("disks", 0), Ok(None));
        assert_eq!(disk_fate("disks", 3).expect_err("must be refused").field, "disks");
    }
}
