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

/// The event that tells how far the copying of disks is.
const HALF_COPIED: &str = "DiskProgress";

/// A moment of a move. Their order is the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    Prepare,
    MirrorBegin,
    MirrorMiddle,
    Precopy,
    GiveUp,
    Arm,
    Pause,
    MirrorEnd,
    Told,
    Commit,
    Committed,
    Carry,
    Open,
    Settle,
    Remove,
}

impl Phase {
    /// Those of any move.
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
    /// Those that only the move of a guest with disks has.
    pub(super) const OF_DISKS: [Self; 3] = [Self::MirrorBegin, Self::MirrorMiddle, Self::MirrorEnd];

    /// Those of a move of a guest that is stopped. Copying is called as it is of one that runs, though nothing is mirrored.
    pub(super) const OF_COLD_MOVES: [Self; 7] =
        [Self::MirrorBegin, Self::MirrorMiddle, Self::GiveUp, Self::Told, Self::Commit, Self::Committed, Self::Remove];

    /// Its name in a cell's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::MirrorBegin => "mirror-begin",
            Self::MirrorMiddle => "mirror-middle",
            Self::MirrorEnd => "mirror-end",
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
            Self::MirrorBegin => {
                "what the guest writes begins to go to both ends, and what is on its disks to be copied"
            }
            Self::MirrorMiddle => "half of what is on its disks is over",
            Self::MirrorEnd => "the guest stands, the mirrors end; the destination is not told yet",
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

    /// Where the first line that belongs to it is logged, and the effect (of one, the event) that line is about.
    pub(super) fn mark(self) -> (End, &'static str) {
        match self {
            Self::Prepare => (End::Source, "PrepareDatapath"),
            Self::MirrorBegin => (End::Source, "MirrorDisks"),
            Self::MirrorMiddle => (End::Source, HALF_COPIED),
            Self::MirrorEnd => (End::Source, "EndMirrors"),
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
        let (before, mark) = match line.split_once("execute effect=") {
            Some((before, effect)) => (before, effect.split(|letter: char| !letter.is_ascii_alphanumeric()).next()?),
            None => {
                let (before, event) = line.split_once("step event=")?;
                (before, is_half_copied(event)?.then_some(HALF_COPIED)?)
            }
        };
        let end = match () {
            () if before.contains(" source{") => End::Source,
            () if before.contains(" destination{") => End::Destination,
            () => return None,
        };
        Self::ALL.into_iter().chain(Self::OF_DISKS).find(|phase| phase.mark() == (end, mark))
    }

    /// Before the destination can have committed.
    pub(super) fn is_before_commit(self) -> bool {
        self <= Self::Told
    }
}

/// Whether an event tells that at least half of what is to be copied is over; `None` if it tells nothing of that.
fn is_half_copied(event: &str) -> Option<bool> {
    let progress = event.trim_end().strip_prefix(HALF_COPIED)?;
    let number = |key: &str| {
        let (_, rest) = progress.split_once(key)?;
        rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let (copied, total) = (number("copied: ")?, number("total: ")?);
    Some(total > 0 && copied >= total / 2)
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
        assert_eq!(begun("source", "execute effect=MirrorDisks"), Some(Phase::MirrorBegin));
        let copied = |bytes| {
            Phase::begun_by(&line("source", &format!("step event=DiskProgress {{ copied: {bytes}, total: 20 }}")))
        };
        assert_eq!([copied(0), copied(9), copied(10)], [None, None, Some(Phase::MirrorMiddle)]);
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
