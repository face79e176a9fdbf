//! There and back under traffic, as the demo shows it.

use std::fs;

use serde_json::Value;

use crate::lab::Lab;

#[test]
fn two_migrations_that_nobody_noticed() {
    let lab = Lab::reserve("demo");
    let path = std::env::temp_dir().join(format!("throughline-{}.json", lab.name()));
    let output = lab.runner(&["demo", "--runs", "2", "--json", path.to_str().unwrap()]).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let record = fs::read(&path);
    let _ = fs::remove_file(&path);
    assert!(output.status.success(), "the demo ended with {}:\n{told}", output.status);

    let record: Value = serde_json::from_slice(&record.expect("the demo writes its record")).unwrap();
    let runs = record["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{record:#}");
    for (run, [from, to]) in runs.iter().zip([["h1", "h2"], ["h2", "h1"]]) {
        assert_eq!((&run["from"], &run["to"]), (&from.into(), &to.into()), "{run:#}");
        for fault in ["lost_to_guest", "lost_from_guest", "duplicated", "reordered", "tcp_resets"] {
            assert_eq!(run[fault], 0, "{fault}, moving from {from} to {to}: {run:#}");
        }
        assert_eq!(run["memory_ok"], true, "the guest's memory did not survive: {run:#}");
        // 2,000 a second each way, for the second that a run takes at the very least.
        assert!(run["sent"].as_u64() > Some(4_000), "too little was sent to prove anything: {run:#}");
        assert!(run["pause_ms"].as_f64() > Some(0.0), "a guest that never paused never moved: {run:#}");
    }

    assert_eq!(lab.namespaces(), Vec::<String>::new(), "the demo leaves no namespace");
    assert!(!lab.state().exists(), "the demo leaves {}", lab.state().display());
}
