//! Who is at the other end of a connection, and where: said by whoever accepted it, read by the guard.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use http::Extensions;
use throughline_identity::Caller;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Who came, and from where.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Who, as far as they proved it.
    pub caller: Caller,
    /// From where; for the audit log.
    pub from: Option<SocketAddr>,
}

impl Arrival {
    /// What a request's connection says. `None`: nobody looked who came.
    pub(super) fn of(extensions: &Extensions) -> Option<Self> {
        let arrival = extensions.get::<Self>().cloned();
        arrival.or_else(|| extensions.get().map(|caller: &Caller| Self { caller: caller.clone(), from: None }))
    }
}

/// A connection whose other end is known.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// What is read and written.
    pub io: IO,
    /// Who is there.
    pub arrival: Arrival,
}

impl<IO> Connected for Accepted<IO> {
    type ConnectInfo = Arrival;

    fn connect_info(&self) -> Arrival {
        self.arrival.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Accepted<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Accepted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
