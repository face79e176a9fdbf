//! The descriptors QEMU keeps for the agent, and how a restarted agent finds them.

use std::{
    fmt,
    os::fd::{OwnedFd, RawFd},
};

use qapi::qmp;
use throughline_cutover::PortId;

use crate::{Guest, HypervisorError};

/// What a kept descriptor is. Its text form is the `opaque` of QEMU's fd set, at most 20 characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FdRole {
    /// A duplicate of the tap QEMU serves the port from: reading it empties the tap's ring. The frames come with the
    /// vnet header QEMU has set (ask `TUNGETVNETHDRSZ`). A stopped QEMU still reads one frame from each queue before
    /// it leaves it alone (`tap_send` in net/tap.c), and that one goes only to this QEMU's guest: divert the port and let
    /// the rings run empty before [`Guest::stop`], or a frame is lost with the source.
    Tap(PortId),
    /// The same of a further queue of the tap, counted from 1.
    Queue(PortId, u32),
    /// The hold of the port: its ring is where frames wait.
    Hold(PortId),
    /// A further queue of the hold, counted from 1: a lane of the gate. Only while a guest arrives.
    Lane(PortId, u32),
}

impl fmt::Display for FdRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(port) => write!(f, "tap:{port}"),
            Self::Queue(port, queue) => write!(f, "queue:{port}:{queue}"),
            Self::Hold(port) => write!(f, "hold:{port}"),
            Self::Lane(port, lane) => write!(f, "lane:{port}:{lane}"),
        }
    }
}

impl FdRole {
    /// A queue of the port's tap, counted from 0.
    pub const fn of_tap(port: PortId, queue: u32) -> Self {
        if queue == 0 { Self::Tap(port) } else { Self::Queue(port, queue) }
    }

    /// The role with that text; `None` for what somebody else named.
    fn parse(text: &str) -> Option<Self> {
        let (role, rest) = text.split_once(':')?;
        let (port, number) = rest.split_once(':').map_or((rest, None), |(port, number)| (port, Some(number)));
        let port = PortId::try_from(port.parse::<u64>().ok()?).ok()?;
        match (role, number) {
            ("tap", None) => Some(Self::Tap(port)),
            ("queue", Some(queue)) => Some(Self::Queue(port, queue.parse().ok()?)),
            ("hold", None) => Some(Self::Hold(port)),
            ("lane", Some(lane)) => Some(Self::Lane(port, lane.parse().ok()?)),
            _ => None,
        }
    }
}

/// Set and number, in QEMU, of the descriptor with `role`.
fn find(sets: &[qmp::FdsetInfo], role: FdRole) -> Option<(i64, i64)> {
    let named = |fd: &qmp::FdsetFdInfo| fd.opaque.as_deref().and_then(FdRole::parse) == Some(role);
    let fds = sets.iter().flat_map(|set| set.fds.iter().map(|fd| (set.fdset_id, fd)));
    fds.into_iter().find(|(_, fd)| named(fd)).map(|(set, fd)| (set, fd.fd))
}

impl Guest {
    /// A duplicate of a descriptor that QEMU has kept since it started: the same open tap, close-on-exec, with its
    /// ring as it stands. QEMU keeps its own; this can be repeated.
    ///
    /// # Errors
    /// [`HypervisorError::NoSuchFd`] if the guest was not started with that port.
    pub async fn take_fd(&self, role: FdRole) -> Result<OwnedFd, HypervisorError> {
        let sets = self.execute(qmp::query_fdsets {}).await?;
        let found = find(&sets, role).and_then(|(_, number)| RawFd::try_from(number).ok());
        let number = found.ok_or_else(|| HypervisorError::NoSuchFd { guest: self.name().clone(), role })?;
        self.process().duplicate_fd(number).map_err(|source| self.process_error("take a descriptor of", source))
    }

    /// QEMU keeps that descriptor no longer; one it does not have is no error.
    ///
    /// # Errors
    /// QEMU's refusal.
    pub async fn drop_fd(&self, role: FdRole) -> Result<(), HypervisorError> {
        let sets = self.execute(qmp::query_fdsets {}).await?;
        let Some((fdset_id, fd)) = find(&sets, role) else { return Ok(()) };
        self.execute(qmp::remove_fd { fdset_id, fd: Some(fd) }).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(id: u32) -> PortId {
        PortId::try_from(id).unwrap()
    }

    #[test]
    fn roles_round_trip_and_near_misses_do_not() {
        let widest = port(u32::MAX);
        for role in [FdRole::Tap(port(7)), FdRole::Queue(widest, 7), FdRole::Hold(widest), FdRole::Lane(widest, 7)] {
            assert!(role.to_string().len() <= 20, "{role}");
            assert_eq!(FdRole::parse(&role.to_string()), Some(role));
        }
        for bad in ["", "tap", "tap:", "tap:0", "hold:4294967296", "disk:1", "tap:1:2", "queue:1", "lane:1", "lane:1:x"]
        {
            assert_eq!(FdRole::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn finds_a_role_among_what_others_added() {
        let sets: Vec<qmp::FdsetInfo> = serde_json::from_str(
            r#"[{"fds": [{"fd": 15, "opaque": "hold:17"}], "fdset-id": 3},
                {"fds": [{"fd": 9}], "fdset-id": 2},
                {"fds": [{"fd": 12, "opaque": "tap:7"}], "fdset-id": 1},
                {"fds": [{"fd": 11, "opaque": "hold:7"}], "fdset-id": 0}]"#,
        )
        .unwrap();
        assert_eq!(find(&sets, FdRole::Hold(port(7))), Some((0, 11)));
        assert_eq!(find(&sets, FdRole::Tap(port(7))), Some((1, 12)));
        assert_eq!(find(&sets, FdRole::Tap(port(17))), None);
    }
}
