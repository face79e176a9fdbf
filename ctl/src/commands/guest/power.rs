//! `throughline guest stop` and `start`.

use clap::Args;
use throughline_wire::v1::{self, Guest, GuestState, StartGuestRequest, StopGuestRequest, fabric_client::FabricClient};
use tonic::transport::Channel;

use super::wait::{Until, Wait};
use crate::{exit::Exit, failure::Failure, session::Session, units};

/// Arguments of `guest stop`.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Its name
    name: String,
    /// Cut its power if it still runs so long after it was asked to shut down, in seconds or with a unit; 0: at once, without asking
    #[arg(long = "cut-after", value_name = "TIME", value_parser = units::duration_ms_or_zero)]
    cut_after_ms: Option<u32>,
    #[command(flatten)]
    wait: Wait,
}

impl Stop {
    /// Stops it; waits until it has stopped unless told not to.
    ///
    /// # Errors
    /// It was refused, or did not stop in time.
    pub(super) async fn run(self, session: &Session, mut fabric: FabricClient<Channel>) -> Result<(), Failure> {
        let Self { name, cut_after_ms, wait } = self;
        let what = format!("stop guest {name}");
        let request = StopGuestRequest { name, stop: Some(v1::Stop { cut_after_ms }) };
        let guest = session.answer(&what, fabric.stop_guest(request)).await?;
        let until = Until {
            states: &[GuestState::Stopped],
            did_not: "it did not shut down",
            goes_on: "it is waited for on; --cut-after 0 cuts its power, `guest start` withdraws the wish",
        };
        session.output.one(&wait.until(session, fabric, guest, until).await?)
    }
}

/// Arguments of `guest start`.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Its name
    name: String,
    #[command(flatten)]
    wait: Wait,
}

impl Start {
    /// Starts it; waits until it runs unless told not to.
    ///
    /// # Errors
    /// It was refused, it failed, or it did not run in time.
    pub(super) async fn run(self, session: &Session, mut fabric: FabricClient<Channel>) -> Result<(), Failure> {
        let Self { name, wait } = self;
        let request = StartGuestRequest { name: name.clone() };
        let guest = session.answer(&format!("start guest {name}"), fabric.start_guest(request)).await?;
        let guest = wait.until(session, fabric, guest, RUNS).await?;
        session.output.one(&guest)?;
        let again = format!("put it right, then {} and start it again", session.hint(&format!("guest stop {name}")));
        if guest.state() == GuestState::Failed { Err(failed(&name, &guest).next(again)) } else { Ok(()) }
    }
}

/// It runs, or will not.
pub(super) const RUNS: Until = Until {
    states: &[GuestState::Running, GuestState::Failed],
    did_not: "it did not run",
    goes_on: "the controller keeps trying",
};

/// It runs, or has stopped as it was to, or will do neither.
pub(crate) const UP_OR_DOWN: Until =
    Until { states: &[GuestState::Running, GuestState::Stopped, GuestState::Failed], ..RUNS };

/// Why a guest does not run.
pub(crate) fn failed(name: &str, guest: &Guest) -> Failure {
    let detail = if guest.detail.is_empty() { "its host gave no reason" } else { &guest.detail };
    Failure::new(Exit::Other, "GUEST_FAILED", format!("start guest {name}"), detail)
}
