//! What the fabric's parts use, before the moves, between and after them: a move that leaves something behind shows as growth.
//! Growth is counted from when the guest has been there and back: what a host makes for its first move and keeps, the carry
//! device above all, is no leak.
//!
//! Looked at from outside: the kernel is asked, no daemon. Only while the guest is where it was at first, so that what a guest
//! takes counts on the same host each time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::topology::{Role, Topology};

/// How much more memory a daemon may use in the end than at first: it may keep records of past moves, and freed memory stays
/// with the allocator for a while.
const RSS_SLACK_KIB: u64 = 16 << 10;

/// Moves after which every host has been both ends of one.
const FIRST: u32 = 2;

/// Everything that was counted at one moment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Snapshot {
    /// Moves made before it.
    pub(super) moves: u32,
    /// Counts of each node that has a daemon.
    pub(super) nodes: BTreeMap<String, Usage>,
}

/// What is there on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    /// Network devices.
    links: u64,
    /// FDB entries of bridges and VXLAN devices.
    fdb: u64,
    /// Neighbour entries that were written, not learned.
    neighbours: u64,
    /// Processes: the daemon, guests' QEMUs, probes.
    processes: u64,
    /// Files pinned in its BPF file system.
    bpf_pins: u64,
    /// BPF programs the daemon has open.
    bpf_programs: u64,
    /// BPF maps the daemon has open.
    bpf_maps: u64,
    /// BPF links the daemon has open.
    bpf_links: u64,
    /// Descriptors the daemon has open, of any kind.
    fds: u64,
    /// Memory the daemon occupies, KiB.
    rss_kib: u64,
}

/// A column: its heading, and what it shows.
type Column = (&'static str, fn(&Usage) -> u64);

/// Those that must not grow at all.
const EXACT: [Column; 9] = [
    ("links", |usage| usage.links),
    ("FDB", |usage| usage.fdb),
    ("neighbours", |usage| usage.neighbours),
    ("processes", |usage| usage.processes),
    ("BPF pins", |usage| usage.bpf_pins),
    ("programs", |usage| usage.bpf_programs),
    ("maps", |usage| usage.bpf_maps),
    ("BPF links", |usage| usage.bpf_links),
    ("fds", |usage| usage.fds),
];

/// Takes the snapshots of a run of moves.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    lab: &'a Lab,
    nodes: Vec<&'a str>,
    due: Vec<u32>,
    snapshots: Vec<Snapshot>,
}

impl<'a> Watch<'a> {
    /// Will look before the first of `runs` moves, after there and back, about half-way, and after the last one that brings
    /// the guest back.
    pub(super) fn new(lab: &'a Lab, topology: &'a Topology, runs: u32) -> Self {
        let daemons = topology.nodes.iter().filter(|node| node.role != Role::Underlay);
        Self { lab, nodes: daemons.map(|node| node.name.as_str()).collect(), due: due(runs), snapshots: Vec::new() }
    }

    /// To be called before the first move and after each one, with the number of moves made.
    pub(super) fn look(&mut self, moves: u32) -> Result<()> {
        if !self.due.contains(&moves) {
            return Ok(());
        }
        let usage = |node: &&str| Ok(((*node).to_owned(), Usage::of(self.lab, node)?));
        let nodes = self.nodes.iter().map(usage).collect::<Result<_>>()?;
        self.snapshots.push(Snapshot { moves, nodes });
        Ok(())
    }

    /// What it saw.
    pub(super) fn finish(self) -> Vec<Snapshot> {
        self.snapshots
    }
}

/// After how many moves to look: always an even number, for then the guest is at home.
fn due(runs: u32) -> Vec<u32> {
    let mut due = vec![0, FIRST, runs / 4 * 2, runs / 2 * 2];
    due.retain(|&moves| moves <= runs);
    due.sort_unstable();
    due.dedup();
    if due.len() > 1 { due } else { Vec::new() }
}

/// What has grown since the guest was there and back, in sentences; empty if nothing has.
pub(super) fn grown(snapshots: &[Snapshot]) -> Vec<String> {
    let first = snapshots.iter().find(|snapshot| snapshot.moves >= FIRST);
    let (Some(first), Some(last)) = (first, snapshots.last()) else { return Vec::new() };
    let mut grown = Vec::new();
    for (node, after) in &last.nodes {
        let before = first.nodes.get(node).copied().unwrap_or_default();
        for (what, count) in EXACT {
            if count(after) > count(&before) {
                grown.push(format!("{node}: {what} grew from {} to {}", count(&before), count(after)));
            }
        }
        if after.rss_kib > before.rss_kib + RSS_SLACK_KIB {
            grown.push(format!("{node}: memory grew from {} to {} KiB", before.rss_kib, after.rss_kib));
        }
    }
    grown
}

/// A line for each node and snapshot.
pub(super) fn table(snapshots: &[Snapshot]) -> String {
    let headings = EXACT.map(|(heading, _)| format!("  {heading:>width$}", width = width(heading))).concat();
    let mut text = format!("{:<24}{headings}  {:>7}\n", "what is there", "RSS MiB");
    for node in snapshots.first().into_iter().flat_map(|snapshot| snapshot.nodes.keys()) {
        for snapshot in snapshots {
            let Some(usage) = snapshot.nodes.get(node) else { continue };
            let when = match snapshot.moves {
                0 => "before".to_owned(),
                moves => format!("after {moves} moves"),
            };
            let counts =
                EXACT.map(|(heading, count)| format!("  {:>width$}", count(usage), width = width(heading))).concat();
            text += &format!("{node:<8}{when:<16}{counts}  {:>7.1}\n", usage.rss_kib as f64 / 1024.0);
        }
    }
    text
}

fn width(heading: &str) -> usize {
    heading.len().max(5)
}

impl Usage {
    /// Counts it.
    pub(crate) fn of(lab: &Lab, node: &str) -> Result<Self> {
        let namespace = lab.namespace(node);
        let processes = lab.processes(node)?;
        let daemon = processes.iter().map(|pid| Path::new("/proc").join(pid.to_string())).find(|path| is_daemon(path));
        let daemon = daemon.with_context(|| format!("the daemon of {node} does not run"))?;
        let mut usage = Self {
            links: lines(&namespace, "ip", &["-o", "link", "show"])?,
            fdb: lines(&namespace, "bridge", &["fdb", "show"])?,
            neighbours: lines(&namespace, "ip", &["neighbour", "show", "nud", "permanent"])?,
            processes: processes.len() as u64,
            bpf_pins: files_below(&lab.bpffs(node)),
            rss_kib: rss_kib(&daemon)?,
            ..Self::default()
        };
        for entry in fs::read_dir(daemon.join("fdinfo"))? {
            usage.fds += 1;
            // One that was closed meanwhile was none of those that stay.
            let info = fs::read_to_string(entry?.path()).unwrap_or_default();
            let has = |key: &str| info.lines().any(|line| line.starts_with(key));
            // A link names its program too.
            match () {
                () if has("link_id:") => usage.bpf_links += 1,
                () if has("prog_id:") => usage.bpf_programs += 1,
                () if has("map_id:") => usage.bpf_maps += 1,
                () => {}
            }
        }
        Ok(usage)
    }
}

/// What of `after` is more than before, in words; descriptors, which come and go with who asks, not counted.
pub(crate) fn surplus(before: &Usage, after: &Usage) -> Vec<String> {
    let kept = EXACT.into_iter().filter(|(what, _)| *what != "fds");
    let more = kept.filter(|(_, count)| count(after) > count(before));
    more.map(|(what, count)| format!("{what} {} instead of {}", count(after), count(before))).collect()
}

fn is_daemon(process: &Path) -> bool {
    let program = fs::read_link(process.join("exe")).unwrap_or_default();
    program.file_name().is_some_and(|name| name == "throughline-agent" || name == "throughline-controller")
}

fn lines(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<u64> {
    let output = namespace.command(program)?.args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(output.stdout.iter().filter(|&&byte| byte == b'\n').count() as u64)
}

fn rss_kib(process: &Path) -> Result<u64> {
    let status = fs::read_to_string(process.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn files_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(moves: u32, usage: Usage) -> Snapshot {
        Snapshot { moves, nodes: BTreeMap::from([("h1".to_owned(), usage)]) }
    }

    fn usage() -> Usage {
        Usage { links: 6, fdb: 9, fds: 30, rss_kib: 20_000, ..Usage::default() }
    }

    #[test]
    fn it_looks_when_the_guest_is_at_home() {
        assert_eq!(due(200), [0, 2, 100, 200]);
        assert_eq!(due(4), [0, 2, 4]);
        assert_eq!(due(7), [0, 2, 6]);
        assert_eq!(due(2), [0, 2]);
        assert_eq!(due(1), Vec::<u32>::new());
    }

    #[test]
    fn flat_is_flat_and_memory_has_some_slack() {
        let after = Usage { rss_kib: 20_000 + RSS_SLACK_KIB, ..usage() };
        assert_eq!(grown(&[snapshot(2, usage()), snapshot(4, after)]), Vec::<String>::new());
        assert_eq!(grown(&[]), Vec::<String>::new());
    }

    #[test]
    fn one_more_of_anything_is_said() {
        let more: [fn(&mut Usage); 10] = [
            |usage| usage.links += 1,
            |usage| usage.fdb += 1,
            |usage| usage.neighbours += 1,
            |usage| usage.processes += 1,
            |usage| usage.bpf_pins += 1,
            |usage| usage.bpf_programs += 1,
            |usage| usage.bpf_maps += 1,
            |usage| usage.bpf_links += 1,
            |usage| usage.fds += 1,
            |usage| usage.rss_kib += RSS_SLACK_KIB + 1,
        ];
        for change in more {
            let mut after = usage();
            change(&mut after);
            assert_eq!(grown(&[snapshot(0, usage()), snapshot(2, usage()), snapshot(4, after)]).len(), 1, "{after:?}");
            assert_eq!(
                grown(&[snapshot(0, usage()), snapshot(2, after)]),
                Vec::<String>::new(),
                "made for the first move"
            );
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_node_and_moment() {
        let text = table(&[snapshot(0, usage()), snapshot(100, usage()), snapshot(200, usage())]);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("h1      after 100 moves") && text.contains("19.5"), "{text}");
    }
}
