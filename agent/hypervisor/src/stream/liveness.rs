//! A stream that breaks when the other host is not heard of any more. A guest's write waits for it, and TCP by itself would try on
//! for minutes.

use std::{io, os::fd::AsFd, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};

/// How long what was sent may stay without an acknowledgement, and a silent host without an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A stream on which nothing is sent is tried when it has been silent for so long, and as often from then on; seconds.
const TRIED_AFTER: u32 = 1;
/// How often before it is given up, should the kernel not go by [`PATIENCE`].
const TRIES: u32 = 2;

/// Has the kernel break it.
pub(super) fn demand(stream: &impl AsFd) -> io::Result<()> {
    let patience = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::TcpUserTimeout, &patience)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &TRIED_AFTER)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &TRIED_AFTER)?;
    setsockopt(stream, sockopt::TcpKeepCount, &TRIES)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    // A write waits for each answer.
    setsockopt(stream, sockopt::TcpNoDelay, &true)?;
    Ok(())
}
