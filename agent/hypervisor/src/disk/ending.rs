//! How jobs that send disks elsewhere are ended, whatever the other end does.

use std::time::Duration;

use qapi::qmp;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::jobs::is_over;
use crate::{Guest, HypervisorError};

/// How long jobs may take to give up.
const ABANDON_DEADLINE: Duration = Duration::from_secs(5);
/// How often QEMU is asked meanwhile, but for the beginning: then it is asked again as soon as it has answered.
const POLL: Duration = Duration::from_millis(5);
const AT_ONCE: Duration = Duration::from_millis(20);

/// Those of QEMU's jobs that are meant, in the order in which they are to end.
pub(super) type Meant = fn(&[qmp::JobInfo]) -> Vec<&qmp::JobInfo>;

impl Guest {
    /// Cuts every stream of a disk whose node is `meant`, past all that QEMU may be waiting for in the main loop: a request the
    /// other end does not answer, say, when it stops the guest.
    pub(super) async fn cut_streams(&self, meant: fn(&str) -> bool) -> Result<(), HypervisorError> {
        for instance in self.execute_past(qmp::query_yank {}).await? {
            let qmp::YankInstance::block_node(node) = &instance else { continue };
            if !meant(&node.node_name) {
                continue;
            }
            let name = node.node_name.clone();
            match self.execute_past(qmp::yank { instances: vec![instance] }).await {
                Ok(_) => {}
                // It has just gone.
                Err(HypervisorError::Refused { desc, .. }) => {
                    warn!(guest = %self.name(), stream = name, desc, "a disk's stream was not cut");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Cancels jobs, waits until they have given up, and has QEMU forget them.
    pub(super) async fn end_jobs(&self, meant: Meant) -> Result<(), HypervisorError> {
        let jobs = self.execute(qmp::query_jobs {}).await?;
        for job in meant(&jobs).into_iter().filter(|job| !is_over(job)) {
            let cancel = qmp::block_job_cancel { device: job.id.clone(), force: Some(true) };
            // One that ends at this moment is refused.
            self.allow_refusal(cancel).await?;
        }
        for job in self.jobs_over(meant, "block-job-cancel", ABANDON_DEADLINE).await? {
            self.allow_refusal(qmp::job_dismiss { id: job.id }).await?;
        }
        Ok(())
    }

    /// Waits until none of those jobs does anything, and gives them.
    pub(super) async fn jobs_over(
        &self,
        meant: Meant,
        command: &'static str,
        after: Duration,
    ) -> Result<Vec<qmp::JobInfo>, HypervisorError> {
        let started = Instant::now();
        loop {
            let jobs = self.execute(qmp::query_jobs {}).await?;
            let meant = meant(&jobs);
            if meant.iter().all(|job| is_over(job)) {
                return Ok(meant.into_iter().cloned().collect());
            }
            let waited = started.elapsed();
            if waited > after {
                return Err(HypervisorError::Deadline { guest: self.name().clone(), command, after });
            }
            // The guest may stand.
            if waited > AT_ONCE {
                sleep(POLL).await;
            }
        }
    }

    /// Names of all nodes.
    pub(super) async fn node_names(&self) -> Result<Vec<String>, HypervisorError> {
        let nodes = self.execute(qmp::query_named_block_nodes { flat: Some(true) }).await?;
        Ok(nodes.into_iter().filter_map(|node| node.node_name).collect())
    }
}
