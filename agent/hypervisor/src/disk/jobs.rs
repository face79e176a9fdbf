//! How a disk's copy is getting on, read from QEMU's jobs. Pure.

use std::collections::BTreeMap;

use qapi::qmp;
use throughline_cutover::DiskName;

/// One disk's copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskProgress {
    /// The disk.
    pub disk: DiskName,
    /// Bytes of the rest that are copied; what the mirror sent is not in it.
    pub copied: u64,
    /// Bytes the rest has in all, in this try.
    pub total: u64,
    /// Where it is.
    pub state: DiskState,
}

/// Where a disk's copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskState {
    /// The rest is on its way.
    Copying,
    /// The destination has all, and every write goes there too. A stream that breaks is noticed only at the next write, or when
    /// the mirror is to end.
    Mirrored,
    /// It broke, and why. The guest's writes did not.
    Failed(String),
}

/// A disk's two jobs.
#[derive(Default)]
pub(super) struct Jobs<'a> {
    pub(super) mirror: Option<&'a qmp::JobInfo>,
    pub(super) rest: Option<&'a qmp::JobInfo>,
}

/// The jobs that copy disks, by disk.
pub(super) fn by_disk(jobs: &[qmp::JobInfo]) -> BTreeMap<DiskName, Jobs<'_>> {
    let mut found: BTreeMap<DiskName, Jobs> = BTreeMap::new();
    for job in jobs {
        let disk = |prefix| job.id.strip_prefix(prefix).and_then(|name: &str| name.parse::<DiskName>().ok());
        if let Some(disk) = disk("mirror-") {
            found.entry(disk).or_default().mirror = Some(job);
        } else if let Some(disk) = disk("rest-") {
            found.entry(disk).or_default().rest = Some(job);
        }
    }
    found
}

/// Whether a job does nothing more.
pub(super) fn is_over(job: &qmp::JobInfo) -> bool {
    matches!(job.status, qmp::JobStatus::concluded | qmp::JobStatus::null)
}

impl Jobs<'_> {
    pub(super) fn state(&self) -> DiskState {
        let said = |job: &qmp::JobInfo| job.error.clone().map(DiskState::Failed);
        match (self.mirror, self.rest) {
            (None, _) => DiskState::Failed("no mirror is there".to_owned()),
            (Some(mirror), rest)
                if is_over(mirror) || rest.is_some_and(|rest| is_over(rest) && rest.error.is_some()) =>
            {
                let why = said(mirror).or_else(|| rest.and_then(said));
                why.unwrap_or_else(|| DiskState::Failed("its mirror has ended".to_owned()))
            }
            (Some(mirror), Some(rest)) if is_over(rest) && mirror.status == qmp::JobStatus::ready => {
                DiskState::Mirrored
            }
            (Some(_), _) => DiskState::Copying,
        }
    }

    pub(super) fn progress(&self, disk: DiskName) -> DiskProgress {
        let bytes = |of: fn(&qmp::JobInfo) -> i64| self.rest.map_or(0, |rest| u64::try_from(of(rest)).unwrap_or(0));
        DiskProgress {
            disk,
            copied: bytes(|rest| rest.current_progress),
            total: bytes(|rest| rest.total_progress),
            state: self.state(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str, kind: &str, status: &str, error: Option<&str>) -> qmp::JobInfo {
        serde_json::from_value(serde_json::json!({
            "id": id, "type": kind, "status": status, "current-progress": 5, "total-progress": 7, "error": error,
        }))
        .unwrap()
    }

    fn state(mirror: (&str, Option<&str>), rest: (&str, Option<&str>)) -> DiskState {
        let jobs = [job("mirror-a", "mirror", mirror.0, mirror.1), job("rest-a", "backup", rest.0, rest.1)];
        by_disk(&jobs)[&"a".parse().unwrap()].state()
    }

    #[test]
    fn a_disk_is_mirrored_when_the_rest_is_there_and_its_mirror_lives() {
        assert_eq!(state(("ready", None), ("running", None)), DiskState::Copying);
        assert_eq!(state(("running", None), ("concluded", None)), DiskState::Copying);
        assert_eq!(state(("ready", None), ("concluded", None)), DiskState::Mirrored);
        assert_eq!(state(("ready", None), ("aborting", Some("torn"))), DiskState::Copying, "it is not over yet");
        for broken in [
            state(("concluded", Some("torn")), ("running", None)),
            state(("ready", None), ("concluded", Some("torn"))),
            state(("concluded", Some("torn")), ("concluded", None)),
        ] {
            assert_eq!(broken, DiskState::Failed("torn".to_owned()));
        }
        let ended = state(("concluded", None), ("concluded", None));
        assert!(matches!(ended, DiskState::Failed(_)), "a mirror nobody ended is no mirror");
        let lone = [job("rest-a", "backup", "concluded", None)];
        assert!(matches!(by_disk(&lone)[&"a".parse().unwrap()].state(), DiskState::Failed(_)));
    }

    #[test]
    fn jobs_of_others_are_passed_over_and_bytes_are_the_rests() {
        let jobs = [
            job("mirror-a", "mirror", "ready", None),
            job("rest-a", "backup", "running", None),
            job("commit-a", "commit", "running", None),
            job("mirror-", "mirror", "ready", None),
        ];
        let found: Vec<_> = by_disk(&jobs).into_iter().map(|(disk, jobs)| jobs.progress(disk)).collect();
        let disk = "a".parse().unwrap();
        assert_eq!(found, [DiskProgress { disk, copied: 5, total: 7, state: DiskState::Copying }]);
    }
}
