//! How fast a busy guest's memory goes over the stream, in the clear and sealed.
//!
//! ```text
//! cargo bench -p throughline-hypervisor --bench stream -- [--json FILE] [--rounds N]
//! ```
//!
//! Needs root and a machine that does nothing else. One guest of 1 GiB that keeps rewriting memory; in each round its first pass
//! is sent in the clear, then sealed, without a limit to the bandwidth, and given up. Both QEMUs, both ends of the seal and the
//! guest share the processors, and the network is the loopback with the MTU of an Ethernet.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made must stop")]

#[path = "../../tests/qemu/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests, which need more of it")]
mod harness;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use harness::{Lab, in_lab, ip};
use serde_json::{Value, json};
use throughline_hypervisor::{Guest, MigrationStatus};

/// RAM of the guest, KiB: not a multiple of 256 KiB, see `ram_kib`.
const RAM_KIB: u64 = (1 << 20) - 8;
/// From here on a pass is measured, bytes: what is before is set-up.
const WARM: u64 = 32 << 20;
/// Most of the wire's bytes that may be lost to the seal, percent of the rate in the clear.
const TARGET: &str = ">= 70";
const COMMAND: &str = "cargo bench -p throughline-hypervisor --bench stream";

fn main() {
    let (json, rounds) = arguments();
    in_lab("bench", move |mut lab| async move {
        lab.memory_kib = RAM_KIB;
        ip("link set lo mtu 1500");
        let guest = lab.launch(lab.plan("a", "dirty fill=380", false)).await.unwrap();
        await_line(&guest, "filled", Duration::from_secs(120)).await;
        let (mut clear, mut sealed) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            clear.push(pass(&lab, &guest, false).await);
            sealed.push(pass(&lab, &guest, true).await);
            eprintln!("stream: round {round} of {rounds}: {:?} and sealed {:?} MB/s", clear.last(), sealed.last());
        }
        guest.quit().await.unwrap();
        let shares = clear.iter().zip(&sealed).map(|(clear, sealed)| sealed / clear * 100.0).collect();
        let rows = vec![
            row("memory of a busy guest in the clear", "MB/s", clear, None),
            row("the same, sealed", "MB/s", sealed, None),
            row("sealed, of the rate in the clear, round by round", "%", shares, Some(TARGET)),
        ];
        for row in &rows {
            println!("{row}");
        }
        if let Some(path) = json {
            std::fs::write(path, serde_json::to_vec_pretty(&json!({ "rows": rows })).unwrap()).unwrap();
        }
    });
}

/// Waits until the guest has said that on its serial line.
async fn await_line(guest: &Guest, line: &str, patience: Duration) {
    let started = Instant::now();
    while !std::fs::read(guest.run_dir().serial_log()).is_ok_and(|log| String::from_utf8_lossy(&log).contains(line)) {
        assert!(started.elapsed() < patience, "the guest does not say {line:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Megabytes a second of the first pass over the guest's memory.
async fn pass(lab: &Lab, guest: &Guest, sealed: bool) -> f64 {
    let (destination, invitation, received) = lab.receiving("b", sealed.then_some(&lab.sealer)).await;
    lab.send(guest, &invitation, 0, false).await.unwrap();
    received.await.unwrap().unwrap();
    let mut began = None;
    let mut last = None;
    loop {
        let progress = guest.progress().await.unwrap();
        assert_eq!(progress.status, MigrationStatus::Active, "{progress:?}");
        if progress.passes > 1 {
            break;
        }
        let now = (Instant::now(), progress.transferred);
        if progress.transferred > WARM {
            began.get_or_insert(now);
            last = Some(now);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (Some((began, before)), Some((ended, after))) = (began, last) else {
        panic!("a pass was over before it was seen")
    };
    assert!(after - before > 400 << 20, "the guest has memory to send: {} bytes", after - before);
    guest.cancel_migration().await.unwrap();
    destination.quit().await.unwrap();
    (after - before) as f64 / 1e6 / (ended - began).as_secs_f64()
}

fn row(name: &str, unit: &str, mut values: Vec<f64>, target: Option<&str>) -> Value {
    values.sort_unstable_by(f64::total_cmp);
    json!({
        "name": name, "unit": unit, "median": values[values.len() / 2], "min": values[0],
        "max": values[values.len() - 1], "samples": values.len(), "target": target, "command": COMMAND,
    })
}

/// File for the results, and how many rounds.
fn arguments() -> (Option<PathBuf>, u32) {
    let (mut json, mut rounds) = (None, 7);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            // What cargo says to every bench.
            "--bench" => {}
            "--json" => json = Some(PathBuf::from(value())),
            "--rounds" => rounds = value().parse().unwrap(),
            other => panic!("unknown argument {other}: [--json FILE] [--rounds N]"),
        }
    }
    (json, rounds)
}
