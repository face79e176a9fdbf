//! A disk on QEMU's command line. Pure.

use std::os::fd::RawFd;

use serde_json::json;
use throughline_cutover::{DiskBus, DiskFormat, DiskName};

use super::nodes;

/// PCI slot of the controller that SCSI disks are units of, and of the first disk. Fixed as cards' are, and beyond those.
const CONTROLLER_SLOT: usize = 10;
const FIRST_SLOT: usize = 11;
/// Set of the first disk's descriptor, and of what the first is over.
const FIRST_SET: usize = 2_000;
const FIRST_SET_BELOW: usize = 3_000;

/// A disk by its descriptor's number, as QEMU will inherit it.
pub(crate) struct DiskArgs {
    pub(crate) name: DiskName,
    pub(crate) format: DiskFormat,
    pub(crate) bus: DiskBus,
    pub(crate) image: RawFd,
    /// It is a block device.
    pub(crate) device: bool,
    /// What it is where nothing was written to it.
    pub(crate) below: Option<BelowArgs>,
}

/// What a disk is over, by the descriptor's number.
#[derive(Clone, Copy)]
pub(crate) enum BelowArgs {
    Image(RawFd),
    Connection(RawFd),
}

impl BelowArgs {
    /// What QEMU inherits.
    pub(crate) const fn descriptor(self) -> RawFd {
        let (Self::Image(number) | Self::Connection(number)) = self;
        number
    }
}

/// Options, each with its value, for all disks of a guest.
pub(crate) fn options(disks: &[DiskArgs]) -> Vec<(&'static str, String)> {
    let mut options = Vec::new();
    if disks.iter().any(|disk| disk.bus == DiskBus::VirtioScsi) {
        options.push(("-device", format!("virtio-scsi-pci,id=scsi,bus=pcie.0,addr={CONTROLLER_SLOT:#x}")));
    }
    for (index, disk) in disks.iter().enumerate() {
        let set = FIRST_SET + index;
        options.push(disk.descriptor(set));
        options.extend(disk.below(FIRST_SET_BELOW + index));
        options.extend(disk.nodes(set).map(|node| ("-blockdev", node)));
        options.push(("-device", disk.device(index)));
    }
    options
}

/// The same for disks that are kept for nobody's use here: no device has them.
pub(crate) fn kept(disks: &[DiskArgs]) -> Vec<(&'static str, String)> {
    let mut options = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let set = FIRST_SET + index;
        options.push(disk.descriptor(set));
        let [file, image, _device] = disk.nodes(set);
        options.extend([file, image].map(|node| ("-blockdev", node)));
    }
    options
}

impl DiskArgs {
    fn descriptor(&self, set: usize) -> (&'static str, String) {
        ("-add-fd", format!("fd={},set={set},opaque={}", self.image, nodes::descriptor(&self.name)))
    }

    /// What it is over, as one node; nobody writes it.
    fn below(&self, set: usize) -> Vec<(&'static str, String)> {
        let node = nodes::below(&self.name);
        match self.below {
            None => Vec::new(),
            Some(BelowArgs::Image(image)) => {
                let file = json!({
                    "driver": "file", "filename": format!("/dev/fdset/{set}"), "locking": "off", "read-only": true,
                });
                let node = json!({
                    "driver": "qcow2", "node-name": node, "file": file, "backing": null, "read-only": true,
                });
                vec![("-add-fd", format!("fd={image},set={set}")), ("-blockdev", node.to_string())]
            }
            Some(BelowArgs::Connection(connection)) => {
                let server = json!({ "type": "fd", "str": connection.to_string() });
                let node = json!({ "driver": "nbd", "node-name": node, "server": server, "read-only": true });
                vec![("-blockdev", node.to_string())]
            }
        }
    }

    /// From the file up.
    fn nodes(&self, set: usize) -> [String; 3] {
        let (file, image, disk) = (nodes::file(&self.name), nodes::image(&self.name), nodes::disk(&self.name));
        let mut format = json!({
            "driver": self.format.as_str(), "node-name": image, "file": file, "discard": "unmap",
        });
        if self.format == DiskFormat::Qcow2 {
            // Whatever its header came to say: a disk is one file, and what the agent puts below it.
            format["backing"] = self.below.map(|_| nodes::below(&self.name)).into();
        }
        [
            json!({
                "driver": if self.device { "host_device" } else { "file" }, "node-name": file, "filename": format!("/dev/fdset/{set}"), "locking": "on",
                "aio": "threads", "discard": "unmap",
            }),
            format,
            json!({"driver": "raw", "node-name": disk, "file": image, "discard": "unmap"}),
        ]
        .map(|node| node.to_string())
    }

    /// A write that fails stops the guest: the host is to be mended, not the guest's file system.
    fn device(&self, index: usize) -> String {
        let (name, drive) = (&self.name, nodes::disk(&self.name));
        match self.bus {
            DiskBus::VirtioBlk => format!(
                "virtio-blk-pci,id=dev-{name},drive={drive},bus=pcie.0,addr={:#x},serial={name},discard=on,write-zeroes=on,\
                 werror=stop",
                FIRST_SLOT + index
            ),
            DiskBus::VirtioScsi => format!(
                "scsi-hd,id=dev-{name},drive={drive},bus=scsi.0,scsi-id={index},lun=0,serial={name},device_id={name},\
                 werror=stop"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, format: DiskFormat, bus: DiskBus, image: RawFd) -> DiskArgs {
        DiskArgs { name: name.parse().unwrap(), format, bus, image, device: false, below: None }
    }

    fn render(disks: &[DiskArgs]) -> String {
        options(disks).iter().map(|(option, value)| format!("{option} {value}")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn golden_of_each_format_on_each_bus() {
        let disks = [
            disk("root", DiskFormat::Qcow2, DiskBus::VirtioBlk, 40),
            disk("data", DiskFormat::Raw, DiskBus::VirtioScsi, 41),
        ];
        let golden = r#"-device virtio-scsi-pci,id=scsi,bus=pcie.0,addr=0xa
-add-fd fd=40,set=2000,opaque=disk:root
-blockdev {"aio":"threads","discard":"unmap","driver":"file","filename":"/dev/fdset/2000","locking":"on","node-name":"file-root"}
-blockdev {"backing":null,"discard":"unmap","driver":"qcow2","file":"file-root","node-name":"image-root"}
-blockdev {"discard":"unmap","driver":"raw","file":"image-root","node-name":"disk-root"}
-device virtio-blk-pci,id=dev-root,drive=disk-root,bus=pcie.0,addr=0xb,serial=root,discard=on,write-zeroes=on,werror=stop
-add-fd fd=41,set=2001,opaque=disk:data
-blockdev {"aio":"threads","discard":"unmap","driver":"file","filename":"/dev/fdset/2001","locking":"on","node-name":"file-data"}
-blockdev {"discard":"unmap","driver":"raw","file":"file-data","node-name":"image-data"}
-blockdev {"discard":"unmap","driver":"raw","file":"image-data","node-name":"disk-data"}
-device scsi-hd,id=dev-data,drive=disk-data,bus=scsi.0,scsi-id=1,lun=0,serial=data,device_id=data,werror=stop"#;
        assert_eq!(render(&disks), golden);
    }

    #[test]
    fn a_block_device_is_opened_as_one() {
        let device = DiskArgs { device: true, ..disk("data", DiskFormat::Raw, DiskBus::VirtioBlk, 41) };
        assert_eq!(
            render(&[device]).matches(r#""driver":"host_device","filename":"/dev/fdset/2000","locking":"on""#).count(),
            1
        );
    }

    #[test]
    fn what_a_disk_is_over_is_there_before_it_and_read_alone() {
        let over =
            DiskArgs { below: Some(BelowArgs::Image(45)), ..disk("root", DiskFormat::Qcow2, DiskBus::VirtioBlk, 40) };
        let line = render(&[over]);
        let below = r#"-add-fd fd=45,set=3000
-blockdev {"backing":null,"driver":"qcow2","file":{"driver":"file","filename":"/dev/fdset/3000","locking":"off","read-only":true},"node-name":"below-root","read-only":true}
"#;
        let image = r#"-blockdev {"backing":"below-root","discard":"unmap","driver":"qcow2","file":"file-root","node-name":"image-root"}"#;
        let places = [below, image].map(|node| line.find(node).unwrap_or_else(|| panic!("{node}: {line}")));
        assert!(places.is_sorted(), "{line}");
    }

    #[test]
    fn a_kept_disk_has_its_file_and_its_image() {
        let options = kept(&[disk("root", DiskFormat::Qcow2, DiskBus::VirtioScsi, 40)]);
        let golden = r#"-add-fd fd=40,set=2000,opaque=disk:root
-blockdev {"aio":"threads","discard":"unmap","driver":"file","filename":"/dev/fdset/2000","locking":"on","node-name":"file-root"}
-blockdev {"backing":null,"discard":"unmap","driver":"qcow2","file":"file-root","node-name":"image-root"}"#;
        let said: Vec<_> = options.iter().map(|(option, value)| format!("{option} {value}")).collect();
        assert_eq!(said.join("\n"), golden);
    }

    #[test]
    fn what_is_below_a_disk_is_a_connection_and_read_alone() {
        let over = DiskArgs {
            below: Some(BelowArgs::Connection(45)),
            ..disk("root", DiskFormat::Qcow2, DiskBus::VirtioBlk, 40)
        };
        let line = render(&[over]);
        let below =
            r#"-blockdev {"driver":"nbd","node-name":"below-root","read-only":true,"server":{"str":"45","type":"fd"}}"#;
        let image = r#"-blockdev {"backing":"below-root","discard":"unmap","driver":"qcow2","file":"file-root","node-name":"image-root"}"#;
        let places = [below, image].map(|node| line.find(node).unwrap_or_else(|| panic!("{node}: {line}")));
        assert!(places.is_sorted(), "{line}");
    }

    #[test]
    fn no_disk_no_option_and_no_controller_without_a_unit() {
        assert_eq!(render(&[]), "");
        let blk = render(&[disk("root", DiskFormat::Raw, DiskBus::VirtioBlk, 40)]);
        assert!(!blk.contains("scsi"), "{blk}");
    }
}
