//! What is still to be copied of a disk: a dirty bitmap on its image, in which every write of the guest shows too.

use std::os::fd::OwnedFd;

use qapi::qmp;
use throughline_cutover::DiskName;

use super::{nodes, options};
use crate::{Guest, HypervisorError};

/// Its name. Memory's stream must not take it along, see [`crate::anchor`].
pub(super) const COPY: &str = "throughline-copy";
/// Beside it: an empty one whose name says which copying that is of. QEMU keeps it as long as the other, whatever becomes of agents.
const BEGUN_BY: &str = "throughline-begun-by-";
/// Bytes of the disk to a bit.
pub(super) const GRANULARITY: u32 = 1 << 16;

/// What a bitmap is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Records {
    /// What is written from now on.
    Writes,
    /// Nothing: its name says something.
    Nothing,
}

impl Guest {
    /// Source: from now on records what the guest writes to a disk; nothing else is marked yet. A record that is there is
    /// replaced: what an earlier try copied will be copied again, unless this is left out.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if the guest has no such disk, or it is being copied.
    pub async fn begin_bitmap(&self, disk: &DiskName) -> Result<(), HypervisorError> {
        self.forget_bitmap(disk).await?;
        self.execute(options::bitmap(disk, COPY, Records::Writes)).await.map(drop)
    }

    /// Source: what is still to be copied of a disk is on record, whole, from here on, and as `copy` it may be gone on with. To be
    /// said when [`Guest::mirror_disk`] has begun a first try: before that not everything is marked.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if that name is none.
    pub async fn name_copy(&self, disk: &DiskName, copy: &str) -> Result<(), HypervisorError> {
        let name = format!("{BEGUN_BY}{copy}");
        self.execute(options::bitmap(disk, &name, Records::Nothing)).await.map(drop)
    }

    /// Source: which copying the record of what is still to be copied is of, as an earlier try leaves it. `None`: there is none that
    /// could be gone on with.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn copy_begun(&self, disk: &DiskName) -> Result<Option<String>, HypervisorError> {
        let bitmaps = self.bitmaps(&nodes::image(disk)).await?;
        let recorded = bitmaps.iter().any(|bitmap| bitmap == COPY);
        let named = bitmaps.iter().find_map(|bitmap| bitmap.strip_prefix(BEGUN_BY));
        Ok(named.filter(|_| recorded).map(str::to_owned))
    }

    /// Source: marks, besides, what a `chart` marks: a qcow2 file of the disk's length with one bitmap in it, open for reading
    /// only.
    ///
    /// # Errors
    /// [`HypervisorError::Disk`] if the chart has not one bitmap; [`HypervisorError::Refused`] if it is no chart of this disk.
    pub async fn merge_chart(&self, disk: &DiskName, chart: OwnedFd) -> Result<(), HypervisorError> {
        self.merge_chart_into(disk, chart, COPY).await
    }

    /// The same into the bitmap called `target`.
    pub(super) async fn merge_chart_into(
        &self,
        disk: &DiskName,
        chart: OwnedFd,
        target: &str,
    ) -> Result<(), HypervisorError> {
        let opaque = Some(nodes::chart(disk));
        let added = self.execute_with(qmp::add_fd { fdset_id: None, opaque }, chart).await?;
        let merged = self.merge_from(disk, added.fdset_id, target).await;
        let removed = self.execute(qmp::remove_fd { fdset_id: added.fdset_id, fd: Some(added.fd) }).await;
        merged.and(removed.map(drop))
    }

    async fn merge_from(&self, disk: &DiskName, set: i64, target: &str) -> Result<(), HypervisorError> {
        let node = nodes::chart(disk);
        // One that an earlier agent was killed over.
        self.allow_refusal(qmp::blockdev_del { node_name: node.clone() }).await?;
        self.execute(options::chart(disk, set)).await?;
        let merged = async {
            let bitmaps = self.bitmaps(&node).await?;
            let [name] = bitmaps.as_slice() else {
                return Err(self.disk_error(disk, format!("its chart has {} bitmaps, not one", bitmaps.len())));
            };
            let marked = qmp::BlockDirtyBitmap { node: node.clone(), name: name.clone() };
            let merge = qmp::BlockDirtyBitmapMerge {
                node: nodes::image(disk),
                target: target.to_owned(),
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
        let node = nodes::image(disk);
        let ours = |name: &String| name == COPY || name.starts_with(BEGUN_BY);
        let mut names = self.bitmaps(&node).await?;
        names.retain(ours);
        // The name first: without its record it must not be believed.
        names.sort_by_key(|name| name == COPY);
        for name in names {
            let bitmap = qmp::BlockDirtyBitmap { node: node.clone(), name };
            self.execute(qmp::block_dirty_bitmap_remove(bitmap)).await?;
        }
        Ok(())
    }

    /// Names of the bitmaps on a node.
    pub(super) async fn bitmaps(&self, name: &str) -> Result<Vec<String>, HypervisorError> {
        let nodes = self.execute(qmp::query_named_block_nodes { flat: Some(true) }).await?;
        let node = nodes.into_iter().find(|node| node.node_name.as_deref() == Some(name));
        let bitmaps = node.and_then(|node| node.dirty_bitmaps).unwrap_or_default();
        Ok(bitmaps.into_iter().filter_map(|bitmap| bitmap.name).collect())
    }
}
