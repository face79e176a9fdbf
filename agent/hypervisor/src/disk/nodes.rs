//! What QEMU calls the parts of a disk. Pure. A prefix tells what it is, so that no disk's name makes two of them the same.

use throughline_cutover::DiskName;

/// How marks of descriptors begin that are not a disk's own.
const ASIDE: &str = "aside:";

/// The file.
pub(super) fn file(disk: &DiskName) -> String {
    format!("file-{disk}")
}

/// What the file contains, in its format. Copies read here, and a destination's are written here.
pub(super) fn image(disk: &DiskName) -> String {
    format!("image-{disk}")
}

/// What it is where nothing was written to the file, if that is not nothing.
pub(super) fn below(disk: &DiskName) -> String {
    format!("below-{disk}")
}

/// What the guest's device uses: nothing but a place for the mirror, above the copy's.
pub(super) fn disk(disk: &DiskName) -> String {
    format!("disk-{disk}")
}

/// The mirror, and the node of the connection it writes to.
pub(super) fn mirror(disk: &DiskName) -> String {
    format!("mirror-{disk}")
}

/// The job that copies the rest, and the node of its connection.
pub(super) fn rest(disk: &DiskName) -> String {
    format!("rest-{disk}")
}

/// A chart while it is read.
pub(super) fn chart(disk: &DiskName) -> String {
    format!("chart-{disk}")
}

/// A file for what the guest overwrites while a point of its replica is sent.
pub(super) fn aside(disk: &DiskName) -> String {
    format!("aside-{disk}")
}

/// The filter that puts it there.
pub(super) fn before(disk: &DiskName) -> String {
    format!("before-{disk}")
}

/// The disk as it was at the point's instant, made of the two.
pub(super) fn instant(disk: &DiskName) -> String {
    format!("instant-{disk}")
}

/// The job that sends it, and the node of its connection.
pub(super) fn send(disk: &DiskName) -> String {
    format!("send-{disk}")
}

/// The export of a disk, by id and by name.
pub(super) fn export(disk: &DiskName) -> String {
    format!("export-{disk}")
}

/// What QEMU's descriptor of the file is marked with.
pub(super) fn descriptor(disk: &DiskName) -> String {
    format!("disk:{disk}")
}

/// The disk whose file a descriptor with that mark is.
pub(super) fn disk_of_descriptor(mark: &str) -> Option<DiskName> {
    mark.strip_prefix("disk:")?.parse().ok()
}

/// What the descriptor of the file for what is overwritten is marked with.
pub(super) fn aside_descriptor(disk: &DiskName) -> String {
    format!("{ASIDE}{disk}")
}

/// Whether a descriptor's mark is one of those.
pub(super) fn is_aside_descriptor(mark: &str) -> bool {
    mark.starts_with(ASIDE)
}

/// Whether an export is ours.
pub(super) fn is_export(id: &str) -> bool {
    id.starts_with("export-")
}

/// Whether a node is a connection to a destination.
pub(super) fn is_connection(node: &str) -> bool {
    node.starts_with("mirror-") || node.starts_with("rest-")
}

/// Whether a node is a connection to a replica.
pub(super) fn is_sending(node: &str) -> bool {
    node.starts_with("send-")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_parts_of_any_disks_have_the_same_name_and_each_fits() {
        let longest = "x".repeat(DiskName::MAX);
        let names = ["a", "image", "a-image", "disk-a", "image-a", "file-a", "mirror-a", "rest-a", longest.as_str()];
        let disks: Vec<DiskName> = names.map(|name| name.parse().unwrap()).into();
        let parts = |name: &DiskName| {
            [file, image, below, disk, mirror, rest, chart, aside, before, instant, send].map(|part| part(name))
        };
        let all: Vec<String> = disks.iter().flat_map(parts).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        assert!(all.iter().all(|name| name.len() <= 31), "QEMU's limit: {all:?}");
        for name in &disks {
            assert_eq!(disk_of_descriptor(&descriptor(name)).as_ref(), Some(name));
            assert!(is_connection(&mirror(name)) && is_connection(&rest(name)) && is_export(&export(name)));
            assert!(!is_connection(&disk(name)) && !is_connection(&image(name)));
            assert!(is_sending(&send(name)) && !is_connection(&send(name)) && !is_sending(&rest(name)));
            let mark = aside_descriptor(name);
            assert!(is_aside_descriptor(&mark) && disk_of_descriptor(&mark).is_none());
        }
        assert_eq!(disk_of_descriptor("tap:7"), None);
    }
}
