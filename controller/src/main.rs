//! The daemon `throughline-controller`.

use std::{io::IsTerminal as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use throughline_confine::{Confined, confine};
use throughline_controller::{CallLimits, Config, KEEP_MIGRATIONS, serve};
use throughline_identity::{DAEMON_DIRECTORY, Door, Identity, Security};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// Keeps the fabric's record and moves its guests.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Where to serve gRPC, address and port
    #[arg(long, default_value = "127.0.0.1:7700", env = "THROUGHLINE_LISTEN")]
    listen: SocketAddr,
    /// Where the record is kept; made if it is not there
    #[arg(long, default_value = "/var/lib/throughline-controller", env = "THROUGHLINE_STATE_DIR")]
    state_dir: PathBuf,
    /// Directory of ca.pem, cert.pem (of `controller`), key.pem and crl.pem; changed files are used without a restart
    #[arg(long, value_name = "DIR", default_value = DAEMON_DIRECTORY, env = "THROUGHLINE_TLS")]
    tls: PathBuf,
    /// Serve plaintext and let everybody do anything; refused unless --listen is a loopback address
    #[arg(long)]
    insecure: bool,
    /// May a host that nobody announced join?
    #[arg(long, value_enum, default_value_t = Enrol::Open)]
    enroll: Enrol,
    /// Which operator has which role, one `NAME ROLE` a line; read again when it changes. Who is not in it has none. Default: `roles`
    /// in the directory of the certificates
    #[arg(long, value_name = "FILE", env = "THROUGHLINE_ROLES")]
    roles: Option<PathBuf>,
    /// The record was restored from a copy: until the next start, believe hosts that have guests at newer generations. A copy from
    /// before the last start is recognised without this
    #[arg(long)]
    restored: bool,
    #[command(flatten)]
    limits: Limits,
    /// Migrations that are over and kept with all that happened; of older ones only how they ended is known
    #[arg(long, value_name = "N", default_value_t = KEEP_MIGRATIONS as u32, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    keep_migrations: u32,
    /// How to write the log, on standard error; RUST_LOG says how much
    #[arg(long, value_enum, default_value_t = Log::Text)]
    log: Log,
}

const EXAMPLES: &str = "EXAMPLES:
  throughline pki init --dir /root/pki && cp -r /root/pki/controller /etc/throughline/tls
  throughline-controller --listen 192.0.2.10:7700
  throughline-controller --insecure";
/// How much one certificate may ask for.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Limits {
    /// Calls that one caller may begin in a second; twice as many at once after a quiet time
    #[arg(long, value_name = "N", default_value_t = CallLimits::default().per_second, value_parser = clap::value_parser!(u32).range(1..))]
    calls_per_second: u32,
    /// Calls that one caller may have under way
    #[arg(long, value_name = "N", default_value_t = CallLimits::default().under_way, value_parser = clap::value_parser!(u32).range(1..))]
    calls_under_way: u32,
    /// Watches that one caller may have open
    #[arg(long, value_name = "N", default_value_t = CallLimits::default().streams, value_parser = clap::value_parser!(u32).range(1..))]
    watches: u32,
    /// Migrations that one operator may have under way
    #[arg(long, value_name = "N", default_value_t = CallLimits::default().migrations, value_parser = clap::value_parser!(u32).range(1..))]
    migrations_per_operator: u32,
}

impl From<Limits> for CallLimits {
    fn from(limits: Limits) -> Self {
        Self {
            per_second: limits.calls_per_second,
            under_way: limits.calls_under_way,
            streams: limits.watches,
            migrations: limits.migrations_per_operator,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Enrol {
    /// Any agent that connects is taken in
    Open,
    /// Only hosts created before
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Log {
    /// Lines for people
    Text,
    /// One object a line
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    init_log(arguments.log);
    // Nothing it does needs a capability, whoever starts it; and before there is a second thread, which would keep them.
    match confine(&[]).context("privileges cannot be given up").and_then(|confined| run(arguments, confined)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: Arguments, confined: Confined) -> anyhow::Result<()> {
    tracing::info!(capabilities = %confined, "all privileges are given up");
    let Arguments { listen, state_dir, tls, insecure, enroll, roles, restored, limits, keep_migrations, .. } =
        arguments;
    let security = Security::of_daemon(&tls, insecure, &Identity::Controller)?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let door = Door::new(listener, security).with_context(|| format!("cannot serve on {listen}"))?;
    let address = door.address();
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    tracing::info!(%address, state_dir = %state_dir.display(), "serving");
    // Without identities there are no roles; with them there is no looking without one.
    let roles = roles.or_else(|| (!insecure).then(|| tls.join("roles")));
    let config = Config {
        open_enrolment: enroll == Enrol::Open,
        roles,
        restored,
        limits: limits.into(),
        keep_migrations: keep_migrations as usize,
        ..Config::new(state_dir)
    };
    serve(door, config, shutdown).await.context("the controller stopped")
}

fn init_log(log: Log) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match log {
        Log::Text => builder.init(),
        Log::Json => builder.json().init(),
    }
}
