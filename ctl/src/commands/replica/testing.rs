//! `throughline replica test`: boots a guest from a restore point on no network, and looks until it runs; or ends that.

use std::time::Duration;

use clap::Args;
use throughline_wire::v1::{
    EndReplicaTestRequest, GetReplicaRequest, Replica, ReplicaTest, TestReplicaRequest, TestState,
    fabric_client::FabricClient,
};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::Which;
use crate::{
    exit::Exit,
    failure::Failure,
    session::{Session, interruptible},
    units,
};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) const EXAMPLES: &str = "\
A guest is booted at the replica's host from a restore point, as it would be after a failover, but
its network cards are plugged into nothing. Neither the guest, which may run on, nor the replica is
changed, and points keep coming; what the test's guest writes is thrown away with it. It has the
guest's memory beside what runs there. RUNNING means that QEMU runs: whether the guest came up, its
console log says, at that host, at the path shown.

It ends with --end, after --for, when its guest shuts down, when the replica is promoted or deleted,
and when the agent there or the controller is restarted or loses the other.

EXAMPLES:
  throughline replica test db-1 --host h2
  throughline replica test db-1 --host h2 --point 41 --for 20m
  throughline replica test db-1 --host h2 --end";

/// Arguments of `replica test`.
#[derive(Debug, Args)]
pub(crate) struct Test {
    #[command(flatten)]
    which: Which,
    /// Number of the point to boot from, as `replica get` shows it [default: the newest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    point: Option<u64>,
    /// How long the test lasts at most, in seconds or with a unit, 1s to 24h
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = units::duration_ms)]
    for_ms: u32,
    /// End the test
    #[arg(long, conflicts_with_all = ["point", "for_ms"])]
    end: bool,
    /// Return when the controller has accepted it
    #[arg(long)]
    no_wait: bool,
    /// How long to wait, in seconds or with a unit
    #[arg(long, value_name = "TIME", default_value = "60", value_parser = units::duration, conflicts_with = "no_wait")]
    wait_timeout: Duration,
}

/// Its last test, as far as it is known.
fn test_of(replica: &Replica) -> ReplicaTest {
    replica.test.clone().unwrap_or_default()
}

impl Test {
    /// Begins or ends it; waits until its guest runs, or nothing is left, unless told not to.
    ///
    /// # Errors
    /// It was refused, failed, or was not there in time.
    pub(super) async fn run(self, session: &Session, mut fabric: FabricClient<Channel>) -> Result<(), Failure> {
        let Which { guest, host } = self.which;
        let of = format!("the replica of guest {guest} at host {host}");
        let (what, reached): (_, &[TestState]) = match self.end {
            false => (format!("test {of}"), &[TestState::Running, TestState::Ended, TestState::Failed]),
            true => (format!("end the test of {of}"), &[TestState::Ended, TestState::Failed]),
        };
        let look = GetReplicaRequest { guest: guest.clone(), host: host.clone() };
        let again = session.hint(&format!("replica get {guest} --host {host}"));
        let mut replica = if self.end {
            session.answer(&what, fabric.end_replica_test(EndReplicaTestRequest { guest, host })).await?
        } else {
            let (point, for_ms) = (self.point.unwrap_or_default(), self.for_ms);
            session.answer(&what, fabric.test_replica(TestReplicaRequest { guest, host, point, for_ms })).await?
        };
        let since_ms = test_of(&replica).since_ms;
        let wait = async {
            let began = Instant::now();
            while !self.no_wait && !reached.contains(&test_of(&replica).state()) {
                if began.elapsed() >= self.wait_timeout {
                    let message = format!("not done within {}; it goes on", units::span(self.wait_timeout));
                    return Err(
                        Failure::new(Exit::Unreachable, "WAIT_TIMEOUT", what.clone(), message).next(again.clone())
                    );
                }
                sleep(LOOK_EVERY).await;
                replica = session.answer(&what, fabric.get_replica(look.clone())).await?;
                if test_of(&replica).since_ms != since_ms {
                    let message =
                        "the controller knows nothing of it any more: it was restarted, or another test was begun";
                    return Err(Failure::new(Exit::Other, "TEST_LOST", what.clone(), message).next(again.clone()));
                }
            }
            Ok(replica)
        };
        let interrupted =
            || Failure::new(Exit::Interrupted, "INTERRUPTED", what.clone(), "it goes on").next(again.clone());
        let replica = interruptible(wait, interrupted).await?;
        session.output.one(&replica)?;
        match test_of(&replica) {
            // That it fails is no failure of its end.
            test if test.state() == TestState::Failed && !self.end => {
                let failure = test.failure.unwrap_or_default();
                Err(Failure::new(Exit::Other, "TEST_FAILED", what, format!("{} ({})", failure.message, failure.reason)))
            }
            _ => Ok(()),
        }
    }
}
