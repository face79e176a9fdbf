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

use crate::{
    Caller, HandshakeError, Refusal, SpiffeId,
    examination::Role,
    handshake::{FirstWord, PREFACE},
};

/// The type of the record a client of TLS begins with.
const TLS_HANDSHAKE: u8 = 22;

/// One connection of gRPC. With TLS it ends when the other end's certificate is no longer trusted.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    caller: Caller,
    /// Read before, and not yet handed on.
    word: Vec<u8>,
}

#[derive(Debug)]
enum Io {
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        standing: Arc<Standing>,
        withdrawn: Pin<Box<WaitForCancellationFutureOwned>>,
    },
    Plain {
        stream: TcpStream,
        address: SocketAddr,
        /// Nothing has been read yet.
        fresh: bool,
        /// How much of what is to be written was written before.
        written: usize,
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
        Self { io: Io::Tls { stream: Box::new(stream), standing, withdrawn }, caller, word }
    }

    /// One that was accepted.
    pub(crate) fn unproven(stream: TcpStream, address: SocketAddr) -> Self {
        let io = Io::Plain { stream, address, fresh: true, written: 0 };
        Self { io, caller: Caller::Unproven, word: Vec::new() }
    }

    /// One that was made, over which HTTP/2's preface went already.
    pub(crate) fn unproven_call(stream: TcpStream, address: SocketAddr, word: FirstWord) -> Self {
        let io = Io::Plain { stream, address, fresh: false, written: PREFACE.len() };
        Self { io, caller: Caller::Unproven, word: word.into() }
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
        if let Io::Tls { standing, withdrawn, .. } = &mut self.io
            && withdrawn.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(standing.error()));
        }
        if !self.word.is_empty() {
            let fits = self.word.len().min(buf.remaining());
            buf.put_slice(&self.word[..fits]);
            self.word.drain(..fits);
            return Poll::Ready(Ok(()));
        }
        match &mut self.io {
            Io::Tls { stream, .. } => Pin::new(stream).poll_read(cx, buf),
            Io::Plain { stream, address, fresh, .. } => {
                let before = buf.filled().len();
                ready!(Pin::new(stream).poll_read(cx, buf))?;
                if let Some(first) = buf.filled().get(before)
                    && std::mem::take(fresh)
                    && *first == TLS_HANDSHAKE
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
            Io::Plain { written, .. } if *written > 0 => {
                let skipped = buf.len().min(*written);
                *written -= skipped;
                Poll::Ready(Ok(skipped))
            }
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
            Io::Plain { stream, written: 0, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Plain { .. } => {
                let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
                self.poll_write(cx, first)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tls { stream, .. } => stream.is_write_vectored(),
            Io::Plain { stream, .. } => stream.is_write_vectored(),
        }
    }
}
