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

#[path = "../figures/mod.rs"]
mod figures;
#[path = "../../tests/qemu/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests, which need more of it")]
mod harness;

use std::time::{Duration, Instant};

use figures::{arguments, row, shares, tell};
use harness::{Lab, in_lab, ip};
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
        let of_clear = shares(&sealed, &clear);
        let rows = [
            row(COMMAND, "memory of a busy guest in the clear", "MB/s", clear, None),
            row(COMMAND, "the same, sealed", "MB/s", sealed, None),
            row(COMMAND, "sealed, of the rate in the clear, round by round", "%", of_clear, Some(TARGET)),
        ];
        tell(&rows, json.as_deref());
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
