//! The streams a guest's memory and disks go over, from host to host.
//!
//! The agents make the connection, QEMU only gets a descriptor of it: no QEMU listens anywhere. The destination's agent lets in
//! the one caller that knows the stream's token ([`door`]), and the connection is sealed by TLS 1.3 ([`seal`]) under
//! certificates that both ends have for this stream only ([`credentials`]), unless both operators want it in the clear. What
//! the source has to know goes to it over the agents' own connection, as an [`Invitation`].
//!
//! Neither agent keeps anything of the stream: one that ends changes nothing for it.

mod credentials;
mod door;
mod liveness;
mod seal;
mod sealer;
mod token;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
};

use tokio::net::{TcpStream, UnixStream};

use self::{
    credentials::Pair,
    door::Door,
    seal::{End, Load},
};
use crate::{Guest, HypervisorError};

pub use self::{credentials::Credentials, seal::main as seal, sealer::Sealer, token::Token};

/// Where a stream of a source may come, and how.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Where the destination's agent listens.
    pub address: SocketAddrV4,
    /// What it wants to hear first.
    pub token: Token,
    /// By what the source seals the stream; `None`: it goes in the clear.
    pub sealed: Option<Credentials>,
}

/// A destination's stream that has not been opened yet. Nobody can once it is dropped.
#[derive(Debug)]
pub struct Awaited {
    door: Door,
    sealed: Option<(Sealer, Credentials)>,
}

impl Awaited {
    /// Listens on `address` for a call from `source`. In the clear without a `sealer`.
    pub(crate) fn new(address: Ipv4Addr, source: Ipv4Addr, sealer: Option<&Sealer>) -> io::Result<(Self, Invitation)> {
        let token = Token::fresh();
        let door = Door::open(address, source, token)?;
        let address = door.address();
        let Some(sealer) = sealer else {
            return Ok((Self { door, sealed: None }, Invitation { address, token, sealed: None }));
        };
        let pair = Pair::fresh().map_err(io::Error::other)?;
        let invitation = Invitation { address, token, sealed: Some(pair.source) };
        Ok((Self { door, sealed: Some((sealer.clone(), pair.destination)) }, invitation))
    }

    /// One of a disk: it is sealed whatever anybody wants.
    pub(crate) fn for_disk(address: Ipv4Addr, source: Ipv4Addr, sealer: &Sealer) -> io::Result<(Self, Invitation)> {
        Self::new(address, source, Some(sealer))
    }

    /// The stream, for `guest`'s QEMU to read, when the source has called.
    pub(crate) async fn arrive(self, guest: &Guest) -> Result<OwnedFd, HypervisorError> {
        let stream = self.door.admit().await;
        let ready = async {
            let stream = blocking(stream)?;
            match self.sealed {
                None => Ok(stream.into()),
                Some((sealer, credentials)) => {
                    sealer.seal(guest, (End::Destination, Load::Memory), credentials, stream).await
                }
            }
        };
        ready.await.map_err(|source| failed(guest, "from the source cannot be opened", source))
    }

    /// A disk's, carried to where `connect` leads when the source has called.
    pub(crate) async fn arrive_at<C: Future<Output = io::Result<UnixStream>>>(
        self,
        guest: &Guest,
        connect: impl FnOnce() -> C,
    ) -> Result<(), HypervisorError> {
        let stream = self.door.admit().await;
        let ready = async {
            let (sealer, credentials) = self.sealed.ok_or_else(in_the_clear)?;
            liveness::demand(&stream)?;
            let local = connect().await?.into_std()?;
            local.set_nonblocking(false)?;
            sealer.carry(guest, (End::Destination, Load::Disk), credentials, blocking(stream)?, local).await
        };
        ready.await.map_err(|source| failed(guest, "of a disk from the source cannot be opened", source))
    }
}

impl Invitation {
    /// Accepts it: the stream, for `guest`'s QEMU to write. `from` is this host's address.
    pub(crate) async fn accept(
        &self,
        guest: &Guest,
        from: Ipv4Addr,
        sealer: &Sealer,
    ) -> Result<OwnedFd, HypervisorError> {
        let calling = door::call(self.address, from, self.token).await;
        let stream = calling.map_err(|source| failed(guest, "did not reach the destination", source))?;
        let ready = async {
            let stream = blocking(stream)?;
            match &self.sealed {
                None => Ok(stream.into()),
                Some(credentials) => sealer.seal(guest, (End::Source, Load::Memory), credentials.clone(), stream).await,
            }
        };
        ready.await.map_err(|source| failed(guest, "to the destination cannot be sealed", source))
    }

    /// The same for a disk, which nobody sends in the clear.
    pub(crate) async fn accept_disk(
        &self,
        guest: &Guest,
        from: Ipv4Addr,
        sealer: &Sealer,
    ) -> Result<OwnedFd, HypervisorError> {
        let ready = async {
            let credentials = self.sealed.clone().ok_or_else(in_the_clear)?;
            let stream = door::call(self.address, from, self.token).await?;
            liveness::demand(&stream)?;
            sealer.seal(guest, (End::Source, Load::Disk), credentials, blocking(stream)?).await
        };
        ready.await.map_err(|source| failed(guest, "of a disk to the destination cannot be opened", source))
    }
}

fn in_the_clear() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the destination wants it in the clear")
}

/// As QEMU expects it.
fn blocking(stream: TcpStream) -> io::Result<std::net::TcpStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn failed(guest: &Guest, what: &'static str, source: io::Error) -> HypervisorError {
    HypervisorError::Stream { guest: guest.name().clone(), what, source }
}
