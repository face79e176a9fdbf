//! The agent's side of sealing a stream: starts the program and hears whether the two ends believe each other.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::{
    credentials::Credentials,
    seal::{End, Load, Order, SEALED},
};
use crate::{Guest, command_line::own};

/// Bytes that may wait between QEMU and the program, each way: so much is on its way before either waits for the other.
const BETWEEN: usize = 1 << 20;
/// Most the program says, bytes.
const SAYING: u64 = 1024;
/// Descriptors of processes that seal are theirs from here on.
const ARGUMENT_ZERO: &str = "throughline-seal";

/// The program, open: an agent's streams are sealed by the one it was installed with.
#[derive(Debug, Clone)]
pub struct Sealer(Arc<File>);

impl Sealer {
    /// The program at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(|program| Self(Arc::new(program)))
    }

    /// Where the program is installed: beside this one.
    ///
    /// # Errors
    /// When the kernel does not say where that is.
    pub fn installed() -> io::Result<PathBuf> {
        Ok(std::env::current_exe()?.with_file_name("throughline-seal"))
    }

    /// Seals a connection to the other host. Gives the one for QEMU, once both ends have shown who they are; what seals it lives
    /// as long as both.
    pub(super) async fn seal(
        &self,
        guest: &Guest,
        (end, load): (End, Load),
        credentials: Credentials,
        network: TcpStream,
    ) -> io::Result<OwnedFd> {
        let (for_qemu, local) = UnixStream::pair()?;
        for socket in [&for_qemu, &local] {
            setsockopt(socket, SndBuf, &BETWEEN)?;
        }
        self.carry(guest, (end, load), credentials, network, local).await?;
        Ok(for_qemu.into())
    }

    /// The same for a connection to QEMU that there is already.
    pub(super) async fn carry(
        &self,
        guest: &Guest,
        (end, load): (End, Load),
        credentials: Credentials,
        network: TcpStream,
        local: UnixStream,
    ) -> io::Result<()> {
        let (sealer, guest) = (self.clone(), guest.clone());
        let start = move || sealer.start(&guest, (end, load), credentials, &network, local);
        spawn_blocking(start).await.map_err(io::Error::other)?
    }

    fn start(
        &self,
        guest: &Guest,
        (end, load): (End, Load),
        credentials: Credentials,
        network: &TcpStream,
        local: UnixStream,
    ) -> io::Result<()> {
        let program = self.0.as_raw_fd();
        let mut command = Command::new(own(program));
        command.arg0(ARGUMENT_ZERO).env_clear().current_dir(guest.run_dir().path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        guest.cell().hold(&mut command, None, vec![network.as_raw_fd(), local.as_raw_fd()])?;
        let mut child = command.spawn()?;
        let order = Order { end, load, network: network.as_raw_fd(), local: local.as_raw_fd(), credentials };
        drop(local);
        let heard = order_and_hear(&mut child, &order);
        reap(child);
        match heard?.trim() {
            SEALED => Ok(()),
            why => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
        }
    }
}

fn order_and_hear(child: &mut Child, order: &Order) -> io::Result<String> {
    let piped = || io::Error::other("a pipe to the program is missing");
    child.stdin.take().ok_or_else(piped)?.write_all(&serde_json::to_vec(order)?)?;
    let mut said = Vec::new();
    let mut out = child.stdout.take().ok_or_else(piped)?.take(SAYING);
    let mut byte = [0];
    // It lives on; only this line is waited for.
    while out.read(&mut byte)? == 1 && byte != *b"\n" {
        said.push(byte[0]);
    }
    if said.is_empty() {
        return Err(io::Error::other("the program that seals it ended without a word"));
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Waits for it, so that it leaves no zombie; if the agent ends first, others do.
fn reap(mut child: Child) {
    std::thread::spawn(move || match child.wait() {
        Ok(status) if status.success() => debug!(pid = child.id(), "a sealed stream has ended"),
        Ok(status) => warn!(pid = child.id(), %status, "a sealed stream broke"),
        Err(error) => warn!(%error, "cannot learn how a sealed stream ended"),
    });
}
