//! What QEMU is told of nodes, exports and jobs, in full. Pure.

use qapi::qmp;
use throughline_cutover::DiskName;

use super::{
    bitmap::{COPY, GRANULARITY, Records},
    copy::Rest,
    nodes,
};

pub(super) fn base(node: Option<String>, read_only: bool) -> qmp::BlockdevOptionsBase {
    qmp::BlockdevOptionsBase {
        node_name: node,
        auto_read_only: None,
        cache: None,
        detect_zeroes: None,
        discard: (!read_only).then_some(qmp::BlockdevDiscardOptions::unmap),
        force_share: None,
        read_only: read_only.then_some(true),
    }
}

/// A node that is the far end of a connection, which QEMU knows by the name of the node too.
pub(super) fn connection(node: &str, disk: &DiskName) -> qmp::blockdev_add {
    let nbd = qmp::BlockdevOptionsNbd {
        server: qmp::SocketAddress::fd(qmp::FdSocketAddress { str: node.to_owned() }),
        export: Some(nodes::export(disk)),
        // One that breaks is not mended: requests fail at once.
        reconnect_delay: None,
        open_timeout: None,
        tls_creds: None,
        tls_hostname: None,
        x_dirty_bitmap: None,
    };
    qmp::blockdev_add(qmp::BlockdevOptions::nbd { base: base(Some(node.to_owned()), false), nbd })
}

/// The job that sends every write also to its target, before it is acknowledged. The target's failure is the job's, never the
/// guest's.
pub(super) fn mirror(disk: &DiskName) -> qmp::blockdev_mirror {
    qmp::blockdev_mirror {
        job_id: Some(nodes::mirror(disk)),
        device: nodes::disk(disk),
        target: nodes::mirror(disk),
        sync: qmp::MirrorSyncMode::none,
        copy_mode: Some(qmp::MirrorCopyMode::write_blocking),
        on_source_error: Some(qmp::BlockdevOnError::report),
        on_target_error: Some(qmp::BlockdevOnError::report),
        // Its end is looked at before it is forgotten.
        auto_dismiss: Some(false),
        auto_finalize: None,
        buf_size: None,
        filter_node_name: None,
        granularity: None,
        replaces: None,
        speed: None,
    }
}

/// The job that copies the rest. However it ends, the bitmap has what it did not copy.
pub(super) fn copy(disk: &DiskName, rest: Rest, speed: i64) -> qmp::blockdev_backup {
    let base = qmp::BackupCommon {
        job_id: Some(nodes::rest(disk)),
        device: nodes::image(disk),
        sync: match rest {
            Rest::Everything => qmp::MirrorSyncMode::full,
            Rest::OverImage => qmp::MirrorSyncMode::top,
            Rest::Marked => qmp::MirrorSyncMode::bitmap,
        },
        bitmap: Some(COPY.to_owned()),
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
    qmp::blockdev_backup(qmp::BlockdevBackup { base, target: nodes::rest(disk) })
}

/// A bitmap of a disk.
pub(super) fn bitmap(disk: &DiskName, name: &str, records: Records) -> qmp::block_dirty_bitmap_add {
    qmp::block_dirty_bitmap_add(qmp::BlockDirtyBitmapAdd {
        node: nodes::image(disk),
        name: name.to_owned(),
        granularity: Some(GRANULARITY),
        persistent: None,
        disabled: Some(records == Records::Nothing),
    })
}

/// A file that the agent has made for this and nobody else knows, from a set of descriptors.
pub(super) fn lent(set: i64) -> qmp::BlockdevOptionsFile {
    qmp::BlockdevOptionsFile {
        filename: format!("/dev/fdset/{set}"),
        locking: Some(qmp::OnOffAuto::off),
        aio: None,
        aio_max_batch: None,
        drop_cache: None,
        pr_manager: None,
        x_check_cache_dropped: None,
    }
}

/// A chart, to be read from a set of descriptors. The file's node lives and dies with it.
pub(super) fn chart(disk: &DiskName, set: i64) -> qmp::blockdev_add {
    let file = qmp::BlockdevOptions::file { base: base(None, true), file: lent(set) };
    let qcow2 = qmp::BlockdevOptionsQcow2 {
        base: qmp::BlockdevOptionsGenericCOWFormat {
            base: qmp::BlockdevOptionsGenericFormat { file: qmp::BlockdevRef::definition(Box::new(file)) },
            backing: None,
        },
        cache_clean_interval: None,
        cache_size: None,
        data_file: None,
        discard_no_unref: None,
        encrypt: None,
        l2_cache_entry_size: None,
        l2_cache_size: None,
        lazy_refcounts: None,
        overlap_check: None,
        pass_discard_other: None,
        pass_discard_request: None,
        pass_discard_snapshot: None,
        refcount_cache_size: None,
    };
    qmp::blockdev_add(qmp::BlockdevOptions::qcow2 { base: base(Some(nodes::chart(disk)), true), qcow2 })
}

/// Lets who is connected to the server write the disk's image.
pub(super) fn export(disk: &DiskName) -> qmp::block_export_add {
    qmp::block_export_add(qmp::BlockExportOptions::nbd {
        base: qmp::BlockExportOptionsBase {
            id: nodes::export(disk),
            node_name: nodes::image(disk),
            writable: Some(true),
            writethrough: None,
            iothread: None,
            fixed_iothread: None,
        },
        nbd: qmp::BlockExportOptionsNbd {
            base: qmp::BlockExportOptionsNbdBase { name: Some(nodes::export(disk)), description: None },
            allocation_depth: None,
            bitmaps: None,
        },
    })
}

/// A server on a socket in QEMU's own directory.
pub(super) fn server(socket: &str) -> qmp::nbd_server_start {
    let address = qmp::UnixSocketAddress { path: socket.to_owned(), abstract_: None, tight: None };
    qmp::nbd_server_start {
        addr: qmp::SocketAddressLegacy::unix(qmp::UnixSocketAddressWrapper { data: address }),
        max_connections: None,
        tls_authz: None,
        tls_creds: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(command: &impl serde::Serialize) -> String {
        serde_json::to_value(command).unwrap().to_string()
    }

    #[test]
    fn golden() {
        let root = "root".parse().unwrap();
        for (said, golden) in [
            (
                json(&connection("rest-root", &root)),
                r#"{"discard":"unmap","driver":"nbd","export":"export-root","node-name":"rest-root","server":{"str":"rest-root","type":"fd"}}"#,
            ),
            (
                json(&mirror(&root)),
                r#"{"auto-dismiss":false,"copy-mode":"write-blocking","device":"disk-root","job-id":"mirror-root","on-source-error":"report","on-target-error":"report","sync":"none","target":"mirror-root"}"#,
            ),
            (
                json(&copy(&root, Rest::Marked, 7)),
                r#"{"auto-dismiss":false,"bitmap":"throughline-copy","bitmap-mode":"always","device":"image-root","job-id":"rest-root","on-source-error":"report","on-target-error":"report","speed":7,"sync":"bitmap","target":"rest-root"}"#,
            ),
            (
                json(&bitmap(&root, COPY, Records::Writes)),
                r#"{"disabled":false,"granularity":65536,"name":"throughline-copy","node":"image-root"}"#,
            ),
            (
                json(&chart(&root, 3)),
                r#"{"driver":"qcow2","file":{"driver":"file","filename":"/dev/fdset/3","locking":"off","read-only":true},"node-name":"chart-root","read-only":true}"#,
            ),
            (
                json(&export(&root)),
                r#"{"id":"export-root","name":"export-root","node-name":"image-root","type":"nbd","writable":true}"#,
            ),
            (json(&server("disks.sock")), r#"{"addr":{"data":{"path":"disks.sock"},"type":"unix"}}"#),
        ] {
            assert_eq!(said, golden);
        }
    }
}
