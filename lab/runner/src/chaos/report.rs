//! faults.md: what an operator sees in each case.

use super::cell::{Cell, Fault, Kind, Victim};
use super::cold_table;
use super::disks_table;
use super::expect::Promise;
use super::phase::Phase;
use super::results::{Played, Results};
use super::run::{Fate, Verdict};

const HEAD: &str = "\
# What happens when something dies

Written by `make chaos`; the figures behind it are in `faults.json`. In each cell a guest moves from one host to another under \
1,000 numbered packets a second each way, a TCP stream and pings, and at one moment of the move something is done to it. Then \
what was broken is made good, and the cell is green if the migration has come to the end that is promised, the guest runs on \
exactly one host and answers an endpoint on every host, its memory is what it wrote, no TCP connection broke, nothing was lost or \
duplicated but what the table says may be, nothing of the move is left on any host, and the guest can be moved again.

*Kill*: SIGKILL; a daemon is started again half a second later. *Stop*: SIGSTOP, SIGCONT 2 s later. *Cut*: the cable is pulled \
for 2 s. *Disk full*: no write to a file succeeds for 2 s. *Clock*: the daemon's own wall clock, preloaded, for the machine's is \
not a lab's to set. *Everything of ours on a host*: its agent and its QEMU; the kernel is that of all hosts here. *Lost*, *out of order*: packets, as the probes counted them, both \
ways. *Silence*: longest time without a packet from the guest, its own pause and, where it is stopped or cut off, that time included. \
A moment *hit* otherwise than asked was over when the signal went out, in three tries.

";

/// The whole text.
pub(super) fn of(results: &Results) -> String {
    let cells: Vec<Cell> = Cell::all().into_iter().filter(|cell| cell.kind == Kind::Bare).collect();
    let mut text = HEAD.to_owned() + &summary(results, &cells) + &moments(&Phase::ALL);
    let mut section = None;
    for cell in &cells {
        if section != Some((cell.victim, cell.fault)) {
            section = Some((cell.victim, cell.fault));
            text += &heading(cell);
        }
        text += &match results.of(cell) {
            Some(played) => row(cell, played),
            None => format!("| {} | not played | | | | | |\n", cell.phase.name()),
        };
    }
    text + &disks_table::of(results) + &cold_table::of(results)
}

/// What is done, to whom, as a sentence without its stop.
pub(super) fn done_to(cell: &Cell) -> String {
    let Cell { victim, fault, .. } = cell;
    let mut what = victim.words().to_owned();
    if let Some(first) = what.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let done = match fault {
        Fault::Kill => "is killed",
        Fault::Away => "is killed and stays away for 60 s",
        Fault::Stop => "stands still for 2 s",
        Fault::Cut => "is cut for 2 s",
        Fault::StorageFull => "has no block left for 2 s",
        Fault::Full => "finds its disk full for 2 s",
        Fault::Ahead => "has its clock set an hour ahead, is killed and started again",
        Fault::Behind => "has its clock set an hour back, is killed and started again",
    };
    format!("{what} {done}")
}

/// How many of the cells are green, and how long they took.
pub(super) fn summary(results: &Results, cells: &[Cell]) -> String {
    let played = || cells.iter().filter_map(|cell| results.of(cell));
    let green = played().filter(|played| played.broken.is_empty()).count();
    let minutes: f64 = played().map(|played| played.seconds).sum::<f64>() / 60.0;
    format!("{green} of {} cells are green; they took {minutes:.0} minutes.\n\n", cells.len())
}

/// What happens at each moment.
pub(super) fn moments(phases: &[Phase]) -> String {
    let mut text = "| moment | what happens then |\n|---|---|\n".to_owned();
    for phase in phases {
        text += &format!("| {} | {} |\n", phase.name(), phase.words());
    }
    text
}

/// The rows of a table whose first columns are what is done, and when; a cell that was not played leaves so many empty.
pub(super) fn rows(results: &Results, cells: &[Cell], empty: usize, row: fn(&Cell, &Played) -> String) -> String {
    let rows = cells.iter().map(|cell| match results.of(cell) {
        Some(played) => row(cell, played),
        None => format!("| {} | {} | not played |{}\n", done_to(cell), cell.phase.name(), " |".repeat(empty)),
    });
    rows.collect()
}

/// What of an undone move may be copied again, in one cell of the table.
pub(super) fn copied_again(cell: &Cell, played: &Played) -> String {
    let promised = cell.left_percent().filter(|_| played.seen.verdict == Verdict::Undone);
    promised.map_or(String::new(), |percent| format!("at most {percent} %"))
}

fn heading(cell: &Cell) -> String {
    format!(
        "\n## {}\n\n| moment | an operator sees | lost | promised | out of order | silence ms | over after s |\n\
         |---|---|--:|---|--:|--:|--:|\n",
        done_to(cell)
    )
}

fn row(cell: &Cell, played: &Played) -> String {
    let promise = Promise::of(*cell);
    let (mut lost, mut reordered, mut silence) = ("–".to_owned(), "–".to_owned(), "–".to_owned());
    if let Some(counts) = &played.seen.counts {
        lost = (counts.lost_to_guest + counts.lost_from_guest).to_string();
        reordered = counts.reordered.to_string() + if promise.is_in_order() { "" } else { " (not assured)" };
        silence = counts.silence_ms.to_string();
    }
    format!(
        "| {} | {} | {lost} | {} | {reordered} | {silence} | {:.1} |\n",
        moment(cell, played),
        sees(cell, played),
        promise.losses(),
        played.seen.ended_after_ms as f64 / 1e3
    )
}

/// When it was done.
pub(super) fn moment(cell: &Cell, played: &Played) -> String {
    match played.seen.hit {
        Some(hit) if hit == cell.phase => hit.name().to_owned(),
        hit => format!("{} (hit: {})", cell.phase.name(), hit.map_or("not hit", Phase::name)),
    }
}

/// What an operator sees, in one cell of the table.
pub(super) fn sees(cell: &Cell, played: &Played) -> String {
    let seen = &played.seen;
    let mut text = match seen.verdict {
        Verdict::Moved => "the guest has moved".to_owned(),
        Verdict::Undone => format!("undone: `{}` {}", seen.reason, seen.message),
        Verdict::Open => "the migration does not end".to_owned(),
    };
    if seen.verdict == Verdict::Moved && !seen.reason.is_empty() {
        text += &format!("; `{}` {}", seen.reason, seen.message);
    }
    if seen.fate == Fate::Died {
        text += &format!("; the guest is {}", seen.guest);
    }
    if !played.broken.is_empty() {
        text = format!("**broken**: {}; {text}", played.broken.join("; "));
    }
    if cell.victim == Victim::Controller && cell.fault == Fault::Full {
        text += "; the controller ends and is started again";
    }
    text.replace('|', "/").replace('\n', " ")
}
