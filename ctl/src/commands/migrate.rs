//! `throughline migrate`.

use clap::Args;
use throughline_wire::v1::{MigrateGuestRequest, MigrationLimits};
use uuid::Uuid;

use crate::{
    exit::Exit,
    failure::Failure,
    session::{Session, interruptible},
    units, watch,
};

/// Arguments of `migrate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --detach the command ends when the migration has ended: 0 when the guest is there, 7 when
the move was undone and the guest runs on where it was. Ctrl-C ends the watching, not the migration.

EXAMPLES:
  throughline migrate web-1 --to h2
  throughline migrate web-1
  throughline migrate web-1 --to h2 --longest-pause 50 --bandwidth 10Gbit --deadline 5m
  throughline migrate web-1 --to h2 --request-id nightly-web-1 --detach -o json | jq -r .id
  throughline migrate web-1 --to h2 -o json | jq -r .migration.phase")]
pub(crate) struct Migrate {
    /// Guest to move
    guest: String,
    /// Host to move it to; the fabric chooses when not given
    #[arg(long, value_name = "HOST", default_value = "", hide_default_value = true)]
    to: String,
    /// Name of this request: the same one twice gives the same migration, never a second; random when not given
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Longest pause to aim for, milliseconds, 1 to 60000 (default 300)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    longest_pause: Option<u32>,
    /// Bandwidth for memory, as 10Gbit or 1000MiB a second; a plain number counts bytes (default 10Gbit)
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    bandwidth: Option<u64>,
    /// Time for everything before commit, as 90s or 5m; past it the migration is aborted (default 5m)
    #[arg(long, value_name = "TIME", value_parser = units::duration_ms)]
    deadline: Option<u32>,
    /// Watch until it has ended (the default, on a terminal or not)
    #[arg(long, conflicts_with = "detach")]
    watch: bool,
    /// Return when the controller has accepted it
    #[arg(long)]
    detach: bool,
}

impl Migrate {
    /// Begins the migration; watches it to its end unless told not to.
    ///
    /// # Errors
    /// It was refused, it was aborted, or the controller could not be asked how it ended.
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        let detach = self.detach;
        let request = self.into_request();
        let what = format!("migrate guest {}", request.guest);
        let unknown = format!(
            "see whether it was accepted: {}; repeating it with --request-id {} starts no second one",
            session.hint(&format!("migration list --guest {}", request.guest)),
            request.request_id
        );
        let accepted = async {
            let mut fabric = session.connect().await?;
            let answer = session.answer(&what, fabric.migrate_guest(request)).await;
            answer.map_err(|failure| if failure.is_unreachable() { failure.next(&unknown) } else { failure })
        };
        let accepted = interruptible(accepted, || {
            Failure::new(Exit::Interrupted, "INTERRUPTED", &what, "the controller has not answered yet").next(&unknown)
        });
        let migration = accepted.await?;
        if detach { session.output.one(&migration) } else { watch::to_the_end(session, &migration.id, true).await }
    }

    fn into_request(self) -> MigrateGuestRequest {
        let limits = MigrationLimits {
            longest_pause_ms: self.longest_pause.unwrap_or_default(),
            bandwidth: self.bandwidth.unwrap_or_default(),
            deadline_ms: self.deadline.unwrap_or_default(),
        };
        MigrateGuestRequest {
            request_id: self.request_id.unwrap_or_else(|| Uuid::new_v4().to_string()),
            guest: self.guest,
            destination_host: self.to,
            limits: Some(limits),
        }
    }
}
