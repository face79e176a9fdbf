//! A short cut of the fault suite: cells that tell the most, one for each way in which a part of the fabric can fail.

use std::fs;

use serde_json::Value;

use crate::lab::Lab;

/// What is done to whom, and when. A cell's name picks those of guests that have disks, or are off, with it.
const CELLS: [&str; 12] = [
    "source-agent/kill/told",
    "source-agent/kill/carry",
    "destination-agent/kill/committed",
    "controller/kill/committed",
    "peer-agent/kill/committed",
    "source-qemu/kill/carry",
    "source-agent/disk-full/precopy",
    "disks/destination-qemu/kill/mirror-middle",
    "disks/destination/storage-full/mirror-middle",
    "cold/source-agent/kill/told",
    "cold/destination-agent/kill/committed",
    "cold/controller/kill/committed",
];

#[test]
fn what_fails_in_mid_move_costs_no_frame() {
    let lab = Lab::reserve("faults");
    let directory = std::env::temp_dir().join(format!("throughline-{}", lab.name()));
    let table = directory.join("faults.md");
    let cells = CELLS.join(",");
    let suite = lab.runner(&["chaos", "--only", &cells, "--out", table.to_str().unwrap()]).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&suite.stdout), String::from_utf8_lossy(&suite.stderr));
    let figures = fs::read(table.with_extension("json"));
    let _ = fs::remove_dir_all(&directory);
    assert!(suite.status.success(), "the suite ended with {}:\n{told}", suite.status);

    let figures: Value = serde_json::from_slice(&figures.expect("the suite writes its figures")).unwrap();
    let played = figures["cells"].as_object().unwrap();
    assert_eq!(played.len(), CELLS.len(), "{told}");
    for cell in CELLS {
        if cell.starts_with("disks/") || cell.starts_with("cold/") {
            let disks = &played[cell]["seen"]["disks"];
            let bytes = |key: &str| disks[key].as_u64().unwrap_or_else(|| panic!("{cell}: {key} is told: {disks}"));
            assert!(bytes("whole") > 8 << 20 && bytes("left") > 0, "{cell}: {disks}");
        }
        // A guest that is off sends nothing.
        if cell.starts_with("cold/") {
            continue;
        }
        let counts = &played[cell]["seen"]["counts"];
        assert!(counts["sent"].as_u64() > Some(2_000), "{cell}: too little was sent to prove anything: {counts}");
        for fault in ["lost_to_guest", "lost_from_guest", "duplicated", "resets", "corrupted"] {
            assert_eq!(counts[fault], 0, "{cell}: {fault}");
        }
    }
    assert_eq!(lab.namespaces(), Vec::<String>::new(), "the suite leaves no namespace");
}
