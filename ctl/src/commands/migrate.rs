//! `throughline migrate`.

use clap::{Args, ValueEnum};
use throughline_wire::v1::{self, MigrateGuestRequest, MigrationLimits};
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
the move was undone and the guest stays where it was. Ctrl-C ends the watching, not the migration.

A guest that changes its memory faster than it can be sent does not converge: pass after pass leaves
as much. That is noticed after a few passes, and --on-stall says what is done about it.

EXAMPLES:
  throughline migrate web-1 --to h2
  throughline migrate web-1
  throughline migrate web-1 --to h2 --longest-pause 50 --bandwidth 10Gbit --deadline 5m
  throughline migrate web-1 --to h2 --on-stall throttle
  throughline migrate web-1 --to h2 --on-stall longer-pause --longest-pause-at-most 2000
  throughline migrate web-1 --to h2 --request-id nightly-web-1 --detach -o json | jq -r .id
  throughline migrate web-1 --to h2 -o json | jq -r .migration.phase
  throughline migrate web-1 --to h2 --stop --stop-within 2m --if-it-runs-on cut

A guest that is stopped moves stopped. --stop is for one that runs and cannot move as it runs: it is
asked to shut down, moves when it has, and boots where it has come to; with its addresses, without
what was in its memory. If the move is undone, it runs where it was. The command ends when the guest
has moved, BEFORE IT HAS BOOTED: `throughline guest get` says whether it runs.

--stop-within counts from when the controller accepts the move: until the guest's host has it as
stopped, a host's absence included. With --if-it-runs-on cut the host counts from when it hears of
it, cuts the power after that, and is given 30 s more. --deadline counts from the stop.")]
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
    /// What to do about a guest whose memory does not converge (default give-up)
    #[arg(long, value_name = "POLICY")]
    on_stall: Option<OnStall>,
    /// With --on-stall longer-pause: the longest pause that may come to be accepted, milliseconds, up to 60000
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    longest_pause_at_most: Option<u32>,
    /// Shut the guest down first, move it stopped, and start it there
    #[arg(long)]
    stop: bool,
    /// With --stop: how long it may take to shut down, as 90s or 5m, 24h at most (default 1m)
    #[arg(long, value_name = "TIME", requires = "stop", value_parser = units::duration_ms)]
    stop_within: Option<u32>,
    /// With --stop: what becomes of a guest that has not shut down by then (default stay)
    #[arg(long, value_name = "WHAT", requires = "stop")]
    if_it_runs_on: Option<RunsOn>,
    /// Bring disks whole that are over an image: they rest on none from then on, and the destination needs none
    #[arg(long)]
    flatten: bool,
    /// Watch until it has ended (the default, on a terminal or not)
    #[arg(long, conflicts_with = "detach")]
    watch: bool,
    /// Return when the controller has accepted it
    #[arg(long)]
    detach: bool,
}

/// What is done about a guest whose memory does not converge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnStall {
    /// Undo the move: costs the guest nothing
    GiveUp,
    /// Slow its processors, step by step, up to 95 %
    Throttle,
    /// Accept a longer pause, step by step, up to --longest-pause-at-most
    LongerPause,
    /// Refused: a guest with memory on two hosts dies with either
    PostCopy,
}

/// What becomes of a guest that was asked to shut down, to be moved, and did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RunsOn {
    /// It stays where it is, and the move is undone
    Stay,
    /// Its power is cut, and it moves
    Cut,
}

impl From<RunsOn> for v1::RunsOn {
    fn from(fate: RunsOn) -> Self {
        match fate {
            RunsOn::Stay => Self::Stay,
            RunsOn::Cut => Self::Cut,
        }
    }
}

impl From<OnStall> for v1::OnStall {
    fn from(policy: OnStall) -> Self {
        match policy {
            OnStall::GiveUp => Self::GiveUp,
            OnStall::Throttle => Self::Throttle,
            OnStall::LongerPause => Self::LongerPause,
            OnStall::PostCopy => Self::PostCopy,
        }
    }
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
            on_stall: self.on_stall.map_or(v1::OnStall::Unspecified, Into::into).into(),
            longest_pause_at_most_ms: self.longest_pause_at_most.unwrap_or_default(),
        };
        let stop_first = self.stop.then(|| v1::StopFirst {
            deadline_ms: self.stop_within.unwrap_or_default(),
            otherwise: self.if_it_runs_on.map_or(v1::RunsOn::Unspecified, Into::into).into(),
        });
        MigrateGuestRequest {
            request_id: self.request_id.unwrap_or_else(|| Uuid::new_v4().to_string()),
            guest: self.guest,
            destination_host: self.to,
            limits: Some(limits),
            stop_first,
            flatten: self.flatten,
        }
    }
}
