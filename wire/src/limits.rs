//! How much of what, at most. What is too much is refused with the field's name; text for people is cut instead, so that a
//! long explanation does not cost its message.

/// Largest message an agent takes from its controller, bytes: a desired state names every port of a fabric.
pub const LARGEST_ORDER: usize = 64 << 20;
/// Largest message two agents take from each other, bytes.
pub const LARGEST_PEER_MESSAGE: usize = 1 << 20;
/// Most guests a host may name.
pub const MOST_GUESTS: usize = 2048;
/// Most replicas a host may name, those it sends and those it keeps.
pub const MOST_REPLICAS: usize = 8192;
/// Most ports a guest may have.
pub const MOST_PORTS: usize = 8;
/// Most addresses a port may have.
pub const MOST_IPS: usize = 16;
/// Most peers whose markers a port's gate may wait for.
pub const MOST_PEERS: usize = 4096;
/// Most multicast groups of one port that move with it.
pub const MOST_GROUPS: usize = 4096;
/// Most problems of a reconciliation that are kept.
pub const MOST_PROBLEMS: usize = 256;
/// Longest id of a migration, and longest token, bytes.
pub const LONGEST_ID: usize = 64;
/// Longest code of a failure, bytes.
pub const LONGEST_REASON: usize = 64;
/// Longest text for people, bytes.
pub const LONGEST_TEXT: usize = 4096;

/// The text, or as much of it as is kept.
pub fn cut(mut text: String, longest: usize) -> String {
    const MARK: &str = " [cut]";
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest.saturating_sub(MARK.len())));
        text.push_str(MARK);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(cut("short".into(), 5), "short");
        let cut_text = cut("ä".repeat(100), 51);
        assert_eq!(cut_text, format!("{} [cut]", "ä".repeat(22)));
        assert!(cut_text.len() <= 51);
    }
}
