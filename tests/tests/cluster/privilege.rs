//! What daemons may do, and who sees their files: while a guest moves, and after it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use throughline_agent::privilege;

use crate::lab::{Lab, NODES, wait_for};

/// A thread's `/proc` status, by name.
fn status(thread: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(thread.join("status")).unwrap();
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(field).collect()
}

/// Every thread of every daemon of a node has this and nothing else.
fn assert_keeps(lab: &Lab, node: &str, kept: u64) {
    let daemons = lab.daemons(node);
    assert_eq!(daemons.len(), 1, "{node} runs one daemon: {daemons:?}");
    let process = PathBuf::from(format!("/proc/{}", daemons[0]));
    let threads: Vec<_> = fs::read_dir(process.join("task")).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(threads.len() > 1, "{node}: a runtime has several threads");
    let (all, none) = (format!("{kept:016x}"), format!("{:016x}", 0));
    for thread in threads {
        let status = status(&thread);
        for (set, wanted) in
            [("CapEff", &all), ("CapPrm", &all), ("CapBnd", &all), ("CapInh", &none), ("CapAmb", &none)]
        {
            assert_eq!(&status[set], wanted, "{set} of {} on {node}, thread {}", status["Name"], thread.display());
        }
        assert_eq!(status["NoNewPrivs"], "1", "{node}, thread {}", thread.display());
    }
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().rev().take(3).collect::<Vec<_>>(), ["bytes", "0", "0"], "{node}: {core}");
}

/// Nobody but its owner reads, lists or writes anything at or below `path`. Gives how much was looked at.
fn assert_private(path: &Path) -> usize {
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    // Others may know the way through a directory. A socket's mark as executable means nothing.
    let widest = match () {
        () if kind.is_dir() => 0o711,
        () if kind.is_socket() => 0o700,
        () => 0o600,
    };
    // Of the sticky bit a BPF file system makes use only of its own accord.
    let mode = metadata.permissions().mode() & 0o777;
    assert_eq!(mode & !widest, 0, "{} has mode {mode:04o}", path.display());
    if !metadata.is_dir() {
        return 1;
    }
    // What ended meanwhile took its files along.
    let entries = fs::read_dir(path).unwrap().flatten().filter(|entry| entry.path().symlink_metadata().is_ok());
    1 + entries.map(|entry| assert_private(&entry.path())).sum::<usize>()
}

#[test]
fn daemons_keep_what_they_need_and_their_files_to_themselves() {
    let lab = Lab::up("privilege");
    lab.boot_guest();
    let bits = |peer_only| privilege::kept(peer_only).iter().fold(0, |all, keep| all | keep.capability.bits());
    assert_ne!(bits(true), bits(false), "a host without guests keeps less");
    for (node, kept) in [("ctl", 0), ("h1", bits(false)), ("h2", bits(false)), ("peer", bits(true))] {
        assert_keeps(&lab, node, kept);
        let log = fs::read_to_string(lab.log(node)).unwrap();
        assert!(log.contains("privileges are given up capabilities="), "{node} does not say what it keeps: {log}");
    }
    for qemu in lab.qemus("h1") {
        let status = status(Path::new(&format!("/proc/{qemu}")));
        let effective = u64::from_str_radix(&status["CapEff"], 16).unwrap();
        assert_eq!(effective & !bits(false), 0, "a QEMU has what its agent has not: {effective:x}");
        assert_eq!(status["NoNewPrivs"], "1");
    }

    let kept = |node: &str| ["state", "bpf"].map(|kept| lab.state().join(node).join(kept));
    let look = || -> usize {
        let kept = NODES.iter().flat_map(|node| kept(node)).filter(|path| path.exists());
        kept.map(|path| assert_private(&path)).sum()
    };
    let id = lab.begin_slow_move("h2");
    // Four state directories with three files at least, two guests' run directories, three of pins.
    let seen = look();
    assert!(seen > 40, "in mid-move there is more to look at than {seen} files");
    wait_for("the guest has moved", Duration::from_secs(60), || (lab.migration(&id)["phase"] == "DONE").then_some(()));
    lab.assert_runs_on("h2");
    look();
}
