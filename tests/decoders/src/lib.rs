//! Every decoder that meets bytes from outside, each as one function that takes any bytes and must come back. What it must
//! not do is panic, hang or take memory without measure; where something reads, it must read the same when it is written
//! and read again.
//!
//! `make fuzz TARGET=... SECONDS=...` looks for bytes that it does not come back from (`fuzz/`); what was found is kept in
//! `fuzz/corpus/<target>` and replayed by `tests/corpus.rs` with all other tests.

mod files;
mod frames;
mod messages;
mod systems;

/// A decoder under a name: that of its corpus, and of its program in `fuzz/fuzz_targets`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 15] = [
    ("agent_messages", messages::agent),
    ("controller_messages", messages::controller),
    ("frames", frames::frames),
    ("guest_agent", systems::guest_agent),
    ("identity", files::identity),
    ("images", files::images),
    ("journal", files::journal),
    ("netlink", systems::netlink),
    ("peer_messages", messages::peer),
    ("plans", messages::plans),
    ("qmp", systems::qmp),
    ("record", files::record),
    ("requests", messages::requests),
    ("roles", files::roles),
    ("topology", files::topology),
];

/// Has a decoder read some bytes.
///
/// # Panics
/// If there is no target of that name; if the decoder fails, which is what fuzzing looks for.
pub fn decode(target: &str, bytes: &[u8]) {
    let (_, decoder) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of that name");
    decoder(bytes);
}

/// The first byte chooses among several decoders of a kind; the rest is theirs.
fn chosen(bytes: &[u8]) -> Option<(u8, &[u8])> {
    bytes.split_first().map(|(choice, rest)| (*choice, rest))
}
