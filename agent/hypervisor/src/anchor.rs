//! What keeps QEMU from stopping a guest by itself.
//!
//! QEMU stops the guest for the switchover as soon as what is left to send seems little, and an idle guest gets there
//! before anybody looks. A dirty bitmap migrates with the guest, and until the switchover all of its bits count as left:
//! a bitmap of nothing, on a device of nothing, is a rest that never shrinks (migration/block-dirty-bitmap.c,
//! `dirty_bitmap_save_pending`). QEMU then goes over the guest's memory again and again until its downtime limit allows
//! for the anchor too.
//!
//! So from 7.2 to 8.2. In spring 2024 (on the way to 9.0 or 9.1) migration/migration.c, `migration_iteration_run`, came to
//! count the anchor also when it judges whether to look at the guest's memory again; it then never would.

use qapi::qmp;

use crate::{Guest, HypervisorError};

/// Node of the block device that is nothing, and its bitmap.
const ANCHOR: &str = "throughline-anchor";
/// Bits of the bitmap, each of which QEMU counts as a byte left to send. More than a single stream sends in the downtime
/// limit of a guest not let go, 1 ms (33 Gbit/s); few enough to be sent, being all zeroes, in a fraction of one.
const BITS: i64 = 4 << 20;
/// Bytes of the device to a bit: the least QEMU allows.
const GRANULARITY: u32 = 512;

/// Of all bitmaps this one alone is the memory stream's: those that say what of a disk is still to be copied stay.
pub(crate) fn mapping() -> qmp::BitmapMigrationNodeAlias {
    let name = || ANCHOR.to_owned();
    let bitmap = qmp::BitmapMigrationBitmapAlias { name: name(), alias: name(), transform: None };
    qmp::BitmapMigrationNodeAlias { node_name: name(), alias: name(), bitmaps: vec![bitmap] }
}

/// Versions of QEMU, major and minor, that go over memory again under an anchor.
const ANCHORS_HOLD: std::ops::RangeInclusive<(i64, i64)> = (7, 2)..=(8, 2);

impl Guest {
    /// At both ends, before memory moves; at the destination that is all, for there the bitmap comes with the guest.
    pub(crate) async fn add_anchor_node(&self) -> Result<(), HypervisorError> {
        let base = qmp::BlockdevOptionsBase {
            node_name: Some(ANCHOR.to_owned()),
            auto_read_only: None,
            cache: None,
            detect_zeroes: None,
            discard: None,
            force_share: None,
            read_only: None,
        };
        let size = Some(BITS * i64::from(GRANULARITY));
        let null_co = qmp::BlockdevOptionsNull { size, read_zeroes: Some(true), latency_ns: None };
        self.execute(qmp::blockdev_add(qmp::BlockdevOptions::null_co { base, null_co })).await.map(drop)
    }

    /// What an earlier migration left: a node that was cancelled in its last moment may have stayed inactive, and QEMU ends
    /// with a failed assertion when it is to make it so again (block.c, `bdrv_inactivate_recurse`).
    async fn remove_anchor_node(&self) -> Result<(), HypervisorError> {
        let nodes = self.execute(qmp::query_named_block_nodes { flat: Some(true) }).await?;
        if nodes.iter().any(|node| node.node_name.as_deref() == Some(ANCHOR)) {
            self.execute(qmp::blockdev_del { node_name: ANCHOR.to_owned() }).await?;
        }
        Ok(())
    }

    /// Source: from now on a migration does not end before [`Guest::let_stop`].
    pub(crate) async fn drop_anchor(&self) -> Result<(), HypervisorError> {
        let qmp::VersionTriple { major, minor, .. } = self.execute(qmp::query_version {}).await?.qemu;
        if !ANCHORS_HOLD.contains(&(major, minor)) {
            return Err(HypervisorError::Version { guest: self.name().clone(), major, minor });
        }
        self.remove_anchor_node().await?;
        self.add_anchor_node().await?;
        let bitmap = qmp::BlockDirtyBitmapAdd {
            node: ANCHOR.to_owned(),
            name: ANCHOR.to_owned(),
            granularity: Some(GRANULARITY),
            persistent: None,
            disabled: None,
        };
        self.execute(qmp::block_dirty_bitmap_add(bitmap)).await.map(drop)
    }
}
