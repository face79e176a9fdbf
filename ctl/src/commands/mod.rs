//! The subcommands: one module a noun, its arguments beside what it does with them.

mod completions;
mod endpoint;
mod guest;
mod host;
mod migrate;
mod migration;
mod network;
mod pki;
mod port;
mod replica;

use clap::Subcommand;

use crate::{failure::Failure, session::Session};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Networks: layer-2 segments, one VXLAN network identifier each
    #[command(subcommand, after_help = network::EXAMPLES)]
    Network(network::Command),
    /// Hosts: machines that run guests and one agent each
    #[command(subcommand, after_help = host::EXAMPLES)]
    Host(host::Command),
    /// Guests: virtual machines
    #[command(subcommand, after_help = guest::EXAMPLES)]
    Guest(guest::Command),
    /// Endpoints: ports that are not a guest's and stay on their host (a gateway, a container)
    #[command(subcommand, after_help = endpoint::EXAMPLES)]
    Endpoint(endpoint::Command),
    /// Move a running guest to another host, and watch until it is there
    Migrate(migrate::Migrate),
    /// Migrations: those under way and those that ended
    #[command(subcommand, after_help = migration::EXAMPLES)]
    Migration(migration::Command),
    /// Replicas: restore points of a guest's disks at another host, and failing over to them
    #[command(subcommand, after_help = replica::EXAMPLES)]
    Replica(replica::Command),
    /// Certificates: a private CA in a directory, for fabrics that have none
    #[command(subcommand, after_help = pki::EXAMPLES)]
    Pki(pki::Command),
    /// Print a completion script for a shell
    Completions(completions::Completions),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stood in the way; it carries the exit code.
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Network(command) => command.run(session).await,
            Self::Host(command) => command.run(session).await,
            Self::Guest(command) => command.run(session).await,
            Self::Endpoint(command) => command.run(session).await,
            Self::Migrate(command) => command.run(session).await,
            Self::Migration(command) => command.run(session).await,
            Self::Replica(command) => command.run(session).await,
            Self::Pki(command) => command.run(session.output),
            Self::Completions(command) => command.run(),
        }
    }
}
