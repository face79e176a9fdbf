//! Every lab file is a containerlab file.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::fs;
use std::path::Path;

use serde_json::Value;

fn lab() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn validator() -> jsonschema::Validator {
    let schema = fs::read_to_string(lab().join("schema/clab.schema.json")).unwrap();
    jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap()
}

fn yaml(path: &Path) -> Value {
    serde_norway::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_topology_is_valid_for_containerlab() {
    let validator = validator();
    let mut checked = 0;
    for entry in fs::read_dir(lab()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".clab.yml") {
            let errors: Vec<_> = validator.iter_errors(&yaml(&path)).map(|error| error.to_string()).collect();
            assert_eq!(errors, Vec::<String>::new(), "{}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 0, "there are no topologies in {}", lab().display());
}

#[test]
fn the_schema_can_say_no() {
    let mut topology = yaml(&lab().join("three-hosts.clab.yml"));
    topology["topology"]["nodes"]["h1"]["colour"] = "green".into();
    assert!(!validator().is_valid(&topology));
}
