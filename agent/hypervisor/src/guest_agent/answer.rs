//! What a guest's agent says, whoever it is: the guest chooses every byte. Pure.

use qapi::{Command, qga};
use serde::Deserialize as _;
use serde_json::Value;

/// Most bytes of one answer, and of what an agent had left to say to somebody before. How deep it may nest the parser bounds (128).
pub(super) const LONGEST: u64 = 64 << 10;
/// Comes before the answer to a synchronisation; no JSON has it.
const SENTINEL: u8 = 0xff;
/// Most of a refusal that is repeated in a log, characters.
const LONGEST_WORDS: usize = 200;

/// Why what was said is no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    /// It cannot or will not.
    #[error("it refuses: {0}")]
    Refused(String),
    /// Something else altogether.
    #[error("what it says is no answer")]
    Garbage,
}

/// The answer to a command, out of the line that came after it.
pub(super) fn read<C: Command>(line: &[u8]) -> Result<C::Ok, NoAnswer> {
    let mut answer: Value = serde_json::from_slice(after_sentinel(line)).map_err(|_| NoAnswer::Garbage)?;
    if let Some(value) = answer.get_mut("return") {
        return C::Ok::deserialize(value.take()).map_err(|_| NoAnswer::Garbage);
    }
    let words = answer.pointer("/error/desc").and_then(Value::as_str).ok_or(NoAnswer::Garbage)?;
    // The guest's words go into a log of the host's.
    let plain = words.chars().map(|it| if it.is_control() { char::REPLACEMENT_CHARACTER } else { it });
    Err(NoAnswer::Refused(plain.take(LONGEST_WORDS).collect()))
}

/// Whether a line is the answer to the synchronisation `id`; what was asked before may be answered first.
pub(super) fn is_in_step(line: &[u8], id: i64) -> bool {
    line.contains(&SENTINEL) && read::<qga::guest_sync_delimited>(line) == Ok(id)
}

/// A synchronisation as it is sent: what the agent may have read half of ends here.
pub(super) fn sentinel() -> [u8; 1] {
    [SENTINEL]
}

fn after_sentinel(line: &[u8]) -> &[u8] {
    line.rsplit(|byte| *byte == SENTINEL).next().unwrap_or_default()
}

/// Reads bytes as a connection to a guest's agent does, line by line, as the answer to each command that is ever sent there.
pub fn read_agent_answers(bytes: &[u8]) {
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let _in_step = is_in_step(line, 7);
        let _status = read::<qga::guest_fsfreeze_status>(line);
        if let Err(NoAnswer::Refused(words)) = read::<qga::guest_fsfreeze_freeze>(line) {
            assert!(words.chars().count() <= LONGEST_WORDS && !words.contains('\n'), "it is one line of a log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_refusals_and_from_anything_else() {
        let freeze = read::<qga::guest_fsfreeze_freeze>;
        assert_eq!(freeze(b"{\"return\": 2}\n"), Ok(2));
        let refused = br#"{"error": {"class": "CommandNotFound", "desc": "has been\ndisabled"}}"#;
        assert_eq!(freeze(refused), Err(NoAnswer::Refused("has been\u{fffd}disabled".into())));
        let long = format!(r#"{{"error": {{"desc": "{}"}}}}"#, "x".repeat(9_000));
        assert_eq!(freeze(long.as_bytes()), Err(NoAnswer::Refused("x".repeat(LONGEST_WORDS))));
        let deep = "[".repeat(60_000);
        for garbage in
            [&b""[..], b"\n", b"{}", b"{\"return\": \"frozen\"}", b"\xff\xff", b"{\"return\":", deep.as_bytes()]
        {
            assert_eq!(freeze(garbage), Err(NoAnswer::Garbage), "{}", String::from_utf8_lossy(garbage));
        }
        let status = read::<qga::guest_fsfreeze_status>(b"{\"return\": \"frozen\"}");
        assert_eq!(status, Ok(qga::GuestFsfreezeStatus::frozen));
    }

    #[test]
    fn an_agent_is_in_step_when_it_answers_what_it_was_asked_last() {
        assert!(is_in_step(b"\xff{\"return\": 7}\n", 7));
        assert!(is_in_step(b"{\"return\": \xff{\"return\": 7}\n", 7), "what it had half said is passed over");
        for other in [&b"\xff{\"return\": 6}\n"[..], b"{\"return\": 7}\n", b"\xff{\"error\": {}}\n", b"\xff"] {
            assert!(!is_in_step(other, 7), "{}", String::from_utf8_lossy(other));
        }
    }
}
