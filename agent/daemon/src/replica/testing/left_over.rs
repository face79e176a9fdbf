//! The ends of tests that nobody ordered: their agent's, and of what a killed agent has left.

use std::{fs, io, time::Duration};

use throughline_cutover::{Failure, ReplicaId};
use throughline_hypervisor::Guest;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{RUN_DIR, end, test_name};
use crate::{host::Host, resident::hypervisor_failure};

/// How long an agent that ends waits for its tests' ends.
const LAST_WAIT: Duration = Duration::from_secs(10);

impl Host {
    /// Ends what a killed agent has left of tests. What cannot be ended is told of and left.
    pub async fn end_tests_left_over(&self) {
        let left = match fs::read_dir(self.config.state_dir.join("guests")) {
            Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return warn!(%error, "what is left of tests of replicas is not known"),
        };
        for id in left.filter_map(|name| name.strip_prefix(RUN_DIR)?.parse::<ReplicaId>().ok()) {
            match self.end_test_left_over(&id).await {
                Ok(()) => info!(replica = %id, "a test that an agent was killed over is ended"),
                Err(failure) => warn!(replica = %id, %failure, "a test that an agent was killed over has not ended"),
            }
        }
    }

    async fn end_test_left_over(&self, id: &ReplicaId) -> Result<(), Failure> {
        let found = Guest::adopt(test_name(id), self.test_dir(id), &self.confinement).await;
        match found.map_err(hypervisor_failure)? {
            Some(vm) => end(&vm).await,
            None => {
                let failed = |error| Failure::new("HYPERVISOR", format!("its files stay: {error}"));
                self.test_dir(id).remove().map_err(failed)
            }
        }
    }

    /// Ends all tests: this agent does.
    pub async fn end_tests(&self) {
        let all = self.keepers.all();
        all.iter().filter_map(|kept| kept.testing.now()).for_each(|test| test.end());
        let ends = async {
            for kept in &all {
                kept.testing.end().await;
            }
        };
        if timeout(LAST_WAIT, ends).await.is_err() {
            warn!("tests of replicas have not ended; the next agent ends them");
        }
    }
}
