//! No crate imports what it must not: see `throughline_tests::imports` for the rule.

use cargo_metadata::MetadataCommand;
use throughline_tests::imports::Graph;

#[test]
fn every_crate_keeps_to_its_room() {
    let mut graph = Graph::default();
    // The kernel's programs are a workspace of their own: another target.
    for manifest in ["../Cargo.toml", "../ebpf/programs/Cargo.toml"] {
        let path = format!("{}/{manifest}", env!("CARGO_MANIFEST_DIR"));
        let metadata = MetadataCommand::new().manifest_path(&path).no_deps().exec().unwrap();
        graph.add(&metadata);
    }
    let violations: Vec<_> = graph.violations().iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "imports against the rule of the rooms:\n  {}", violations.join("\n  "));
}
