//! The stream a guest's memory goes over, from host to host.
//!
//! The agents make the connection, QEMU only gets a descriptor of it: no QEMU listens anywhere. The destination's agent lets in
//! the one caller that knows this migration's token ([`door`]), and the connection is sealed by TLS 1.3 ([`seal`]) under
//! certificates that both ends have for this migration only ([`credentials`]), unless both operators want it in the clear. What
//! the source has to know goes to it over the agents' own connection, as an [`Invitation`].
//!
//! Neither agent keeps anything of the stream: one that ends changes nothing for it.

mod credentials;
mod door;
mod seal;
mod sealer;
mod token;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
};

use tokio::net::TcpStream;

use self::{credentials::Pair, door::Door, seal::End};
use crate::{Guest, HypervisorError};

pub use self::{credentials::Credentials, seal::main as seal, sealer::Sealer, token::Token};

/// Where a source's memory may come, and how.
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

    /// The stream, for `guest`'s QEMU to read, when the source has called.
    pub(crate) async fn arrive(self, guest: &Guest) -> Result<OwnedFd, HypervisorError> {
        let stream = self.door.admit().await;
        let ready = async {
            let stream = blocking(stream)?;
            match self.sealed {
                None => Ok(stream.into()),
                Some((sealer, credentials)) => sealer.seal(guest, End::Destination, credentials, stream).await,
            }
        };
        ready.await.map_err(|source| failed(guest, "from the source cannot be opened", source))
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
                Some(credentials) => sealer.seal(guest, End::Source, credentials.clone(), stream).await,
            }
        };
        ready.await.map_err(|source| failed(guest, "to the destination cannot be sealed", source))
    }
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
