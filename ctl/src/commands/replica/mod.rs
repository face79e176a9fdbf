//! `throughline replica`.

mod promote;
mod reverse;
mod show;
mod testing;

use clap::{Args, Subcommand};
use throughline_wire::v1::{
    CreateReplicaRequest, DeleteReplicaRequest, GetReplicaRequest, ListReplicasRequest, ListReplicasResponse,
};

use crate::{
    failure::Failure,
    session::{PAGE_SIZE, Session, all_pages},
    units,
};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  throughline replica create db-1 --host h2
  throughline replica list
  throughline replica test db-1 --host h2
  throughline replica promote db-1 --host h2
  throughline replica reverse db-1";

/// Subcommands of `replica`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep a replica of a guest's disks at another host
    #[command(after_help = "\
EXAMPLES:
  throughline replica create db-1 --host h2
  throughline replica create db-1 --host h2 --every 5m --keep 12 --bandwidth 500Mbit
  throughline replica create db-1 --host h2 --lag 30s")]
    Create(Create),
    /// Show one replica and its restore points
    #[command(after_help = "\
EXAMPLES:
  throughline replica get db-1 --host h2
  throughline replica get db-1 --host h2 -o json | jq '.points[].number'")]
    Get(Which),
    /// List all replicas, and which are LATE
    #[command(after_help = "\
A replica is LATE when its newest point is further behind than it should be (--lag; or a third more
than --every, and ten seconds), or when it has none.

EXAMPLES:
  throughline replica list
  throughline replica list --guest db-1
  throughline replica list -o json | jq '.replicas[] | select((.lag_ms // infinite) > .late_ms)'")]
    List {
        /// Only of this guest
        #[arg(long, default_value = "", hide_default_value = true)]
        guest: String,
    },
    /// Keep a replica no longer, and delete what there is of it
    #[command(after_help = "\
EXAMPLES:
  throughline replica delete db-1 --host h2")]
    Delete(Which),
    /// Test a failover: boot a guest from the replica on no network, beside the guest; or end that
    #[command(after_help = testing::EXAMPLES)]
    Test(testing::Test),
    /// Fail over: start a guest from its replica, its host being gone
    #[command(after_help = promote::EXAMPLES)]
    Promote(promote::Promote),
    /// Keep a replica of a guest that failed over at the host it came from
    #[command(after_help = reverse::EXAMPLES)]
    Reverse(reverse::Reverse),
}

/// What a replica is found by.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The guest
    guest: String,
    /// Host that keeps the replica
    #[arg(long)]
    host: String,
}

/// Arguments of `replica create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The guest; it needs a disk
    guest: String,
    /// Host that is to keep the replica; it need not be connected yet
    #[arg(long)]
    host: String,
    #[command(flatten)]
    terms: Terms,
}

/// How often, how many, how fast.
#[derive(Debug, Args)]
struct Terms {
    /// How long after one point the next is begun, in seconds or with a unit, 1s to 24h [default: 60, without --lag]
    #[arg(long = "every", value_name = "TIME", value_parser = units::duration_ms, conflicts_with = "target_lag_ms")]
    every_ms: Option<u32>,
    /// How far behind the replica may be, 2s to 24h: points are begun early enough for that
    #[arg(long = "lag", value_name = "TIME", value_parser = units::duration_ms)]
    target_lag_ms: Option<u32>,
    /// How many points are kept, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 3)]
    keep: u32,
    /// Bandwidth it may take, at least 1MiB/s: 100MiB, 1Gbit [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    bandwidth: Option<u64>,
}

impl Terms {
    /// The request for such a replica.
    fn at(self, guest: String, host: String) -> CreateReplicaRequest {
        let Self { every_ms, target_lag_ms, keep, bandwidth } = self;
        let (every_ms, target_lag_ms) = (every_ms.unwrap_or_default(), target_lag_ms.unwrap_or_default());
        CreateReplicaRequest { guest, host, every_ms, keep, bandwidth: bandwidth.unwrap_or_default(), target_lag_ms }
    }
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stood in the way.
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut fabric = session.connect().await?;
        match self {
            Self::Create(Create { guest, host, terms }) => {
                let what = format!("create a replica of guest {guest} at host {host}");
                let request = terms.at(guest, host);
                session.output.one(&session.answer(&what, fabric.create_replica(request)).await?)
            }
            Self::Get(Which { guest, host }) => {
                let what = format!("get the replica of guest {guest} at host {host}");
                let request = GetReplicaRequest { guest, host };
                session.output.one(&session.answer(&what, fabric.get_replica(request)).await?)
            }
            Self::List { guest } => {
                let replicas = all_pages(async |page_token| {
                    let request = ListReplicasRequest { page_size: PAGE_SIZE, page_token, guest: guest.clone() };
                    let page = session.answer("list replicas", fabric.list_replicas(request)).await?;
                    Ok((page.replicas, page.next_page_token))
                });
                let all = ListReplicasResponse { replicas: replicas.await?, next_page_token: String::new() };
                session.output.list(&all.replicas, &all)
            }
            Self::Delete(Which { guest, host }) => {
                let what = format!("delete the replica of guest {guest} at host {host}");
                let done = format!("replica of guest {guest} at host {host} deleted");
                let request = DeleteReplicaRequest { guest, host };
                let response = session.answer(&what, fabric.delete_replica(request)).await?;
                session.output.done(&done, &response)
            }
            Self::Test(test) => test.run(session, fabric).await,
            Self::Promote(promote) => promote.run(session, fabric).await,
            Self::Reverse(reverse) => reverse.run(session, fabric).await,
        }
    }
}
