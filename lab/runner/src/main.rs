//! `throughline-lab`: plays a containerlab topology in network namespaces, and shows what Throughline does in it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};

mod bench;
mod chaos;
mod demo;
mod kept;
mod lab;
mod namespace;
mod operator;
mod play;
mod processes;
mod signals;
mod teardown;
mod topology;

use lab::Lab;
use topology::Topology;

/// Play a lab of several hosts on one machine.
#[derive(Debug, Parser)]
#[command(name = "throughline-lab", version)]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Place {
    /// The topology: a containerlab file; lab/three-hosts.clab.yml if absent, for the bench lab/five-hosts.clab.yml.
    #[arg(long, global = true, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Name of the lab; the topology's own if absent. Labs of different names do not disturb each other.
    #[arg(long, global = true)]
    name: Option<String>,
}

impl Place {
    fn find(&self, default: &str) -> Result<(Lab, Topology)> {
        let topology = Topology::read(self.topology.as_deref().unwrap_or(Path::new(default)))?;
        Ok((Lab::named(self.name.as_deref().unwrap_or(&topology.name))?, topology))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the lab up: hosts, links and daemons. It stays until `down`.
    Up,
    /// Take the lab down, whatever state it is in.
    Down,
    /// Run a command on a node, as in `throughline-lab exec ctl -- throughline host list`.
    Exec {
        /// The node.
        node: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Move a guest there and back under traffic, and say what the network noticed.
    Demo(demo::Options),
    /// Measure what the network notices of a move, beside what people use today, and what it costs.
    Bench(bench::Options),
    /// Kill, stop, cut off and starve each part at each moment of a move, and say what an operator sees.
    Chaos(chaos::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughline-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let default = match arguments.command {
        Command::Bench(_) => "lab/five-hosts.clab.yml",
        _ => "lab/three-hosts.clab.yml",
    };
    let (lab, topology) = arguments.place.find(default)?;
    match arguments.command {
        Command::Up => up(&lab, &topology),
        Command::Down => {
            let _lock = lab.lock()?;
            teardown::down(&lab)
        }
        Command::Exec { node, command } => exec(&lab, &topology, &node, &command),
        Command::Demo(options) => {
            signals::catch()?;
            demo::run(&lab, &topology, &options)
        }
        Command::Bench(options) => {
            signals::catch()?;
            bench::run(&lab, &topology, &options)
        }
        Command::Chaos(options) => {
            signals::catch()?;
            chaos::run(&lab, &topology, &options)
        }
    }
}

fn up(lab: &Lab, topology: &Topology) -> Result<()> {
    signals::catch()?;
    let _lock = lab.lock()?;
    let guard = teardown::Guard::new(lab.clone());
    play::up(lab, topology)?;
    guard.keep();
    println!("lab {} is up; try: throughline-lab exec ctl -- throughline host list", lab.name());
    Ok(())
}

/// Becomes the command. Our own programs are found without a path, and know their controller.
fn exec(lab: &Lab, topology: &Topology, node: &str, command: &[String]) -> Result<()> {
    let known = topology.nodes.iter().any(|known| known.name == node);
    ensure!(known, "there is no node {node:?} in {}", lab.name());
    let [program, arguments @ ..] = command else { return Ok(()) };
    let program = play::sibling(program).unwrap_or_else(|_| program.into());
    let mut command = lab.namespace(node).command(program)?;
    let controller = &topology.controller()?.name;
    command.args(arguments).env("THROUGHLINE_CONTROLLER", topology.controller_url()?);
    command.env("THROUGHLINE_TLS", lab.operator_credentials(controller));
    Err(command.exec()).with_context(|| format!("cannot run {:?} on {node}", command.get_program()))
}
