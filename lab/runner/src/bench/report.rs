//! results.md: tables, the commands that made them, and what the words in them mean.

use super::continuity::{Continuity, Row, Tried};
use super::cost::Cost;
use super::disks::Disks;
use super::hostile::Hostile;
use super::load::{COMPARED, HEAVY};
use super::results::{Part, Results};
use super::traffic::Window;
use crate::demo::budget;

/// A column: its heading, what it shows of a window, and how many decimals.
type Column = (&'static str, fn(&Window) -> f64, usize);

const COLUMNS: [Column; 9] = [
    ("lost to guest", |window| window.lost_to_guest as f64, 0),
    ("of them after it ran", |window| window.lost_after_run as f64, 0),
    ("lost from guest", |window| window.lost_from_guest as f64, 0),
    ("duplicated", |window| window.duplicated as f64, 0),
    ("reordered", |window| window.reordered as f64, 0),
    ("outage ms", |window| window.outage_ms, 1),
    ("pause ms", |window| window.pause_ms, 1),
    ("TCP retransmits", |window| f64::from(window.retransmits), 0),
    ("resets", |window| window.resets as f64, 0),
];

const WORDS: &str = "\
Guests are emulated and all hosts are network namespaces of one machine: compare rows, do not carry figures elsewhere. Cells \
are *median / worst* over the windows of a row. A window is one move, or, in the rows *no move*, the same probes for the same \
guest left alone: the machine's own noise, measured before the moves of each round. The probes ask no daemon. *After it ran*: \
sent after the guest ran again. *Outage*: longest time the peer had no echo from the guest, from STOP to 3 s after it ran; \
*no move*: in the whole window. *Pause*: STOP to RESUME. *TCP retransmits*: segments, both ends, from STOP on; those before \
(an emulated guest stalls as pre-copy begins) are in the JSON.
";

/// The whole text.
pub(super) fn of(results: &Results) -> String {
    let mut text = "# Bench\n\nWritten by `make bench`; the figures behind it are in `results.json`.\n\n".to_owned();
    text += WORDS;
    text += "\n## Continuity\n\n";
    text += "The same guest, devices, hosts and probes; the ways took turns, (a) (b) (c) (d), in each round. (a) to (c): QEMU's \
             plain pre-copy with its default limits, announcing itself, running by itself at the destination. (c): FRR, iBGP \
             full mesh, duplicate detection off.\n\n";
    text += &match &results.continuity {
        Some(part) => made_by(part) + &continuity(&part.result),
        None => missing("continuity"),
    };
    text += "\n## Load\n\nThroughline under as much as the guest takes, and more. *Held*: frames that waited at the source. \
             *Refused*: by a full hold.\n\n";
    text += &match &results.load {
        Some(part) => made_by(part) + &load(&part.result),
        None => missing("load"),
    };
    text += "\n## Cutover budget\n\n";
    text += &match &results.budget {
        Some(part) => made_by(part) + &stretches(&part.result),
        None => missing("budget"),
    };
    text += "\n## Hostile\n\nMoves under 2,000 packets/s each way, with and without garbage at the tunnels of the destination, in turn. \
             The garbage: VXLAN under made-up numbers and noise, to the carry's port and the tenants', from a stranger's \
             address and from the source's.\n\n";
    text += &match &results.hostile {
        Some(part) => made_by(part) + &hostile(&part.result),
        None => missing("hostile"),
    };
    text += "\n## Cost and hold\n\n";
    text += &match &results.cost {
        Some(part) => made_by(part) + &cost(&part.result),
        None => missing("cost"),
    };
    text += "\n## Memory stream\n\nThe first pass over a busy guest of 1 GiB, in the clear and sealed in turns, without a limit; \
             both ends, what seals and the guest itself share the processors.\n\n";
    text += &match &results.stream {
        Some(part) => made_by(part) + &cost(&part.result),
        None => missing("stream"),
    };
    text += "\n## Disks\n\nA full disk of 1 GiB copied without a limit, in turns, by a mirror to a destination's QEMU, sealed, and by \
             QEMU's own tool; the guest runs and writes nothing. Then the pause of an idle guest, without disks and with two idle \
             ones (raw and qcow2), in turns.\n\n";
    text += &match &results.disks {
        Some(part) => made_by(part) + &cost(&part.result.copy) + "\n" + &pauses(&part.result),
        None => missing("disks"),
    };
    text
}

fn missing(part: &str) -> String {
    format!("Not measured: `make bench ARGS=\"--only {part}\"`.\n")
}

fn made_by<T>(part: &Part<T>) -> String {
    let Part { command, at, minutes, machine, .. } = part;
    format!(
        "`{command}`, {at} UTC, {minutes:.0} min, at {}: Linux {}, {} processors, {}, guests emulated (TCG).\n\n",
        machine.version, machine.kernel, machine.cpus, machine.qemu
    )
}

fn continuity(seen: &Continuity) -> String {
    let mut text = String::new();
    for load in COMPARED {
        let rows: Vec<&Row> = seen.rows.iter().filter(|row| row.load == load.name).collect();
        if rows.is_empty() {
            continue;
        }
        text += &format!("### {}\n\n", load.title);
        text += &head(
            &["moves", "sent to guest"].into_iter().chain(COLUMNS.map(|(heading, ..)| heading)).collect::<Vec<_>>(),
        );
        for row in &rows {
            text += &line(row.way.title(), &row.moves);
        }
        for row in &rows {
            let title = row.way.title();
            text += &line(&format!("no move {}", title.get(..3).unwrap_or(title)), &row.still);
        }
        text.push('\n');
    }
    text + &ceiling(&seen.ceiling)
}

fn ceiling(tried: &[Tried]) -> String {
    let Some(last) = tried.iter().take_while(|tried| tried.lost == 0).last() else { return String::new() };
    let list: Vec<_> = tried.iter().map(|Tried { pps, sent, lost }| format!("{pps}: {lost} of {sent}")).collect();
    format!(
        "What the guest takes, no move, plain bridge, 2 s each: up to {} packets/s without a loss. Lost at packets/s: {}.\n",
        last.pps,
        list.join("; ")
    )
}

fn load(seen: &Continuity) -> String {
    let mut headings = vec!["moves", "sent to guest"];
    headings.extend(COLUMNS.map(|(heading, ..)| heading));
    headings.extend(["held", "refused", "bulk MB"]);
    let mut text = head(&headings);
    for load in HEAVY {
        for row in seen.rows.iter().filter(|row| row.load == load.name) {
            for (title, windows) in
                [(load.title.to_owned(), &row.moves), (format!("no move: {}", load.title), &row.still)]
            {
                let held = cell(windows, |window| window.moved.map_or(0.0, |moved| moved.held as f64), 0);
                let refused = cell(windows, |window| window.moved.map_or(0.0, |moved| moved.overflowed as f64), 0);
                let bulk = cell(windows, |window| window.bulk_mb, 0);
                text += &(line(&title, windows).trim_end().to_owned() + &format!(" {held} | {refused} | {bulk} |\n"));
            }
        }
    }
    text
}

fn hostile(seen: &Hostile) -> String {
    let headings: Vec<_> = ["moves", "sent to guest"].into_iter().chain(COLUMNS.map(|(heading, ..)| heading)).collect();
    let flooded = format!("beside {} frames of garbage in all", seen.garbage);
    head(&headings) + &line(&flooded, &seen.flooded) + &line("without", &seen.quiet)
}

fn stretches(rows: &[budget::Row]) -> String {
    let mut text = head(&["p50 ms", "p99 ms"]);
    for budget::Row { stretch, p50_ms, p99_ms } in rows {
        text += &format!("| {stretch} | {p50_ms:.2} | {p99_ms:.2} |\n");
    }
    text
}

fn pauses(disks: &Disks) -> String {
    let mut text = head(&["without p50 ms", "without p99 ms", "with p50 ms", "with p99 ms"]);
    let with = |stretch: &str| disks.with.iter().find(|row| row.stretch == stretch);
    for (without, with) in disks.without.iter().filter_map(|row| Some((row, with(&row.stretch)?))) {
        let figures =
            [without.p50_ms, without.p99_ms, with.p50_ms, with.p99_ms].map(|ms| format!("{ms:.2}")).join(" | ");
        text += &format!("| {} | {figures} |\n", without.stretch);
    }
    text
}

fn cost(cost: &Cost) -> String {
    let mut text = head(&["unit", "median", "min", "max", "samples", "target", "command"]);
    for row in &cost.rows {
        let figures = [row.median, row.min, row.max].map(significant).join(" | ");
        let target = row.target.as_deref().unwrap_or("");
        text +=
            &format!("| {} | {} | {figures} | {} | {target} | `{}` |\n", row.name, row.unit, row.samples, row.command);
    }
    text
}

/// As many decimals as a figure of its size is worth.
fn significant(value: f64) -> String {
    let decimals = match value.abs() {
        size if size < 10.0 => 2,
        size if size < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// The head of a table whose first column has no heading.
fn head(headings: &[&str]) -> String {
    format!("| | {} |\n|---|{}\n", headings.join(" | "), "---:|".repeat(headings.len()))
}

fn line(title: &str, windows: &[Window]) -> String {
    let sent: u64 = windows.iter().map(|window| window.sent_to_guest).sum();
    let cells = COLUMNS.map(|(_, value, decimals)| cell(windows, value, decimals)).join(" | ");
    format!("| {title} | {} | {sent} | {cells} |\n", windows.len())
}

/// The median and the worst. Of an even number of values the upper of the two in the middle: never better than it was.
fn cell(windows: &[Window], value: impl Fn(&Window) -> f64, decimals: usize) -> String {
    let mut values: Vec<f64> = windows.iter().map(value).collect();
    values.sort_unstable_by(f64::total_cmp);
    match (values.get(values.len() / 2), values.last()) {
        (Some(0.0), Some(0.0)) => "0".to_owned(),
        (Some(median), Some(worst)) => format!("{median:.decimals$} / {worst:.decimals$}"),
        _ => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::way::Way;
    use super::*;

    fn window(lost_to_guest: u64) -> Window {
        Window { lost_to_guest, sent_to_guest: 100, pause_ms: 12.34, ..Window::default() }
    }

    fn results() -> Results {
        let row = |way| Row {
            load: "paced".to_owned(),
            way,
            moves: vec![window(3), window(1), window(2)],
            still: vec![window(0)],
        };
        let tried = |pps, lost| Tried { pps, sent: 1000, lost };
        let seen = Continuity { rows: Way::ALL.map(row).to_vec(), ceiling: vec![tried(5000, 0), tried(10_000, 7)] };
        Results { continuity: Some(Part::for_test(seen)), ..Results::default() }
    }

    #[test]
    fn the_ways_stand_side_by_side_with_the_noise() {
        let text = of(&results());
        let at = |title: &str| text.find(&format!("\n| {title}")).unwrap_or_else(|| panic!("no {title}: {text}"));
        assert!(
            at("(a)") < at("(b)") && at("(b)") < at("(c)") && at("(c)") < at("(d)") && at("(d)") < at("no move (a)")
        );
        assert!(text.contains("| (d) Throughline | 3 | 300 | 2 / 3 | 0 | 0 |"), "{text}");
        assert!(text.contains("12.3 / 12.3"), "{text}");
        assert!(text.contains("up to 5000 packets/s") && text.contains("10000: 7 of 1000"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_named_with_its_command() {
        let text = of(&Results::default());
        for part in ["continuity", "load", "budget", "hostile", "cost", "stream", "disks"] {
            assert!(text.contains(&format!("--only {part}")), "{text}");
        }
    }

    #[test]
    fn tables_are_tables() {
        let text = of(&results());
        let mut columns = None;
        for line in text.lines() {
            let count = line.starts_with('|').then(|| line.matches('|').count());
            if columns.is_some() && count.is_some() {
                assert_eq!(columns, count, "{line}");
            }
            columns = count;
        }
    }
}
