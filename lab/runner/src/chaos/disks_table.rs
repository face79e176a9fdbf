//! The part of faults.md that is about guests with disks.

use super::cell::Cell;
use super::expect::Promise;
use super::phase::Phase;
use super::report::{copied_again, done_to, moment, moments, rows, sees, summary};
use super::results::{Played, Results};
use super::run::{Fate, Verdict};

const HEAD: &str = "
## Guests with disks

Here the guest has three disks: two of 1 MiB (raw on virtio-blk, qcow2 on virtio-scsi) that it writes and reads back all the time, 128 KiB \
a second each, and a raw one of which 8 MiB are filled. The disks of each host are on a small file system of their own; *storage full* takes \
every block of it, for 2 s. Besides what is said above a cell is green only if the host that has the guest has its disks, whole, the other \
nothing, or after a move that was undone what a next try can go on with; the guest reads every block back as it was acknowledged; the file \
of the raw one has what was acknowledged, also if the guest died; and the one that it does not write is what it was. A guest that died is made anew on the disks it left. *Second try*: the move after that, \
at full speed, and what it had to copy of what an undisturbed move copies. That it is less is promised where half was over and nothing \
happened that may have cost some of it: what a dead source knew is gone with it; a qcow2 file whose QEMU was killed, or a part that could not be \
written out, is not believed.

";

/// It.
pub(super) fn of(results: &Results) -> String {
    let cells: Vec<Cell> = Cell::with_disks().collect();
    let mut text = HEAD.to_owned() + &summary(results, &cells) + &moments(&Phase::OF_DISKS);
    text += "\n| what is done | moment | an operator sees | second try | left to copy | promised | lost | promised | silence ms | over after s |\n\
             |---|---|---|---|--:|---|--:|---|--:|--:|\n";
    text + &rows(results, &cells, 7, row)
}

fn row(cell: &Cell, played: &Played) -> String {
    let seen = &played.seen;
    let (mut second, mut left, mut lost, mut silence) = ("failed", "–".to_owned(), "–".to_owned(), "–".to_owned());
    if let Some(disks) = &seen.disks
        && let Some(bytes) = disks.left
    {
        left = format!("{} of {} MiB", mib(bytes), mib(disks.whole));
        second = match (seen.fate, seen.verdict) {
            (Fate::Died, _) => "of the new guest: moved",
            (_, Verdict::Moved) => "not needed; moved on",
            _ => "moved",
        };
    }
    if let Some(counts) = &seen.counts {
        lost = (counts.lost_to_guest + counts.lost_from_guest).to_string();
        silence = counts.silence_ms.to_string();
    }
    let promised = copied_again(cell, played);
    format!(
        "| {} | {} | {} | {second} | {left} | {promised} | {lost} | {} | {silence} | {:.1} |\n",
        done_to(cell),
        moment(cell, played),
        sees(cell, played),
        Promise::of(*cell).losses(),
        seen.ended_after_ms as f64 / 1e3
    )
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
