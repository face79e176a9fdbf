//! `throughline replica reverse`: the way back, prepared.

use clap::Args;
use throughline_wire::v1::{GetGuestRequest, fabric_client::FabricClient};
use tonic::transport::Channel;

use super::Terms;
use crate::{exit::Exit, failure::Failure, session::Session};

pub(super) const EXAMPLES: &str = "\
The host need not be back yet. A promotion leads back as it led here, with what is lost by one: with
nothing lost a migration leads back, once the replica, and the disks that the guest left there, are
removed.

EXAMPLES:
  throughline replica reverse db-1
  throughline replica reverse db-1 --every 5m";

/// Arguments of `replica reverse`.
#[derive(Debug, Args)]
pub(crate) struct Reverse {
    /// The guest
    guest: String,
    #[command(flatten)]
    terms: Terms,
}

impl Reverse {
    /// Asks where the guest came from, and for a replica there.
    ///
    /// # Errors
    /// It never failed over, or a replica there was refused.
    pub(super) async fn run(self, session: &Session, mut fabric: FabricClient<Channel>) -> Result<(), Failure> {
        let Self { guest: name, terms } = self;
        let what = format!("reverse the replica of guest {name}");
        let guest = session.answer(&what, fabric.get_guest(GetGuestRequest { name: name.clone() })).await?;
        if guest.promoted_from.is_empty() {
            let message = format!("no replica of guest {name} was ever promoted, so it came from no other host");
            let next = session.hint(&format!("replica create {name} --host HOST"));
            return Err(Failure::new(Exit::Refused, "NEVER_PROMOTED", what, message).next(next));
        }
        let request = terms.at(name, guest.promoted_from);
        session.output.one(&session.answer(&what, fabric.create_replica(request)).await?)
    }
}
