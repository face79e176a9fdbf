//! The replica's end: restore points in the kept disks' files.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use qapi::{Command as _, qmp};
use throughline_cutover::DiskName;

use super::{
    super::nodes,
    names::{KeeperId, PointName},
    options,
};
use crate::{Guest, HypervisorError};

/// How long QEMU may take to make or delete a point: it counts anew how often each piece of each file is used. It has nothing else to
/// do.
const POINT_DEADLINE: Duration = Duration::from_secs(120);

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint {
    /// Its name, that of the snapshot in each of the files.
    pub name: PointName,
    /// When it was made, by this host's clock; its instant was before.
    pub made: SystemTime,
}

impl Guest {
    /// Keeper: who it is.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn keeper_id(&self) -> Result<KeeperId, HypervisorError> {
        let said = self.execute(qmp::query_uuid {}).await?.UUID;
        said.parse().map_err(|_| HypervisorError::Answer {
            guest: self.name().clone(),
            command: qmp::query_uuid::NAME,
            detail: format!("it calls itself {said:?}"),
        })
    }

    /// Keeper: makes what has come the point `name`, on all disks or on none. It is on the host's disk when this returns. To be called
    /// when the source has ended it and [`Guest::close_disks`] is done; where there is that point already nothing is done.
    ///
    /// # Errors
    /// [`HypervisorError::Disk`] while somebody may write a disk. [`HypervisorError::Refused`] if a file's list is full or has no room:
    /// it is not made.
    pub async fn make_point(&self, name: &PointName) -> Result<(), HypervisorError> {
        let disks = self.disks().await?;
        if let (Some(disk), false) = (disks.first(), self.exports().await?.is_empty()) {
            return Err(self.disk_error(disk, "it is open to its source"));
        }
        let text = name.to_string();
        let having = self.snapshots().await?;
        let points = common(&having);
        if points.iter().any(|point| point.name == *name) {
            return Ok(());
        }
        // Of one that a keeper was killed over: what not all disks have is no point.
        for (disk, all) in &having {
            let is_point = |name: &str| points.iter().any(|point| point.name.to_string() == name);
            let torn = all.iter().filter(|it| it.name.parse::<PointName>().is_ok() && !is_point(&it.name));
            for snapshot in torn {
                self.delete_snapshot(disk, &snapshot.name).await?;
            }
        }
        let actions = disks.iter().map(|disk| options::snapshot(disk, &text)).collect();
        self.execute_within(qmp::transaction { properties: None, actions }, POINT_DEADLINE).await.map(drop)
    }

    /// Keeper: its points, the oldest first: what all of its disks have.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn points(&self) -> Result<Vec<RestorePoint>, HypervisorError> {
        Ok(common(&self.snapshots().await?))
    }

    /// Keeper: deletes a point. Its room is the files' to use again, not the host's. Can be repeated, and does nothing where there
    /// is none.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if QEMU cannot.
    pub async fn delete_point(&self, name: &PointName) -> Result<(), HypervisorError> {
        let text = name.to_string();
        for (disk, snapshots) in self.snapshots().await? {
            if snapshots.iter().any(|snapshot| snapshot.name == text) {
                self.delete_snapshot(&disk, &text).await?;
            }
        }
        Ok(())
    }

    async fn delete_snapshot(&self, disk: &DiskName, name: &str) -> Result<(), HypervisorError> {
        let delete = qmp::blockdev_snapshot_delete_internal_sync {
            device: nodes::image(disk),
            id: None,
            name: Some(name.to_owned()),
        };
        self.execute_within(delete, POINT_DEADLINE).await.map(drop)
    }

    async fn snapshots(&self) -> Result<BTreeMap<DiskName, Vec<qmp::SnapshotInfo>>, HypervisorError> {
        let nodes = self.execute(qmp::query_named_block_nodes { flat: Some(true) }).await?;
        let of = |disk: DiskName| {
            let node = nodes.iter().find(|node| node.node_name.as_deref() == Some(&nodes::image(&disk)));
            let snapshots = node.and_then(|node| node.image.base.snapshots.clone()).unwrap_or_default();
            (disk, snapshots)
        };
        Ok(self.disks().await?.into_iter().map(of).collect())
    }
}

/// Those that all disks have, as old as the last of them.
fn common(snapshots: &BTreeMap<DiskName, Vec<qmp::SnapshotInfo>>) -> Vec<RestorePoint> {
    let named = |all: &[qmp::SnapshotInfo], name: &str| all.iter().find(|it| it.name == name).map(made);
    let first = snapshots.values().next().map(Vec::as_slice).unwrap_or_default();
    let mut points: Vec<_> = first
        .iter()
        .filter_map(|snapshot| {
            let name = snapshot.name.parse().ok()?;
            let times: Option<Vec<_>> = snapshots.values().map(|all| named(all, &snapshot.name)).collect();
            times?.into_iter().max().map(|made| RestorePoint { name, made })
        })
        .collect();
    points.sort_by_key(|point| point.made);
    points
}

fn made(snapshot: &qmp::SnapshotInfo) -> SystemTime {
    let seconds = u64::try_from(snapshot.date_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(snapshot.date_nsec).unwrap_or_default();
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, seconds: i64) -> qmp::SnapshotInfo {
        serde_json::from_value(serde_json::json!({
            "id": "1", "name": name, "date-sec": seconds, "date-nsec": 5, "vm-clock-sec": 0, "vm-clock-nsec": 0,
            "vm-state-size": 0,
        }))
        .unwrap()
    }

    #[test]
    fn a_point_is_what_all_disks_have() {
        let a = vec![snapshot("p-2", 20), snapshot("p-1", 10), snapshot("1", 3), snapshot("p-3", 30)];
        let b = vec![snapshot("p-1", 11), snapshot("p-2", 20), snapshot("1", 3)];
        let all = [("a", a), ("b", b)].map(|(disk, all)| (disk.parse().unwrap(), all)).into();
        let found: Vec<_> = common(&all).into_iter().map(|it| (it.name.to_string(), it.made)).collect();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, 5);
        assert_eq!(found, [("p-1".to_owned(), at(11)), ("p-2".to_owned(), at(20))]);
        assert!(common(&BTreeMap::new()).is_empty());
    }
}
