//! Looks until a guest has come to what was asked for.

use std::time::Duration;

use clap::Args;
use throughline_wire::v1::{GetGuestRequest, Guest, GuestState, fabric_client::FabricClient};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::{
    exit::Exit,
    failure::Failure,
    session::{Session, interruptible},
    units,
};

/// How often.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Whether to wait, and how long.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Wait {
    /// Wait until it is done or has failed (the default)
    #[arg(long, conflicts_with_all = ["no_wait"])]
    wait: bool,
    /// Return when the controller has accepted it
    #[arg(long)]
    no_wait: bool,
    /// How long to wait, in seconds or with a unit
    #[arg(long, value_name = "TIME", default_value = "60", value_parser = units::duration, conflicts_with = "no_wait")]
    wait_timeout: Duration,
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until {
    /// Any of these.
    pub(super) states: &'static [GuestState],
    /// What it did not do, if it does not come to that: "it did not run".
    pub(super) did_not: &'static str,
    /// What goes on, whoever waits: "it is being started".
    pub(super) goes_on: &'static str,
}

impl Wait {
    /// Waits, unless it is not to.
    ///
    /// # Errors
    /// It did not come to that in time, or somebody interrupts.
    pub(crate) async fn until(
        self,
        session: &Session,
        fabric: FabricClient<Channel>,
        guest: Guest,
        until: Until,
    ) -> Result<Guest, Failure> {
        if self.no_wait {
            return Ok(guest);
        }
        let name = guest.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
        let (what, next) = (format!("wait for guest {name}"), session.hint(&format!("guest get {name}")));
        let come = self.look(session, fabric, guest, until, name);
        let interrupted = || Failure::new(Exit::Interrupted, "INTERRUPTED", what, until.goes_on).next(next);
        interruptible(come, interrupted).await
    }

    async fn look(
        self,
        session: &Session,
        mut fabric: FabricClient<Channel>,
        mut guest: Guest,
        until: Until,
        name: String,
    ) -> Result<Guest, Failure> {
        let what = format!("wait for guest {name}");
        let began = Instant::now();
        while !until.states.contains(&guest.state()) {
            if began.elapsed() >= self.wait_timeout {
                let within = units::span(self.wait_timeout);
                let message = format!("{} within {within}; {}", until.did_not, until.goes_on);
                return Err(Failure::new(Exit::Unreachable, "WAIT_TIMEOUT", what, message)
                    .next(session.hint(&format!("guest get {name}"))));
            }
            sleep(LOOK_EVERY).await;
            guest = session.answer(&what, fabric.get_guest(GetGuestRequest { name: name.clone() })).await?;
        }
        Ok(guest)
    }
}
