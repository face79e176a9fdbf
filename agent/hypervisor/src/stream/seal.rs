//! The program that seals a stream, of memory or of a disk: TLS 1.3 on the side of the network, QEMU's plain bytes on the other.
//!
//! QEMU could do TLS itself, and is not asked to: it sends each page as two records, each with a system call of its own, and its
//! TLS library renews keys after 2^24 records in a way that QEMU, which reads and writes in different threads, does not survive.
//! A process of its own, because a stream must outlive the agent. It runs in its guest's cell, as QEMU does, and lets nobody
//! look into its memory.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream as StdTcpStream,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream as StdUnixStream,
    },
    sync::Arc,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, copy_bidirectional_with_sizes},
    net::{TcpStream, UnixStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::credentials::{Credentials, DESTINATION};

/// Said when both ends have shown who they are.
pub(super) const SEALED: &str = "sealed";
/// How long the two ends may take for that.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);
/// Bytes moved at one time. QEMU writes 128 KiB at most.
const PIECE: usize = 256 << 10;
/// How often it is looked whether QEMU is still there.
const LOOK: Duration = Duration::from_millis(500);
/// How long what a QEMU left that has gone may take to arrive. A source's goes when it has been told that all is there, or gives
/// up; a destination's when it has said that all is there, and that word must arrive: without it the source's would go on.
const LAST_OF_SOURCE: Duration = Duration::from_secs(2);
const LAST_OF_DESTINATION: Duration = Duration::from_secs(60);

/// Which end of the stream it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    Source,
    Destination,
}

/// What goes over the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Load {
    Memory,
    /// It has no end of its own: QEMU closes it when it needs it no more, whatever is still under way.
    Disk,
}

/// What the program is told on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) end: End,
    pub(super) load: Load,
    /// The connection to the other host.
    pub(super) network: RawFd,
    /// The connection to QEMU.
    pub(super) local: RawFd,
    pub(super) credentials: Credentials,
}

/// The program. What it prints on its standard output is [`SEALED`], or why not.
///
/// # Errors
/// When the two ends do not believe each other, or the stream breaks.
pub fn main() -> io::Result<()> {
    // The keys are nobody's to read, not even another process's of the same user.
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::prctl::set_name(c"memory-seal")?;
    let mut order = Vec::new();
    io::stdin().take(1 << 16).read_to_end(&mut order)?;
    let order: Order = serde_json::from_slice(&order)?;
    // SAFETY: the agent made these two for this process and says so; nothing else here knows them.
    let (network, local) = unsafe { (OwnedFd::from_raw_fd(order.network), OwnedFd::from_raw_fd(order.local)) };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let network = StdTcpStream::from(network);
        let local = StdUnixStream::from(local);
        network.set_nonblocking(true)?;
        local.set_nonblocking(true)?;
        // The library reads 4 KiB at a time.
        let network = BufReader::with_capacity(PIECE, TcpStream::from_std(network)?);
        let shaken = timeout(HANDSHAKE, shake_hands(order.end, &order.credentials, network)).await;
        match shaken.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the other end does not answer"))) {
            Ok(stream) => {
                say(SEALED);
                carry(order.end, order.load, stream, local).await
            }
            Err(error) => {
                say(&error.to_string());
                Err(error)
            }
        }
    })
}

/// The agent may have gone; the stream is not its.
fn say(word: &str) {
    let mut out = io::stdout();
    let _heard = writeln!(out, "{word}").and_then(|()| out.flush());
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

async fn shake_hands(
    end: End,
    credentials: &Credentials,
    network: BufReader<TcpStream>,
) -> io::Result<Box<dyn Stream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(credentials.authority.clone())).map_err(io::Error::other)?;
    let chain = vec![CertificateDer::from(credentials.certificate.clone())];
    let key = PrivatePkcs8KeyDer::from(credentials.key.clone()).into();
    Ok(match end {
        End::Source => {
            let config = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&TLS13])
                .map_err(io::Error::other)?
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .map_err(io::Error::other)?;
            let name = ServerName::try_from(DESTINATION).map_err(io::Error::other)?;
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, network).await?;
            // That the destination believes us shows only in what it says next.
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut [0]).await?;
            Box::new(stream)
        }
        End::Destination => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(io::Error::other)?;
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&TLS13])
                .map_err(io::Error::other)?
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .map_err(io::Error::other)?;
            // Used once.
            config.send_tls13_tickets = 0;
            let mut stream = TlsAcceptor::from(Arc::new(config)).accept(network).await?;
            tokio::io::AsyncWriteExt::write_all(&mut stream, &[0]).await?;
            tokio::io::AsyncWriteExt::flush(&mut stream).await?;
            Box::new(stream)
        }
    })
}

/// Both ways, until both have ended, or QEMU has gone and what it left does not arrive.
async fn carry(end: End, load: Load, mut network: Box<dyn Stream>, local: StdUnixStream) -> io::Result<()> {
    let watched = local.try_clone()?;
    let mut local = UnixStream::from_std(local)?;
    tokio::select! {
        carried = copy_bidirectional_with_sizes(&mut local, &mut network, PIECE, PIECE) => match carried {
            Err(_) if load == Load::Disk && has_closed(&watched) => Ok(()),
            carried => carried.map(drop),
        },
        () = gone(end, load, &watched) => match load {
            Load::Memory => Err(io::Error::new(io::ErrorKind::TimedOut, "QEMU has gone, and the other host does not answer")),
            Load::Disk => Ok(()),
        },
    }
}

async fn gone(end: End, load: Load, local: &StdUnixStream) {
    loop {
        sleep(LOOK).await;
        if has_closed(local) {
            sleep(match (end, load) {
                // Nothing it left is of use. And one that is full keeps QEMU, which has cut it, until this end is closed too: a cut
                // wakes who waits to read from such a socket, and not who waits to write (QEMU takes no POLLHUP for a POLLOUT).
                (End::Source, Load::Disk) => Duration::ZERO,
                (End::Source, Load::Memory) => LAST_OF_SOURCE,
                (End::Destination, _) => LAST_OF_DESTINATION,
            })
            .await;
            return;
        }
    }
}

/// Whether QEMU has closed its end.
fn has_closed(local: &StdUnixStream) -> bool {
    // A descriptor asked for nothing tells only that its other end is closed.
    let mut asked = [PollFd::new(std::os::fd::AsFd::as_fd(local), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO) != Ok(0)
}
