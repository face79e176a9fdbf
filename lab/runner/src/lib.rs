//! What of the lab others look at: how it reads a topology. The lab itself is the program.

#[allow(dead_code, reason = "the program's; here only its reading is of interest")]
mod topology;

/// Reads a topology as the lab does.
///
/// # Errors
/// Why it cannot be played.
pub fn read_topology(text: &str) -> anyhow::Result<()> {
    topology::Topology::parse(text).map(drop)
}
