//! What QEMU is told of replicas, in full. Pure.

use qapi::qmp::{self, TransactionAction as Action};
use throughline_cutover::DiskName;

use super::super::{
    bitmap::{GRANULARITY, Records},
    nodes,
    options::{base, bitmap, lent},
};

/// Name of the bitmap, on the node of the disk's instant, of what is being sent.
pub(super) const SENDING: &str = "throughline-sending";
/// How long a guest's write may wait, seconds, until what it overwrites is in the file beside its disk.
const ASIDE_DEADLINE: u32 = 15;

/// A bitmap of a disk's image.
pub(super) fn add(disk: &DiskName, name: &str, records: Records) -> Action {
    Action::block_dirty_bitmap_add(qmp::BlockDirtyBitmapAddWrapper { data: bitmap(disk, name, records).0 })
}

fn named(node: &str, name: &str) -> qmp::BlockDirtyBitmap {
    qmp::BlockDirtyBitmap { node: node.to_owned(), name: name.to_owned() }
}

pub(super) fn clear(node: &str, name: &str) -> Action {
    Action::block_dirty_bitmap_clear(qmp::BlockDirtyBitmapWrapper { data: named(node, name) })
}

pub(super) fn remove(node: &str, name: &str) -> Action {
    Action::block_dirty_bitmap_remove(qmp::BlockDirtyBitmapWrapper { data: named(node, name) })
}

/// Marks what one bitmap marks in another too; each by its node and name.
pub(super) fn merge(from: (&str, &str), into: (&str, &str)) -> Action {
    let data = qmp::BlockDirtyBitmapMerge {
        node: into.0.to_owned(),
        target: into.1.to_owned(),
        bitmaps: vec![qmp::BlockDirtyBitmapOrStr::external(named(from.0, from.1))],
    };
    Action::block_dirty_bitmap_merge(qmp::BlockDirtyBitmapMergeWrapper { data })
}

/// The file for what the guest overwrites, from a set of descriptors.
pub(super) fn aside(disk: &DiskName, set: i64) -> qmp::blockdev_add {
    // It is of no use after a crash: the guest's flushes and its own end are not to wait for it.
    let cache = Some(qmp::BlockdevCacheOptions { direct: None, no_flush: Some(true) });
    let base = qmp::BlockdevOptionsBase { cache, ..base(Some(nodes::aside(disk)), false) };
    qmp::blockdev_add(qmp::BlockdevOptions::file { base, file: lent(set) })
}

fn over(node: String) -> qmp::BlockdevOptionsGenericFormat {
    qmp::BlockdevOptionsGenericFormat { file: qmp::BlockdevRef::reference(node) }
}

/// The filter that puts it there, before the guest's write is done. What breaks then is the point.
pub(super) fn before(disk: &DiskName) -> qmp::blockdev_add {
    let copy_before_write = qmp::BlockdevOptionsCbw {
        base: over(nodes::image(disk)),
        target: qmp::BlockdevRef::reference(nodes::aside(disk)),
        on_cbw_error: Some(qmp::OnCbwError::break_snapshot),
        cbw_timeout: Some(ASIDE_DEADLINE),
        bitmap: None,
    };
    let base = base(Some(nodes::before(disk)), false);
    qmp::blockdev_add(qmp::BlockdevOptions::copy_before_write { base, copy_before_write })
}

/// The disk as it was when [`lead`] led through the filter. Not to be made before.
pub(super) fn instant(disk: &DiskName) -> qmp::blockdev_add {
    let base = qmp::BlockdevOptionsBase { discard: None, ..base(Some(nodes::instant(disk)), false) };
    let snapshot_access = over(nodes::before(disk));
    qmp::blockdev_add(qmp::BlockdevOptions::snapshot_access { base, snapshot_access })
}

/// A bitmap of what is to be sent of it.
pub(super) fn sending(disk: &DiskName) -> qmp::block_dirty_bitmap_add {
    let of_image = bitmap(disk, SENDING, Records::Nothing).0;
    qmp::block_dirty_bitmap_add(qmp::BlockDirtyBitmapAdd {
        node: nodes::instant(disk),
        granularity: Some(GRANULARITY),
        ..of_image
    })
}

/// Leads what the guest writes to each of these nodes, from one instant on that is the same for all disks. The rest of what is said is
/// what the disks were made with.
pub(super) fn lead(disks: &[DiskName], to: fn(&DiskName) -> String) -> qmp::blockdev_reopen {
    let reopened = |disk: &DiskName| qmp::BlockdevOptions::raw {
        base: base(Some(nodes::disk(disk)), false),
        raw: qmp::BlockdevOptionsRaw { base: over(to(disk)), offset: None, size: None },
    };
    qmp::blockdev_reopen { options: disks.iter().map(reopened).collect() }
}

/// The job that sends what is marked. However it ends, the bitmap has what it did not send.
pub(super) fn send(disk: &DiskName, speed: i64) -> qmp::blockdev_backup {
    let base = qmp::BackupCommon {
        job_id: Some(nodes::send(disk)),
        device: nodes::instant(disk),
        sync: qmp::MirrorSyncMode::bitmap,
        bitmap: Some(SENDING.to_owned()),
        bitmap_mode: Some(qmp::BitmapSyncMode::always),
        speed: Some(speed),
        on_source_error: Some(qmp::BlockdevOnError::report),
        on_target_error: Some(qmp::BlockdevOnError::report),
        auto_dismiss: Some(false),
        auto_finalize: None,
        compress: None,
        discard_source: None,
        filter_node_name: None,
        x_perf: None,
    };
    qmp::blockdev_backup(qmp::BlockdevBackup { base, target: nodes::send(disk) })
}

/// A snapshot of a kept disk.
pub(super) fn snapshot(disk: &DiskName, name: &str) -> Action {
    let data = qmp::BlockdevSnapshotInternal { device: nodes::image(disk), name: name.to_owned() };
    Action::blockdev_snapshot_internal_sync(qmp::BlockdevSnapshotInternalWrapper { data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(command: &impl serde::Serialize) -> String {
        serde_json::to_value(command).unwrap().to_string()
    }

    #[test]
    fn golden() {
        let root: DiskName = "root".parse().unwrap();
        for (said, golden) in [
            (
                json(&aside(&root, 3)),
                r#"{"cache":{"no-flush":true},"discard":"unmap","driver":"file","filename":"/dev/fdset/3","locking":"off","node-name":"aside-root"}"#,
            ),
            (
                json(&before(&root)),
                r#"{"cbw-timeout":15,"discard":"unmap","driver":"copy-before-write","file":"image-root","node-name":"before-root","on-cbw-error":"break-snapshot","target":"aside-root"}"#,
            ),
            (json(&instant(&root)), r#"{"driver":"snapshot-access","file":"before-root","node-name":"instant-root"}"#),
            (
                json(&sending(&root)),
                r#"{"disabled":true,"granularity":65536,"name":"throughline-sending","node":"instant-root"}"#,
            ),
            (
                json(&lead(std::slice::from_ref(&root), nodes::before)),
                r#"{"options":[{"discard":"unmap","driver":"raw","file":"before-root","node-name":"disk-root"}]}"#,
            ),
            (
                json(&send(&root, 7)),
                r#"{"auto-dismiss":false,"bitmap":"throughline-sending","bitmap-mode":"always","device":"instant-root","job-id":"send-root","on-source-error":"report","on-target-error":"report","speed":7,"sync":"bitmap","target":"send-root"}"#,
            ),
            (
                json(&merge(("instant-root", "a"), ("image-root", "b"))),
                r#"{"data":{"bitmaps":[{"name":"a","node":"instant-root"}],"node":"image-root","target":"b"},"type":"block-dirty-bitmap-merge"}"#,
            ),
            (
                json(&snapshot(&root, "p-1")),
                r#"{"data":{"device":"image-root","name":"p-1"},"type":"blockdev-snapshot-internal-sync"}"#,
            ),
        ] {
            assert_eq!(said, golden);
        }
    }
}
