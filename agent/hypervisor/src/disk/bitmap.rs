//! What is still to be copied of a disk: a dirty bitmap on its image, in which every write of the guest shows too.

use std::os::fd::OwnedFd;

use qapi::qmp;
use throughline_cutover::DiskName;

use super::{nodes, options};
use crate::{Guest, HypervisorError};

/// Its name. Memory's stream must not take it along, see [`crate::anchor`].
pub(super) const COPY: &str = "throughline-copy";
/// Bytes of the disk to a bit.
pub(super) const GRANULARITY: u32 = 1 << 16;

impl Guest {
    /// Source: from now on records what the guest writes to a disk; nothing else is marked yet. A record that is there is
    /// replaced: what an earlier try copied will be copied again, unless this is left out.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if the guest has no such disk, or it is being copied.
    pub async fn begin_bitmap(&self, disk: &DiskName) -> Result<(), HypervisorError> {
        self.forget_bitmap(disk).await?;
        self.execute(options::bitmap(disk)).await.map(drop)
    }

    /// Source: whether there is a record of what is still to be copied of a disk, as an earlier try leaves it.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn has_bitmap(&self, disk: &DiskName) -> Result<bool, HypervisorError> {
        let bitmaps = self.bitmaps(&nodes::image(disk)).await?;
        Ok(bitmaps.iter().any(|bitmap| bitmap == COPY))
    }

    /// Source: marks, besides, what a `chart` marks: a qcow2 file of the disk's length with one bitmap in it, open for reading
    /// only.
    ///
    /// # Errors
    /// [`HypervisorError::Disk`] if the chart has not one bitmap; [`HypervisorError::Refused`] if it is no chart of this disk.
    pub async fn merge_chart(&self, disk: &DiskName, chart: OwnedFd) -> Result<(), HypervisorError> {
        let opaque = Some(nodes::chart(disk));
        let added = self.execute_with(qmp::add_fd { fdset_id: None, opaque }, chart).await?;
        let merged = self.merge_from(disk, added.fdset_id).await;
        let removed = self.execute(qmp::remove_fd { fdset_id: added.fdset_id, fd: Some(added.fd) }).await;
        merged.and(removed.map(drop))
    }

    async fn merge_from(&self, disk: &DiskName, set: i64) -> Result<(), HypervisorError> {
        let node = nodes::chart(disk);
        self.execute(options::chart(disk, set)).await?;
        let merged = async {
            let bitmaps = self.bitmaps(&node).await?;
            let [name] = bitmaps.as_slice() else {
                return Err(self.disk_error(disk, format!("its chart has {} bitmaps, not one", bitmaps.len())));
            };
            let marked = qmp::BlockDirtyBitmap { node: node.clone(), name: name.clone() };
            let merge = qmp::BlockDirtyBitmapMerge {
                node: nodes::image(disk),
                target: COPY.to_owned(),
                bitmaps: vec![qmp::BlockDirtyBitmapOrStr::external(marked)],
            };
            self.execute(qmp::block_dirty_bitmap_merge(merge)).await.map(drop)
        }
        .await;
        let closed = self.execute(qmp::blockdev_del { node_name: node }).await;
        merged.and(closed.map(drop))
    }

    /// Source: forgets what is still to be copied, and what [`Guest::abandon_mirrors`] removes; a next try copies everything.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn forget_copies(&self) -> Result<(), HypervisorError> {
        self.abandon_mirrors().await?;
        for disk in self.disks().await? {
            self.forget_bitmap(&disk).await?;
        }
        Ok(())
    }

    async fn forget_bitmap(&self, disk: &DiskName) -> Result<(), HypervisorError> {
        if self.has_bitmap(disk).await? {
            let bitmap = qmp::BlockDirtyBitmap { node: nodes::image(disk), name: COPY.to_owned() };
            self.execute(qmp::block_dirty_bitmap_remove(bitmap)).await?;
        }
        Ok(())
    }

    /// Names of the bitmaps on a node.
    async fn bitmaps(&self, name: &str) -> Result<Vec<String>, HypervisorError> {
        let nodes = self.execute(qmp::query_named_block_nodes { flat: Some(true) }).await?;
        let node = nodes.into_iter().find(|node| node.node_name.as_deref() == Some(name));
        let bitmaps = node.and_then(|node| node.dirty_bitmaps).unwrap_or_default();
        Ok(bitmaps.into_iter().filter_map(|bitmap| bitmap.name).collect())
    }
}
