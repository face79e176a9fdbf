//! `throughline`, the operator's command: networks, hosts, guests, and moving guests between hosts. It knows the
//! controller's public service and nothing else.

mod cli;
mod commands;
mod exit;
mod failure;
mod output;
mod session;
mod table;
mod units;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{cli::Cli, exit::Exit, failure::Failure, session::Session};

fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let session = Session::from(global);
    let done = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command.run(&session)),
        Err(error) => Err(Failure::new(Exit::Other, "RUNTIME", "start", error.to_string())),
    };
    done.map_or_else(|failure| failure.report(session.output), |()| Exit::Ok).into()
}
