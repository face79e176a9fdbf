//! The guest that is off when it moves.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::disks;
use super::world::World;
use crate::demo::cast;
use crate::signals;

/// Bytes at the beginning of the disk that the guest does not write: at the rate of a move that is struck in its middle, three seconds.
pub(super) const FILLED: u64 = 32 << 20;
/// How long the guest writes before it is shut off.
const WRITES: Duration = Duration::from_secs(3);

/// Lets a guest that runs write, and shuts it off: what it was told is on its disks is to be there ever after.
pub(super) fn shut_off(world: &mut World<'_>) -> Result<()> {
    signals::sleep(WRITES)?;
    disks::note(world)?;
    world.end_probes();
    stop(world)?;
    disks::set_off(world, true)
}

fn stop(world: &World<'_>) -> Result<()> {
    world.stage.operator.run(&["guest", "stop", cast::GUEST, "--cut-after", "20s"])
}

/// Starts the guest where it is, and shuts it off once it answers everybody. What is wrong, in sentences.
pub(super) fn start_and_shut_off(world: &mut World<'_>) -> Result<Vec<String>> {
    disks::set_off(world, false)?;
    if let Err(error) = world.stage.operator.run(&["guest", "start", cast::GUEST]) {
        return Ok(vec![format!("it could not be started where it had come to: {error:#}")]);
    }
    let deaf = world.deaf()?;
    stop(world)?;
    let mut wrong = disks::misplaced(world, false)?;
    disks::set_off(world, true)?;
    if !deaf.is_empty() {
        wrong.push(format!("the guest, started, does not answer {}", deaf.join(", ")));
    }
    Ok(wrong)
}

/// Bytes that a node has sent to others so far, by its cable's own count.
pub(super) fn sent_by(world: &World<'_>, node: &str) -> Result<u64> {
    let ends = world.topology.links.iter().flat_map(|link| &link.ends);
    let cable = ends.into_iter().find(|end| end.node == node).with_context(|| format!("{node} has no link"))?;
    let mut command = world.stage.lab.namespace(node).command("ip")?;
    let output = command.args(["-json", "-stats", "link", "show", &cable.name]).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cannot read what {node} has sent: {}", output.status);
    let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    links[0]["stats64"]["tx"]["bytes"].as_u64().with_context(|| format!("{} of {node} counts nothing", cable.name))
}
