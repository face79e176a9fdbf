//! One cell: a move that is struck, made good, and looked at from all sides.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cell::{Cell, Kind};
use super::cold;
use super::disks::{self, Copied};
use super::phase::Phase;
use super::strike::{Strike, Struck};
use super::window::Counts;
use super::world::World;
use crate::demo::cast;
use crate::signals;

/// How long a move may take to come to its end, once everything is well again.
const END: Duration = Duration::from_secs(45);
/// How long the record may take to show the guest as it is.
const SHOWN: Duration = Duration::from_secs(15);
/// How often it is asked.
const ASK: Duration = Duration::from_millis(100);

/// How a migration ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// Done.
    Moved,
    /// Undone, or never begun.
    Undone,
    /// Not at its end yet.
    #[default]
    Open,
}

/// What became of the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fate {
    #[default]
    Lives,
    Died,
}

/// What was seen of a cell.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Where the move was when it was struck, as far as the logs tell; none: it was not struck.
    pub(super) hit: Option<Phase>,
    #[serde(skip)]
    pub(super) struck_at_ns: u64,
    pub(super) verdict: Verdict,
    /// The failure's code, as an operator sees it; empty if there is none.
    pub(super) reason: String,
    /// Its words.
    pub(super) message: String,
    /// From the blow to the migration's end, milliseconds.
    pub(super) ended_after_ms: u64,
    pub(super) fate: Fate,
    /// What the record says of the guest.
    pub(super) guest: String,
    /// What of its disks was to be copied; none of a guest without.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) disks: Option<Copied>,
    /// What the probes counted; none of a guest that died.
    pub(super) counts: Option<Counts>,
    /// What is wrong whatever was promised.
    pub(super) wrong: Vec<String>,
}

/// What the operator's command tells of a migration.
#[derive(Debug, Default)]
struct Told {
    verdict: Verdict,
    reason: String,
    message: String,
}

impl Told {
    fn of(migration: &Value) -> Self {
        let verdict = match migration["phase"].as_str() {
            Some("DONE") => Verdict::Moved,
            Some("ABORTED") => Verdict::Undone,
            _ => Verdict::Open,
        };
        let word = |key: &str| migration["failure"][key].as_str().unwrap_or_default().to_owned();
        Self { verdict, reason: word("reason"), message: word("message") }
    }
}

/// Plays a cell once. An error: the lab itself is not well.
pub(super) fn play(world: &mut World<'_>, cell: Cell) -> Result<Seen> {
    disks::note(world)?;
    let hosts = world.stage.hypervisors.clone();
    if world.kind != Kind::Stopped {
        let (probes, window) = world.probes()?;
        window.begin(probes, &hosts)?;
    }
    let strike = Strike::prepare(world, cell)?;
    let to = world.away();
    let mut order = vec!["migrate", cast::GUEST, "--to", to, "--detach"];
    // Files are copied faster than a file system is filled.
    let is_quick = world.kind == Kind::Stopped && cell.phase == Phase::MirrorBegin;
    if cell.phase == Phase::MirrorMiddle || is_quick {
        order.extend(["--bandwidth", disks::BANDWIDTH]);
    }
    let begun = world.stage.operator.ask::<Value>(&order);
    let mut seen = Seen::default();
    let struck = strike.await_moment(world)?;
    let began = Instant::now();
    if let Some(struck) = &struck {
        (seen.hit, seen.struck_at_ns) = (struck.hit, struck.at_ns);
        strike.mend(world, struck)?;
    }
    let told = match begun {
        Ok(migration) => await_end(world, migration["id"].as_str().context("a migration without an id")?)?,
        Err(refused) => {
            Told { verdict: Verdict::Undone, reason: "REFUSED".to_owned(), message: format!("{refused:#}") }
        }
    };
    seen.ended_after_ms = began.elapsed().as_millis() as u64;
    (seen.verdict, seen.reason, seen.message) = (told.verdict, told.reason, told.message);
    seen.disks = world.disks.map(|disks| Copied { whole: disks.whole, left: None });
    look(world, &mut seen, struck.as_ref())?;
    Ok(seen)
}

fn await_end(world: &World<'_>, id: &str) -> Result<Told> {
    let deadline = Instant::now() + END;
    loop {
        let told = Told::of(&world.stage.operator.ask(&["migration", "show", id])?);
        if told.verdict != Verdict::Open || Instant::now() > deadline {
            return Ok(told);
        }
        signals::sleep(ASK)?;
    }
}

/// Where the guest is, who reaches it, what the probes counted, what is left, and whether it can be moved again.
fn look(world: &mut World<'_>, seen: &mut Seen, struck: Option<&Struck>) -> Result<()> {
    let (host, state) = await_guest(world, seen)?;
    let qemus = world.qemus()?;
    seen.guest = state;
    if struck.is_none() {
        seen.wrong.push("the moment did not come".to_owned());
    }
    if seen.fate == Fate::Died {
        return if world.disks.is_some() { look_at_the_dead(world, seen) } else { Ok(()) };
    }
    world.home.clone_from(&host);
    if world.kind == Kind::Stopped {
        return look_at_the_stopped(world, seen);
    }
    match &qemus[..] {
        [(only, _)] if *only == host => {}
        others => seen.wrong.push(format!("the record has the guest on {host}, its QEMUs are {others:?}")),
    }
    seen.wrong.extend(disks::misplaced(world, seen.verdict == Verdict::Undone)?);
    let deaf = world.deaf()?;
    if !deaf.is_empty() {
        seen.wrong.push(format!("the guest does not answer {}", deaf.join(", ")));
        return Ok(());
    }
    if !move_again(world, seen) {
        return Ok(());
    }
    let hosts = world.stage.hypervisors.clone();
    let (probes, window) = world.probes()?;
    seen.counts = Some(window.end(probes, &hosts)?);
    seen.wrong.extend(world.residue()?.into_iter().map(|what| format!("left behind on {what}")));
    look_at_disks(world, seen)
}

/// Whether it worked.
fn move_again(world: &mut World<'_>, seen: &mut Seen) -> bool {
    match world.move_on() {
        Ok(left) => seen.disks.iter_mut().for_each(|disks| disks.left = Some(left)),
        Err(error) => {
            seen.wrong.push(format!("it could not be moved again: {error:#}"));
            return false;
        }
    }
    true
}

/// After the last move.
fn look_at_disks(world: &mut World<'_>, seen: &mut Seen) -> Result<()> {
    seen.wrong.extend(disks::misplaced(world, false)?);
    seen.wrong.extend(disks::misread(world)?);
    Ok(())
}

/// The disks outlive their guest: a new one has all that the dead one was told is on them, and moves with it.
fn look_at_the_dead(world: &mut World<'_>, seen: &mut Seen) -> Result<()> {
    seen.wrong.extend(disks::misplaced(world, true)?);
    world.revive().context("the guest could not be made anew with its disks")?;
    if move_again(world, seen) {
        seen.wrong.extend(world.residue()?.into_iter().map(|what| format!("left behind on {what}")));
        look_at_disks(world, seen)?;
    }
    Ok(())
}

/// The disks are all there is of it. What was struck is tried again, then the guest is started where it has come to.
fn look_at_the_stopped(world: &mut World<'_>, seen: &mut Seen) -> Result<()> {
    seen.wrong.extend(disks::misplaced(world, seen.verdict == Verdict::Undone)?);
    if !move_again(world, seen) {
        return Ok(());
    }
    seen.wrong.extend(disks::misplaced(world, false)?);
    seen.wrong.extend(world.residue()?.into_iter().map(|what| format!("left behind on {what}")));
    seen.wrong.extend(cold::start_and_shut_off(world)?);
    Ok(())
}

/// Waits until the record and the hosts agree: a guest that runs (or is off, where it is to be), or one whose QEMU is gone and that
/// is reported so. Returns its host and what the record says of it.
fn await_guest(world: &World<'_>, seen: &mut Seen) -> Result<(String, String)> {
    let deadline = Instant::now() + SHOWN;
    loop {
        let (qemus, (host, state, detail)) = (world.qemus()?.len(), world.guest()?);
        let words = if detail.is_empty() { state.clone() } else { format!("{state}: {detail}") };
        let is_off = world.kind == Kind::Stopped;
        match (qemus, state.as_str()) {
            (1, "RUNNING") if !is_off => return Ok((host, words)),
            (0, "STOPPED") if is_off => return Ok((host, words)),
            (0, "FAILED") => {
                seen.fate = Fate::Died;
                return Ok((host, words));
            }
            _ if Instant::now() > deadline => {
                seen.wrong.push(format!("{qemus} QEMUs have the guest, and the record says {words:?}"));
                seen.fate = if qemus == 0 { Fate::Died } else { Fate::Lives };
                return Ok((host, words));
            }
            _ => signals::sleep(ASK)?,
        }
    }
}
