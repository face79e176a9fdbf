//! What fuzzing has found, and what it began with, read once more by the same decoders.

use std::{collections::BTreeSet, fs, path::Path};

use throughline_decoders::{TARGETS, decode};

/// Largest corpus of a decoder, bytes: it is kept with the sources.
const LARGEST: u64 = 64 << 10;

fn fuzz() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz"))
}

#[test]
fn every_corpus_is_read() {
    for (target, _) in TARGETS {
        let directory = fuzz().join("corpus").join(target);
        let mut size = 0;
        let mut inputs = 0;
        for input in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = input.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            size += bytes.len() as u64;
            inputs += 1;
            let read = std::panic::catch_unwind(|| decode(target, &bytes));
            assert!(read.is_ok(), "{target} did not come back from {}", path.display());
        }
        assert!(inputs > 0, "{} is empty", directory.display());
        assert!(size <= LARGEST, "{}: {size} bytes; minimise it, see README.md", directory.display());
    }
}

#[test]
fn every_decoder_can_be_fuzzed_and_nothing_else() {
    let names = |directory: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz().join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for target in targets {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target} has no program");
    }
}
