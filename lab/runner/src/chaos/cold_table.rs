//! The part of faults.md that is about guests that are stopped.

use super::cell::Cell;
use super::disks_table::mib;
use super::report::{copied_again, done_to, moment, rows, sees, summary};
use super::results::{Played, Results};
use super::run::Verdict;

const HEAD: &str = "
## Guests that are stopped

The same guest is shut off, with 32 MiB of the third disk filled, and moves so. A cell is green if the record and the hosts agree that it \
is stopped, on one host, and no QEMU of it runs; its disks are there, byte for byte what they were, the other host has nothing, or after a move \
that was undone what a next try can go on with; the next try succeeds and sends no more than promised of what a whole move sends, by the count \
of the source's cable; nothing of the move is left on any host; and the guest, started where it has come to, answers an endpoint on every host, and has \
what it was told was on its disks when it was shut off. *mirror-begin*: its disks begin to be copied. *mirror-middle*: half of what is on them is over. \
*give-up*: all of it is, and compared.

";

/// It.
pub(super) fn of(results: &Results) -> String {
    let cells: Vec<Cell> = Cell::cold().collect();
    let mut text = HEAD.to_owned() + &summary(results, &cells);
    text += "| what is done | moment | an operator sees | second try | sent | promised | over after s |\n|---|---|---|---|--:|---|--:|\n";
    text + &rows(results, &cells, 4, row)
}

fn row(cell: &Cell, played: &Played) -> String {
    let seen = &played.seen;
    let is_undone = seen.verdict == Verdict::Undone;
    let (mut second, mut sent) = ("failed", "–".to_owned());
    if let Some(disks) = &seen.disks
        && let Some(bytes) = disks.left
    {
        sent = format!("{} of {} MiB", mib(bytes), mib(disks.whole));
        second = if is_undone { "moved" } else { "not needed; moved on" };
    }
    let promised = copied_again(cell, played);
    format!(
        "| {} | {} | {} | {second} | {sent} | {promised} | {:.1} |\n",
        done_to(cell),
        moment(cell, played),
        sees(cell, played),
        seen.ended_after_ms as f64 / 1e3
    )
}
