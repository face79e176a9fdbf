//! `throughline migration`.

use clap::{Args, Subcommand};
use throughline_wire::v1::{
    CancelMigrationRequest, GetMigrationRequest, ListMigrationsRequest, ListMigrationsResponse, Migration,
    ResolveMigrationRequest, Word,
};

use crate::{
    failure::Failure,
    output::Show,
    session::{PAGE_SIZE, Session, all_pages},
    units,
    watch::{self, disks, memory, on_stall, pause, phase, report_lines, stop_first},
};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  throughline migration list --guest web-1
  throughline migration watch 5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11
  throughline migration cancel 5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11";

/// Subcommands of `migration`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List migrations, newest first
    #[command(after_help = "\
EXAMPLES:
  throughline migration list
  throughline migration list --guest web-1 -o json | jq '.migrations[0].report'")]
    List {
        /// Only migrations of this guest
        #[arg(long, default_value = "", hide_default_value = true)]
        guest: String,
    },
    /// Show one migration, as it is or as it ended
    #[command(after_help = "\
EXAMPLES:
  throughline migration show 5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11")]
    Show {
        /// Its id
        id: String,
    },
    /// Watch a migration to its end, its history first
    #[command(after_help = "\
Exit codes as for migrate: 0 when the guest is there, 7 when the move was undone. Ctrl-C ends the
watching, not the migration.

EXAMPLES:
  throughline migration watch 5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11
  throughline migration watch 5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11 -o json | jq -r .message")]
    Watch {
        /// Its id
        id: String,
    },
    /// Undo a migration that has not committed; the guest stays where it is
    #[command(after_help = "\
EXAMPLES:
  throughline migration cancel 5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11")]
    Cancel {
        /// Its id
        id: String,
    },
    /// End a migration that waits for a destination that is gone for good
    #[command(after_help = RESOLVING)]
    Resolve(Resolve),
}

const RESOLVING: &str = "\
A source that has told its destination to take the guest waits for the destination's word, however
long that takes: nobody else knows which of the two is to run it. If the destination's host is gone
for good, this is the word in its place. Cancel the migration first. Refused while the destination's
agent is connected, for then it answers itself.

WITH --guest-stays YOU VOUCH THAT THE DESTINATION DOES NOT RUN THE GUEST: its host is switched off,
or its QEMU of this guest has ended. The guest goes on at the source, where it may have been
standing since. The record takes a generation above any the destination can have come to: should
its agent ever return with the guest, that copy is ended. If it runs after all, it runs twice
until then.

WITH --guest-left YOU VOUCH THAT THE GUEST RUNS AT THE DESTINATION, only its agent cannot be
reached. The source ends what it has of the guest. If it does not run there, it is lost.

EXAMPLES:
  throughline migration resolve 5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11 --guest-stays
  throughline migration resolve 5f1c7a52-0c3d-4c8e-9a57-2f0e8f0a9a11 --guest-left";

/// Arguments of `migration resolve`.
#[derive(Debug, Args)]
pub(crate) struct Resolve {
    /// Its id
    id: String,
    #[command(flatten)]
    word: Vouched,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Vouched {
    /// The destination does not run the guest and never will: it goes on at the source
    #[arg(long)]
    guest_stays: bool,
    /// The guest runs at the destination: the source ends what it has of it
    #[arg(long)]
    guest_left: bool,
}

impl From<Vouched> for Word {
    fn from(word: Vouched) -> Self {
        if word.guest_stays { Self::GuestStays } else { Self::GuestLeft }
    }
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stood in the way.
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::List { guest } => list(session, &guest).await,
            Self::Show { id } => {
                let what = format!("get migration {id}");
                let mut fabric = session.connect().await?;
                session.output.one(&session.answer(&what, fabric.get_migration(GetMigrationRequest { id })).await?)
            }
            Self::Watch { id } => watch::to_the_end(session, &id, false).await,
            Self::Cancel { id } => {
                let what = format!("cancel migration {id}");
                let mut fabric = session.connect().await?;
                let request = CancelMigrationRequest { id };
                session.output.one(&session.answer(&what, fabric.cancel_migration(request)).await?)
            }
            Self::Resolve(Resolve { id, word }) => {
                let what = format!("resolve migration {id}");
                let mut fabric = session.connect().await?;
                let request = ResolveMigrationRequest { id, word: Word::from(word).into() };
                session.output.one(&session.answer(&what, fabric.resolve_migration(request)).await?)
            }
        }
    }
}

async fn list(session: &Session, guest: &str) -> Result<(), Failure> {
    let mut fabric = session.connect().await?;
    let migrations = all_pages(async |page_token| {
        let request = ListMigrationsRequest { page_size: PAGE_SIZE, page_token, guest: guest.to_owned() };
        let page = session.answer("list migrations", fabric.list_migrations(request)).await?;
        Ok((page.migrations, page.next_page_token))
    });
    let all = ListMigrationsResponse { migrations: migrations.await?, next_page_token: String::new() };
    session.output.list(&all.migrations, &all)
}

impl Show<9> for Migration {
    const HEADING: [&'static str; 9] =
        ["ID", "GUEST", "FROM", "TO", "PHASE", "ACCEPTED", "PAUSE", "STOPPED FIRST", "BY"];

    fn row(&self) -> [String; 9] {
        [
            self.id.clone(),
            self.guest.clone(),
            self.source_host.clone(),
            self.destination_host.clone(),
            phase(self),
            units::utc(self.created_at_ms),
            self.report.as_ref().and_then(pause).map(units::span).unwrap_or_default(),
            stop_first(self),
            self.requested_by.clone(),
        ]
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        let failure = self.failure.as_ref();
        let mut all = vec![
            ("id", self.id.clone()),
            ("request id", self.request_id.clone()),
            ("guest", self.guest.clone()),
            ("from", self.source_host.clone()),
            ("to", self.destination_host.clone()),
            ("phase", phase(self)),
            ("failure", failure.map(|failure| format!("{} ({})", failure.message, failure.reason)).unwrap_or_default()),
            ("asked for by", self.requested_by.clone()),
            ("accepted", units::utc(self.created_at_ms)),
            ("ended", units::utc(self.ended_at_ms)),
            ("stopped first", stop_first(self)),
            ("if it stalls", on_stall(self)),
        ];
        all.extend(self.stalls.iter().map(|stall| ("stalled", stall.clone())));
        all.extend(self.progress.iter().filter_map(|it| Some(("disks", disks(it)?))));
        all.extend(self.progress.iter().map(|it| ("memory", memory(it))));
        all.extend(self.report.iter().flat_map(report_lines));
        all
    }
}
