//! The demo's one table.

use super::record::Run;

/// A column: its heading, what it shows of a run, and how many decimals.
type Column = (&'static str, fn(&Run) -> f64, usize);

const COLUMNS: [Column; 11] = [
    ("pause ms", |run| run.pause_ms, 1),
    ("gap ms", |run| run.gap_ms, 1),
    ("hold adds ms", |run| run.hold_added_ms, 2),
    ("held", |run| run.held as f64, 0),
    ("carried", |run| run.carried as f64, 0),
    ("gated", |run| run.gated as f64, 0),
    ("lost", |run| (run.lost_to_guest + run.lost_from_guest) as f64, 0),
    ("duplicated", |run| run.duplicated as f64, 0),
    ("reordered", |run| run.reordered as f64, 0),
    ("TCP retransmits", |run| f64::from(run.tcp_retransmits), 0),
    ("(pre-copy stall)", |run| f64::from(run.precopy_stall_retransmits), 0),
];

/// Runs up to this many get a line each; of more only the median and the worst are shown.
const EACH: usize = 20;

/// The table, one line a run, and for several their median and worst.
pub(super) fn of(runs: &[Run]) -> String {
    let mut lines = vec![line("", COLUMNS.map(|(heading, ..)| heading.to_owned()))];
    if runs.len() <= EACH {
        lines.extend(runs.iter().map(|run| {
            let values = COLUMNS.map(|(_, value, decimals)| number(value(run), decimals));
            line(&format!("{} → {}", run.from, run.to), values)
        }));
    }
    if runs.len() > 1 {
        lines.push(line("median", COLUMNS.map(|column| summary(runs, column, median))));
        lines.push(line("worst", COLUMNS.map(|column| summary(runs, column, worst))));
    }
    lines.concat()
}

fn line(title: &str, cells: [String; COLUMNS.len()]) -> String {
    let mut line = format!("{title:<10}");
    for ((heading, ..), cell) in COLUMNS.iter().zip(cells) {
        line += &format!("  {cell:>width$}", width = heading.len().max(7));
    }
    line + "\n"
}

fn summary(runs: &[Run], (_, value, decimals): Column, choose: fn(&[f64]) -> f64) -> String {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_unstable_by(f64::total_cmp);
    number(choose(&values), decimals)
}

/// Of sorted values the one in the middle. Of an even number the upper of the two there: never better than it was.
pub(super) fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// The last of sorted values.
pub(super) fn worst(sorted: &[f64]) -> f64 {
    sorted[sorted.len() - 1]
}

fn number(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::good_run;
    use super::*;

    #[test]
    fn one_run_is_one_line() {
        assert_eq!(
            of(&[good_run()]),
            "            pause ms   gap ms  hold adds ms     held  carried    gated     lost  duplicated  reordered  TCP retransmits  (pre-copy stall)\n\
             h1 → h2          9.0     10.0          1.00       20        0        0        0           0          0                0                 0\n"
        );
    }

    #[test]
    fn several_have_a_median_and_a_worst() {
        let with_pause = |pause_ms| Run { pause_ms, ..good_run() };
        let table = of(&[with_pause(3.0), with_pause(1.0), with_pause(2.0)]);
        let first_number = |title| {
            let line = table.lines().find(|line: &&str| line.starts_with(title)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!((first_number("median"), first_number("worst")), ("2.0".to_owned(), "3.0".to_owned()));
        assert_eq!(of(&vec![good_run(); 21]).lines().count(), 3);
    }
}
