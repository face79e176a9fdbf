//! How a point is getting on, read from QEMU's jobs. Pure.

use qapi::qmp;
use throughline_cutover::DiskName;

use super::super::{jobs::is_over, nodes};

/// One disk's part of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointProgress {
    /// The disk.
    pub disk: DiskName,
    /// Bytes that are sent.
    pub sent: u64,
    /// Bytes it has in all, in this try.
    pub total: u64,
    /// Where it is.
    pub state: PointState,
}

/// Where a disk's part of a point is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointState {
    /// On its way.
    Sending,
    /// The replica's QEMU has all of it.
    Sent,
    /// It broke, and why. The guest's writes did not.
    Failed(String),
}

/// Those of the jobs that send points.
pub(super) fn ours(jobs: &[qmp::JobInfo]) -> Vec<&qmp::JobInfo> {
    jobs.iter().filter(|job| nodes::is_sending(&job.id)).collect()
}

/// How they get on, by name of the disk.
pub(super) fn by_disk(jobs: &[qmp::JobInfo]) -> Vec<PointProgress> {
    let disk = |job: &qmp::JobInfo| job.id.strip_prefix("send-").and_then(|name| name.parse().ok());
    let mut found: Vec<_> = jobs.iter().filter_map(|job| Some(progress(disk(job)?, job))).collect();
    found.sort_by(|one, other| one.disk.cmp(&other.disk));
    found
}

fn progress(disk: DiskName, job: &qmp::JobInfo) -> PointProgress {
    let bytes = |of: i64| u64::try_from(of).unwrap_or(0);
    let state = match (&job.error, is_over(job)) {
        (_, false) => PointState::Sending,
        (None, true) => PointState::Sent,
        (Some(why), true) => PointState::Failed(why.clone()),
    };
    PointProgress { disk, sent: bytes(job.current_progress), total: bytes(job.total_progress), state }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str, status: &str, error: Option<&str>) -> qmp::JobInfo {
        serde_json::from_value(serde_json::json!({
            "id": id, "type": "backup", "status": status, "current-progress": 5, "total-progress": 7, "error": error,
        }))
        .unwrap()
    }

    #[test]
    fn a_disk_is_sent_when_its_job_is_over_without_an_error() {
        let jobs = [
            job("send-c", "concluded", Some("torn")),
            job("send-b", "aborting", Some("torn")),
            job("send-a", "concluded", None),
            job("rest-a", "running", None),
            job("send-No", "running", None),
        ];
        let found: Vec<_> = by_disk(&jobs).into_iter().map(|it| (it.disk.to_string(), it.sent, it.state)).collect();
        let failed = PointState::Failed("torn".to_owned());
        let wanted = [("a", PointState::Sent), ("b", PointState::Sending), ("c", failed)];
        assert_eq!(found, wanted.map(|(disk, state)| (disk.to_owned(), 5, state)));
        assert_eq!(ours(&jobs).len(), 4);
    }
}
