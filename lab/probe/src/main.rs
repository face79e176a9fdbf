//! `throughline-probe`: the probes as a program, static, so that the same file runs in the guest and on the hosts.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;
use throughline_probe::control::{Client, Ports, Request, Response};
use throughline_probe::disk::{self, block::Label};
use throughline_probe::load::{self, Load};
use throughline_probe::observe::{Filter, Observer, Sightings};
use throughline_probe::peer::Peer;
use throughline_probe::{guest, peer, ping};

/// Count what reaches a guest and what comes back, without asking any agent.
#[derive(Debug, Parser)]
#[command(name = "throughline-probe", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Inside the guest: answer, send, and keep memory and disks busy.
    Guest {
        /// Memory to keep rewriting and checking, MiB.
        #[arg(long, default_value_t = 8)]
        memory_mib: usize,
        /// How much of it to rewrite, KiB a second.
        #[arg(long, default_value_t = 4096)]
        memory_rate_kib: usize,
        /// Serial number of a disk to write to and check, all of it, again and again; as often as there are disks.
        #[arg(long = "disk", value_name = "NAME")]
        disks: Vec<String>,
        /// How much to write to each, KiB a second.
        #[arg(long, default_value_t = 1024)]
        disk_rate_kib: usize,
    },
    /// Inside the guest: wake every millisecond, in an address space of its own, and do nothing. That makes the kernel reload
    /// its page tables all the time, without which QEMU 7.2's TCG now and then misses a write while memory moves.
    Wake,
    /// On a host that stays: probe a guest. Reads `mark` and `report FROM TO` from standard input, answers in JSON.
    Peer {
        /// The guest's address.
        #[arg(long)]
        guest: Ipv4Addr,
        /// Numbered UDP packets a second, each way.
        #[arg(long, default_value_t = 2000)]
        pps: u32,
        /// Messages of 1000 bytes a second on the TCP stream, each way.
        #[arg(long, default_value_t = 100)]
        stream_rate: u32,
        /// ICMP echo requests a second.
        #[arg(long, default_value_t = 50)]
        ping_rate: u32,
        /// Seconds to wait for the guest's first answer.
        #[arg(long, default_value_t = 60)]
        patience: u64,
    },
    /// On a host that stays: load a guest with more than it could echo, until `finish` comes on standard input; answers in JSON.
    Load {
        /// The guest's address.
        #[arg(long)]
        guest: Ipv4Addr,
        /// Numbered UDP packets a second to the guest, over all flows.
        #[arg(long, default_value_t = 0)]
        pps: u32,
        /// UDP flows.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
        flows: u32,
        /// Also send and fetch as fast as TCP goes, over a connection each way.
        #[arg(long)]
        bulk: bool,
        /// Seconds to wait for the guest's first answer.
        #[arg(long, default_value_t = 60)]
        patience: u64,
    },
    /// On a host that stays: ping a guest until it answers once. Fails if it does not.
    Ping {
        /// The guest's address, IPv4 or IPv6.
        #[arg(long)]
        guest: IpAddr,
        /// Seconds to wait for an answer.
        #[arg(long, default_value_t = 10)]
        patience: u64,
    },
    /// On a host that stays: ask a guest how its disks are; answers in JSON.
    Disks {
        /// The guest's address.
        #[arg(long)]
        guest: Ipv4Addr,
        /// Seconds to wait for the guest's first answer.
        #[arg(long, default_value_t = 10)]
        patience: u64,
    },
    /// Anywhere: check a raw file or a device that a guest has written to, by itself; answers in JSON. Fails if something on it was
    /// never written there, or something that was flushed is not.
    DiskCheck {
        /// The file; that of a disk in another format is to be converted first.
        image: PathBuf,
        /// Which disk it should be.
        #[arg(long)]
        name: Option<String>,
        /// What the guest last said of `acknowledged`. Without, a disk that was set back to an earlier state altogether passes.
        #[arg(long, default_value_t = 0)]
        acknowledged: u64,
    },
    /// On a hypervisor: see when echo packets were put on a guest's tap. Answers `take` on standard input in JSON.
    Observe {
        /// The guest's MAC address.
        #[arg(long, value_parser = parse_mac)]
        mac: [u8; 6],
        /// The guest's address.
        #[arg(long)]
        guest: Ipv4Addr,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Guest { memory_mib, memory_rate_kib, disks, disk_rate_kib } => {
            let disks = disks.into_iter().map(|name| disk::writer::Config { name, rate: disk_rate_kib << 10 });
            let config = guest::Config {
                address: Ipv4Addr::UNSPECIFIED,
                ports: Ports::default(),
                memory: memory_mib << 20,
                memory_rate: memory_rate_kib << 10,
                disks: disks.collect(),
            };
            guest::run(&config).context("the probe's guest end cannot go on")
        }
        Command::Wake => loop {
            thread::sleep(Duration::from_millis(1));
        },
        Command::Peer { guest, pps, stream_rate, ping_rate, patience } => probe(&peer::Config {
            guest,
            ports: Ports::default(),
            oneway_port: 0,
            oneway_via: None,
            pps,
            stream_rate,
            ping_rate,
            patience: Duration::from_secs(patience),
        }),
        Command::Load { guest, pps, flows, bulk, patience } => load(&load::Config {
            guest,
            ports: Ports::default(),
            pps,
            flows,
            bulk,
            patience: Duration::from_secs(patience),
        }),
        Command::Ping { guest, patience } => ping_once(guest, Duration::from_secs(patience)),
        Command::Disks { guest, patience } => ask_disks(guest, Duration::from_secs(patience)),
        Command::DiskCheck { image, name, acknowledged } => check_disk(&image, name.as_deref(), acknowledged),
        Command::Observe { mac, guest } => observe(Filter { mac, address: guest, port: Ports::default().echo }),
    }
}

fn probe(config: &peer::Config) -> Result<()> {
    let mut peer = Peer::start(config)
        .with_context(|| format!("the guest at {} did not answer within {:?}", config.guest, config.patience))?;
    answer(&"ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["mark"] => answer(&peer.mark()?)?,
            ["report", from, to] => answer(&peer.report(from.parse()?, to.parse()?)?)?,
            _ => bail!("cannot do {line:?}: say `mark` or `report FROM TO`"),
        }
    }
    Ok(())
}

fn load(config: &load::Config) -> Result<()> {
    let load = Load::start(config)
        .with_context(|| format!("the guest at {} did not answer within {:?}", config.guest, config.patience))?;
    answer(&"ready")?;
    match io::stdin().lock().lines().next().transpose()?.as_deref() {
        Some("finish") => answer(&load.finish()?),
        other => bail!("cannot do {other:?}: say `finish`"),
    }
}

fn ping_once(guest: IpAddr, patience: Duration) -> Result<()> {
    let answered = ping::answered(guest, patience).context("cannot ping: root is needed")?;
    ensure!(answered, "{guest} did not answer a ping within {patience:?}");
    Ok(())
}

fn ask_disks(guest: Ipv4Addr, patience: Duration) -> Result<()> {
    let mut client = Client::connect(guest, Ports::default().control, patience)
        .with_context(|| format!("the guest at {guest} did not answer within {patience:?}"))?;
    match client.ask(&Request::Disks)? {
        Response::Disks(disks) => answer(&disks),
        other => bail!("the guest at {guest} was asked for its disks and answered {other:?}"),
    }
}

fn check_disk(image: &Path, name: Option<&str>, acknowledged: u64) -> Result<()> {
    let file = File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let verdict = disk::check::check(&file, name.map(Label::new), acknowledged)
        .with_context(|| format!("cannot check {}", image.display()))?;
    answer(&verdict)?;
    ensure!(
        verdict.is_sound(),
        "{}: {} blocks are wrong, {} are older than what was flushed",
        image.display(),
        verdict.wrong,
        verdict.missing
    );
    Ok(())
}

fn observe(filter: Filter) -> Result<()> {
    let mut observer = Observer::start(filter).context("cannot watch the taps: root is needed")?;
    let (asked, asking) = mpsc::channel();
    thread::spawn(move || io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| asked.send(line)));
    answer(&"ready")?;
    let mut seen = Sightings::default();
    loop {
        seen.frames.extend(observer.look()?);
        match asking.try_recv() {
            Ok(line) if line == "take" => {
                seen.missed = observer.missed()?;
                answer(&std::mem::take(&mut seen))?;
            }
            Ok(line) => bail!("cannot do {line:?}: say `take`"),
            Err(mpsc::TryRecvError::Empty) => {}
            Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

fn answer<T: Serialize>(value: &T) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line)?;
    output.flush()?;
    Ok(())
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2)).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("{text:?} is not a MAC address of the form 02:00:00:00:00:01"))
}
