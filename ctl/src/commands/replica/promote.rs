//! `throughline replica promote`: fails a guest over, then looks until it runs.

use clap::Args;
use throughline_wire::v1::{GuestState, PromoteReplicaRequest, fabric_client::FabricClient};
use tonic::transport::Channel;

use crate::{
    commands::guest::{UP_OR_DOWN, Wait, failed},
    failure::Failure,
    session::Session,
};

pub(super) const EXAMPLES: &str = "\
The guest is its replica's host's from now on: it boots there from a restore point, with the same
addresses. What it wrote after that point is lost, or rather stays behind: its disks are kept on its
old host, and when that returns its copy of the guest is ended and never runs again.

YOU VOUCH THAT THE GUEST DOES NOT RUN ON ITS OLD HOST. That its agent is not connected does not
prove it: a host that is only cut off runs the guest on, and so do two hosts then, until it is
reached again. Switch it off first if you can.

While the old host is connected this is refused: migrate the guest instead. With --even-if-connected
(to go back to an earlier point, say) the copy there is ended first, and the guest begins when that
is confirmed. If it never is, stop that host's agent and promote again.

While a migration moves the guest this is refused as well: cancel that first, and resolve it if it
does not end by itself.

If the guest does not come up, it may be promoted again, also by another point.

EXAMPLES:
  throughline replica promote db-1 --host h2
  throughline replica promote db-1 --host h2 --point 41
  throughline replica promote db-1 --host h2 --point 41 --even-if-connected --no-wait";

/// Arguments of `replica promote`.
#[derive(Debug, Args)]
pub(crate) struct Promote {
    /// The guest
    guest: String,
    /// Host that keeps the replica
    #[arg(long)]
    host: String,
    /// Number of the point to go back to, as `replica get` shows it [default: the newest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    point: Option<u64>,
    /// Also if a host is connected that has the guest: its copy is ended first
    #[arg(long)]
    even_if_connected: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Promote {
    /// Promotes it; waits until the guest runs, or has stopped if it was, unless told not to.
    ///
    /// # Errors
    /// It was refused, the guest failed, or did not run in time.
    pub(super) async fn run(self, session: &Session, mut fabric: FabricClient<Channel>) -> Result<(), Failure> {
        let Self { guest: name, host, point, even_if_connected, wait } = self;
        let what = format!("promote the replica of guest {name} at host {host}");
        let again = session.hint(&format!("replica promote {name} --host {host} --point N"));
        let point = point.unwrap_or_default();
        let request = PromoteReplicaRequest { guest: name.clone(), host, point, even_if_connected };
        let guest = session.answer(&what, fabric.promote_replica(request)).await?;
        let guest = wait.until(session, fabric, guest, UP_OR_DOWN).await?;
        session.output.one(&guest)?;
        let again = format!("put it right, or go back to another point: {again}");
        if guest.state() == GuestState::Failed { Err(failed(&name, &guest).next(again)) } else { Ok(()) }
    }
}
