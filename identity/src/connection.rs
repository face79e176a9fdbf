//! A connection that is proved, or is not to be: what gRPC reads and writes, at both ends.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::{Caller, HandshakeError, Refusal, SpiffeId, examination::Role, handshake::FirstWord};

/// The type of TLS's first record in each direction: an alert from a server that was sent plaintext, a handshake from a client.
const TLS_RECORDS: std::ops::RangeInclusive<u8> = 21..=22;

/// One connection of gRPC. With TLS it ends when the other end's certificate is no longer trusted.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    caller: Caller,
}

#[derive(Debug)]
enum Io {
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        /// Read before, and not yet handed on.
        word: Vec<u8>,
        standing: Arc<Standing>,
        withdrawn: Pin<Box<WaitForCancellationFutureOwned>>,
    },
    Plain {
        stream: TcpStream,
        address: SocketAddr,
        /// Nothing has been read yet.
        fresh: bool,
    },
}

/// Whether the other end of an open connection is still trusted.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) role: Role,
    pub(crate) id: SpiffeId,
    pub(crate) address: SocketAddr,
    why: OnceLock<Refusal>,
    withdrawn: CancellationToken,
}

impl Standing {
    pub(crate) fn new(tls: &TlsStream<TcpStream>, id: SpiffeId, address: SocketAddr) -> Arc<Self> {
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let role = if matches!(tls, TlsStream::Server(_)) { Role::Client } else { Role::Server };
        Arc::new(Self { chain, role, id, address, why: OnceLock::new(), withdrawn: CancellationToken::new() })
    }

    /// Ends the connection.
    pub(crate) fn withdraw(&self, why: Refusal) {
        let _ = self.why.set(why);
        self.withdrawn.cancel();
    }

    fn error(&self) -> io::Error {
        let why = self.why.get().cloned().map_or(HandshakeError::Closed, HandshakeError::Refused);
        io::Error::new(io::ErrorKind::ConnectionAborted, why)
    }
}

impl Connection {
    pub(crate) fn proven(stream: TlsStream<TcpStream>, word: Option<FirstWord>, standing: Arc<Standing>) -> Self {
        let caller = Caller::Known(standing.id.identity.clone());
        let word = word.map(Vec::from).unwrap_or_default();
        let withdrawn = Box::pin(standing.withdrawn.clone().cancelled_owned());
        Self { io: Io::Tls { stream: Box::new(stream), word, standing, withdrawn }, caller }
    }

    pub(crate) fn unproven(stream: TcpStream, address: SocketAddr) -> Self {
        Self { io: Io::Plain { stream, address, fresh: true }, caller: Caller::Unproven }
    }
}

impl Connection {
    /// Who is at the other end, as far as that is proved.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Where the other end is.
    pub fn peer(&self) -> SocketAddr {
        match &self.io {
            Io::Tls { standing, .. } => standing.address,
            Io::Plain { address, .. } => *address,
        }
    }
}

/// What tonic puts into the extensions of every request, whichever service it is for.
impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls { stream, word, standing, withdrawn } => {
                if withdrawn.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(standing.error()));
                }
                if !word.is_empty() {
                    let fits = word.len().min(buf.remaining());
                    buf.put_slice(&word[..fits]);
                    word.drain(..fits);
                    return Poll::Ready(Ok(()));
                }
                Pin::new(stream).poll_read(cx, buf)
            }
            Io::Plain { stream, address, fresh } => {
                let before = buf.filled().len();
                ready!(Pin::new(stream).poll_read(cx, buf))?;
                if let Some(first) = buf.filled().get(before)
                    && std::mem::take(fresh)
                    && TLS_RECORDS.contains(first)
                {
                    tracing::warn!(peer = %address, reason = %HandshakeError::Tls, "a connection is closed");
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, HandshakeError::Tls)));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tls { standing, .. } if standing.withdrawn.is_cancelled() => Poll::Ready(Err(standing.error())),
            Io::Tls { stream, .. } => Pin::new(stream).poll_write(cx, buf),
            Io::Plain { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
            Io::Plain { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            Io::Plain { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tls { standing, .. } if standing.withdrawn.is_cancelled() => Poll::Ready(Err(standing.error())),
            Io::Tls { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Plain { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tls { stream, .. } => stream.is_write_vectored(),
            Io::Plain { stream, .. } => stream.is_write_vectored(),
        }
    }
}
