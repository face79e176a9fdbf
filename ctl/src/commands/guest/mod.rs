//! `throughline guest`.

mod create;
mod disk;
mod power;
mod show;
mod wait;

use clap::{Args, Subcommand};
pub(super) use power::{UP_OR_DOWN, failed};
use throughline_wire::v1::{DeleteGuestRequest, DiskFate, GetGuestRequest, ListGuestsRequest, ListGuestsResponse};
pub(super) use wait::Wait;

use crate::{
    failure::Failure,
    session::{PAGE_SIZE, Session, all_pages},
};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  throughline guest create web-1 --host h1 --network blue --ip 10.0.0.10 \\
    --memory 1G --kernel /boot/vmlinuz
  throughline guest list --host h1
  throughline guest stop web-1
  throughline guest delete web-1";

/// Subcommands of `guest`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a guest, start it, and wait until it runs
    #[command(after_help = create::EXAMPLES)]
    Create(Box<create::Create>),
    /// Show one guest
    #[command(after_help = "\
EXAMPLES:
  throughline guest get web-1
  throughline guest get web-1 -o json | jq -r .state")]
    Get {
        /// Its name
        name: String,
    },
    /// List all guests
    #[command(after_help = "\
EXAMPLES:
  throughline guest list
  throughline guest list --host h1 -o json | jq -r '.guests[].spec.name'")]
    List {
        /// Only guests on this host
        #[arg(long, default_value = "", hide_default_value = true)]
        host: String,
    },
    /// Stop a guest and keep it, with its disks and addresses
    #[command(after_help = "\
EXAMPLES:
  throughline guest stop web-1
  throughline guest stop web-1 --cut-after 30s
  throughline guest stop web-1 --cut-after 0")]
    Stop(power::Stop),
    /// Start a guest that was stopped
    #[command(after_help = "\
EXAMPLES:
  throughline guest start web-1")]
    Start(power::Start),
    /// Stop a guest and forget it
    #[command(after_help = "\
EXAMPLES:
  throughline guest delete web-1
  throughline guest delete db-1 --delete-disks
  throughline guest delete db-1 --keep-disks")]
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        disks: Disks,
    },
}

/// What becomes of the guest's disks; one of the two is needed if it has any.
#[derive(Debug, Clone, Copy, Args)]
#[group(multiple = false)]
pub(crate) struct Disks {
    /// Delete its disks, with all that is on them
    #[arg(long)]
    delete_disks: bool,
    /// Leave its disks where they are on its host
    #[arg(long)]
    keep_disks: bool,
}

impl From<Disks> for DiskFate {
    fn from(disks: Disks) -> Self {
        match disks {
            Disks { delete_disks: true, .. } => Self::Delete,
            Disks { keep_disks: true, .. } => Self::Keep,
            Disks { .. } => Self::Unspecified,
        }
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
            Self::Create(create) => create.run(session, fabric).await,
            Self::Get { name } => {
                let what = format!("get guest {name}");
                session.output.one(&session.answer(&what, fabric.get_guest(GetGuestRequest { name })).await?)
            }
            Self::List { host } => {
                let guests = all_pages(async |page_token| {
                    let request = ListGuestsRequest { page_size: PAGE_SIZE, page_token, host: host.clone() };
                    let page = session.answer("list guests", fabric.list_guests(request)).await?;
                    Ok((page.guests, page.next_page_token))
                });
                let all = ListGuestsResponse { guests: guests.await?, next_page_token: String::new() };
                session.output.list(&all.guests, &all)
            }
            Self::Stop(stop) => stop.run(session, fabric).await,
            Self::Start(start) => start.run(session, fabric).await,
            Self::Delete { name, disks } => {
                let what = format!("delete guest {name}");
                let done = format!("guest {name} deleted");
                let request = DeleteGuestRequest { name, disks: DiskFate::from(disks).into() };
                let response = session.answer(&what, fabric.delete_guest(request)).await?;
                session.output.done(&done, &response)
            }
        }
    }
}
