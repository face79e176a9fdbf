//! What of a replica is still to be sent: dirty bitmaps on each disk's image. QEMU keeps them as long as the guest runs on this
//! host, whatever becomes of agents; memory's stream must not take them along, see [`crate::anchor`].
//!
//! * [`SINCE`]: what has been written since the last point that counts. Only a new one makes it less.
//! * [`LEFT`]: what a try has not sent yet, with what was written since its instant. It is less than the other, and holds only
//!   where the replica still has what that try sent: a keeper that was killed may have lost it. So it goes with [`WITH`], an empty one
//!   whose name says which keeper that was.
//! * [`NAME`]: an empty one whose name says which replica and which of its points the others are of.
//!
//! Each may mark too much, for a block that is sent again is the same; none may mark too little.

use std::os::fd::OwnedFd;

use qapi::qmp::{self, TransactionAction as Action};
use throughline_cutover::DiskName;

use super::{
    super::{bitmap::Records, nodes},
    names::{KeeperId, PointName, ReplicaName},
    options,
};
use crate::{Guest, HypervisorError};

/// Written since the last point.
pub(super) const SINCE: &str = "throughline-replica";
/// Left by the last try.
pub(super) const LEFT: &str = "throughline-replica-left";
/// Written since just before a point's instant, until [`LEFT`] takes that over.
pub(super) const FRESH: &str = "throughline-replica-fresh";
/// What comes after it is the keeper that [`LEFT`] is of.
const WITH: &str = "throughline-replica-with-";
/// What comes after it is the replica's name, a slash, and the point's or nothing.
const NAME: &str = "throughline-replica-of-";

/// What a guest's disks have on record for a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// The replica.
    pub replica: ReplicaName,
    /// Since which of its points: the last that was completed. `None`: there is none yet.
    pub point: Option<PointName>,
    /// A point was begun after that, and not completed: what it left with this keeper is on record too.
    pub left: Option<KeeperId>,
}

impl ReplicaRecord {
    /// The name of the bitmap that says so.
    fn name(replica: &ReplicaName, point: Option<&PointName>) -> String {
        format!("{NAME}{replica}/{}", point.map(PointName::to_string).unwrap_or_default())
    }

    /// What a disk's bitmaps say; `None` if nothing that could be gone on with.
    fn read(bitmaps: &[String]) -> Option<Self> {
        let has = |name: &str| bitmaps.iter().any(|bitmap| bitmap == name);
        let (replica, point) = bitmaps.iter().find_map(|bitmap| bitmap.strip_prefix(NAME))?.split_once('/')?;
        let point = if point.is_empty() { None } else { Some(point.parse().ok()?) };
        let with = bitmaps.iter().find_map(|bitmap| bitmap.strip_prefix(WITH));
        let left = with.filter(|_| has(LEFT)).and_then(|keeper| keeper.parse().ok());
        has(SINCE).then_some(Self { replica: replica.parse().ok()?, point, left })
    }
}

fn is_ours(bitmap: &str) -> bool {
    [SINCE, LEFT, FRESH].contains(&bitmap) || bitmap.starts_with(NAME) || bitmap.starts_with(WITH)
}

/// The name of the bitmap that says whom [`LEFT`] is of.
pub(super) fn with(keeper: &KeeperId) -> String {
    format!("{WITH}{keeper}")
}

impl Guest {
    /// Source: from now on records what the guest writes to its disks, all of them, for a new replica; nothing else is marked yet
    /// ([`Guest::merge_replica_chart`]), and it has no name ([`Guest::name_replica`]). Another replica's record is forgotten.
    ///
    /// # Errors
    /// Those of any command, and of [`Guest::abandon_point`].
    pub async fn begin_replica(&self) -> Result<(), HypervisorError> {
        self.forget_replica().await?;
        let disks = self.disks().await?;
        self.transact(disks.iter().map(|disk| options::add(disk, SINCE, Records::Writes)).collect()).await
    }

    /// Source: marks, besides, what a `chart` marks: see [`Guest::merge_chart`]. The first point has to have all that is in a disk:
    /// a chart of where a raw one has data, drawn after [`Guest::begin_replica`], or of the whole disk.
    ///
    /// # Errors
    /// As [`Guest::merge_chart`].
    pub async fn merge_replica_chart(&self, disk: &DiskName, chart: OwnedFd) -> Result<(), HypervisorError> {
        self.merge_chart_into(disk, chart, SINCE).await
    }

    /// Source: the record of each disk is whole from here on, and a point of `replica` may be sent by it.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if it is named already.
    pub async fn name_replica(&self, replica: &ReplicaName) -> Result<(), HypervisorError> {
        let name = ReplicaRecord::name(replica, None);
        let disks = self.disks().await?;
        self.transact(disks.iter().map(|disk| options::add(disk, &name, Records::Nothing)).collect()).await
    }

    /// Source: what its disks have on record. `None`: none, or not all of them, so that only a new replica can be begun.
    ///
    /// # Errors
    /// Those of any command.
    pub async fn replica_begun(&self) -> Result<Option<ReplicaRecord>, HypervisorError> {
        let mut records = Vec::new();
        for disk in self.disks().await? {
            records.push(ReplicaRecord::read(&self.bitmaps(&nodes::image(&disk)).await?));
        }
        let first = records.first().cloned().flatten();
        Ok(first.filter(|first| records.iter().all(|record| record.as_ref() == Some(first))))
    }

    /// Source: `point`, the last that was sent and ended, counts at the replica ([`Guest::make_point`]): from now on what is to be sent
    /// is what was written since its instant. Said again it changes nothing.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] if there is no replica on record, or no point was sent after the last; the record is then what it
    /// was.
    pub async fn complete_point(&self, point: &PointName) -> Result<(), HypervisorError> {
        let Some(record) = self.replica_begun().await? else {
            return Err(self.no_replica());
        };
        if record.point.as_ref() == Some(point) {
            return Ok(());
        }
        let old = ReplicaRecord::name(&record.replica, record.point.as_ref());
        let new = ReplicaRecord::name(&record.replica, Some(point));
        let Some(keeper) = record.left else {
            return Err(self.no_replica());
        };
        // All of it on all disks, or nothing.
        let actions = |disk: &DiskName| {
            let image = nodes::image(disk);
            [
                options::clear(&image, SINCE),
                options::merge((&image, LEFT), (&image, SINCE)),
                options::remove(&image, LEFT),
                options::remove(&image, &with(&keeper)),
                options::remove(&image, &old),
                options::add(disk, &new, Records::Nothing),
            ]
        };
        self.transact(self.disks().await?.iter().flat_map(actions).collect()).await
    }

    /// Source: forgets all replicas, and abandons a point that is being sent; a next replica is begun with everything.
    ///
    /// # Errors
    /// Those of any command, and of [`Guest::abandon_point`].
    pub async fn forget_replica(&self) -> Result<(), HypervisorError> {
        self.abandon_point().await?;
        for disk in self.disks().await? {
            let image = nodes::image(&disk);
            let ours: Vec<_> = self.bitmaps(&image).await?.into_iter().filter(|name| is_ours(name)).collect();
            // At once: without its record no name is to be believed.
            self.transact(ours.iter().map(|name| options::remove(&image, name)).collect()).await?;
        }
        Ok(())
    }

    /// All of it, or nothing.
    pub(super) async fn transact(&self, actions: Vec<Action>) -> Result<(), HypervisorError> {
        if actions.is_empty() {
            return Ok(());
        }
        self.execute(qmp::transaction { properties: None, actions }).await.map(drop)
    }

    pub(super) fn no_replica(&self) -> HypervisorError {
        HypervisorError::Refused {
            guest: self.name().clone(),
            command: "transaction",
            class: "GenericError".to_owned(),
            desc: "its disks have no replica on record".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bitmaps: &[&str]) -> Option<ReplicaRecord> {
        let bitmaps: Vec<_> = bitmaps.iter().map(|&name| name.to_owned()).collect();
        ReplicaRecord::read(&bitmaps)
    }

    #[test]
    fn a_record_is_read_as_it_was_named_and_only_if_it_is_whole() {
        let (replica, point): (ReplicaName, PointName) = ("7f-1".parse().unwrap(), "p-3".parse().unwrap());
        for point in [None, Some(point)] {
            let name = ReplicaRecord::name(&replica, point.as_ref());
            let record = |left| Some(ReplicaRecord { replica: replica.clone(), point: point.clone(), left });
            let keeper: KeeperId = "9a11-7".parse().unwrap();
            let left = with(&keeper);
            assert_eq!(read(&["throughline-copy", &name, SINCE]), record(None));
            assert_eq!(read(&[SINCE, LEFT, &name, FRESH]), record(None), "nobody is known to have the rest");
            assert_eq!(read(&[SINCE, &left, &name]), record(None));
            assert_eq!(read(&[SINCE, LEFT, &name, &left]), record(Some(keeper)));
            assert!(is_ours(&left));
            assert_eq!(read(&[&name, LEFT]), None, "nothing says what was written");
            assert!(is_ours(&name));
        }
        for bad in ["throughline-replica-of-", "throughline-replica-of-a", "throughline-replica-of-a/1", "a/p"] {
            assert_eq!(read(&[SINCE, bad]), None, "{bad}");
        }
        assert_eq!(read(&[SINCE]), None, "not whole yet");
        assert!(!is_ours("throughline-copy") && !is_ours("throughline-begun-by-7f"));
    }
}
