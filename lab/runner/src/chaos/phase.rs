//! The moments of a move at which something is done to it, and how they are recognised in the agents' logs.

use serde::{Deserialize, Serialize};

/// Whose log tells of a moment, and by which of its machine's events and effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    /// The host the guest leaves.
    Source,
    /// The host it goes to.
    Destination,
}

/// A moment of a move. Their order is the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    Prepare,
    Precopy,
    GiveUp,
    Arm,
    Pause,
    Told,
    Commit,
    Committed,
    Carry,
    Open,
    Settle,
    Remove,
}

impl Phase {
    /// All of them.
    pub(super) const ALL: [Self; 12] = [
        Self::Prepare,
        Self::Precopy,
        Self::GiveUp,
        Self::Arm,
        Self::Pause,
        Self::Told,
        Self::Commit,
        Self::Committed,
        Self::Carry,
        Self::Open,
        Self::Settle,
        Self::Remove,
    ];

    /// Its name in a cell's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Precopy => "precopy",
            Self::GiveUp => "give-up",
            Self::Arm => "arm",
            Self::Pause => "pause",
            Self::Told => "told",
            Self::Commit => "commit",
            Self::Committed => "committed",
            Self::Carry => "carry",
            Self::Open => "open",
            Self::Settle => "settle",
            Self::Remove => "remove",
        }
    }

    /// What happens then.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Prepare => "both ends make ready",
            Self::Precopy => "memory begins to go",
            Self::GiveUp => "the source writes that it gives the guest up",
            Self::Arm => "frames for the guest begin to be held",
            Self::Pause => "QEMU is let go: it stops the guest at the end of its slot",
            Self::Told => "the guest stands; the source tells the destination that it gave it up",
            Self::Commit => "the destination writes its commit",
            Self::Committed => "the commit is on disk, the guest is started at the destination",
            Self::Carry => "the source begins to send what it held after the guest",
            Self::Open => "the destination opens the gate",
            Self::Settle => "every peer has been told; the source waits until nothing comes",
            Self::Remove => "the source removes the guest's remains",
        }
    }

    /// Where the first line that belongs to it is logged, and the effect that line is about.
    pub(super) fn mark(self) -> (End, &'static str) {
        match self {
            Self::Prepare => (End::Source, "PrepareDatapath"),
            Self::Precopy => (End::Source, "StartPrecopy"),
            Self::GiveUp => (End::Source, "RecordGiveUp"),
            Self::Arm => (End::Source, "Arm"),
            Self::Pause => (End::Source, "Pause"),
            Self::Told => (End::Source, "TellGiveUp"),
            Self::Commit => (End::Destination, "RecordCommit"),
            Self::Committed => (End::Destination, "TellCommitted"),
            Self::Carry => (End::Source, "ReleaseToCarry"),
            Self::Open => (End::Destination, "OpenGate"),
            Self::Settle => (End::Source, "AwaitQuiet"),
            Self::Remove => (End::Source, "RemoveGuest"),
        }
    }

    /// The phase a line of an agent's log begins, if it begins one.
    pub(super) fn begun_by(line: &str) -> Option<Self> {
        let (before, effect) = line.split_once("execute effect=")?;
        let effect = effect.split(|letter: char| !letter.is_ascii_alphanumeric()).next()?;
        let end = match () {
            () if before.contains(" source{") => End::Source,
            () if before.contains(" destination{") => End::Destination,
            () => return None,
        };
        Self::ALL.into_iter().find(|phase| phase.mark() == (end, effect))
    }

    /// Before the destination can have committed.
    pub(super) fn is_before_commit(self) -> bool {
        self <= Self::Told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_tells_the_phase() {
        let line = |span: &str, rest: &str| {
            format!(
                "2026-01-01T12:00:00.000000Z DEBUG {span}{{migration=\"a\" guest=web-1}}: throughline_agent::driver: {rest}"
            )
        };
        let begun = |span, rest| Phase::begun_by(&line(span, rest));
        assert_eq!(begun("source", "execute effect=Arm"), Some(Phase::Arm));
        assert_eq!(
            begun("source", "execute effect=StartPrecopy { uri: \"tcp:192.0.2.12:4711\" }"),
            Some(Phase::Precopy)
        );
        assert_eq!(begun("source", "execute effect=Report(Armed)"), None);
        assert_eq!(begun("source", "step event=Armed"), None);
        assert_eq!(
            begun("source", "execute effect=RecordCommit { generation: Generation(2) }"),
            None,
            "not the source's"
        );
        assert_eq!(
            begun("destination", "execute effect=RecordCommit { generation: Generation(2) }"),
            Some(Phase::Commit)
        );
    }
}
