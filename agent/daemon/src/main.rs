//! The agent's daemon.

use std::io::IsTerminal as _;

use clap::Parser as _;
use throughline_agent::{
    config::{Config, LogFormat},
    privilege, server,
};
use throughline_confine::{Confined, confine};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    // Before there is a second thread: each has capabilities of its own, those of the one that started it.
    let confined = confine(&privilege::kept(config.peer_only))?;
    run(config, confined)
}

#[tokio::main(worker_threads = 2)]
async fn run(config: Config, confined: Confined) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    match config.log {
        LogFormat::Text => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init(),
        LogFormat::Json => tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init(),
    }
    tracing::info!(capabilities = %confined, "all other privileges are given up");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    server::run(config, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await
}
