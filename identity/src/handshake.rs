//! How a connection begins, at both ends, and why it does not.

use std::{io, sync::Arc, time::Duration};

use rustls::{Error, InvalidMessage, PeerIncompatible, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::{Credentials, Identity, Objection, Refusal, SpiffeId, examination::Examination};

/// How long it may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// Length of the head of an HTTP/2 frame.
const FRAME_HEAD: usize = 9;
/// The type of the frame a server of HTTP/2 begins with.
const SETTINGS: u8 = 4;
/// The type of the record by which a server of TLS says that it does not understand.
const ALERT: u8 = 21;
/// What a client of HTTP/2 begins with (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a connection was not made. "It" is the other end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// We do not accept it.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// It does not accept us.
    #[error("it refuses us: {0}")]
    Objected(#[from] Objection),
    /// It speaks plaintext; we speak TLS.
    #[error("it does not speak TLS; it may run with --insecure")]
    Plaintext,
    /// It speaks TLS; we speak plaintext.
    #[error("it speaks TLS; --insecure, which is plaintext, is for two that both have it")]
    Tls,
    /// No TLS 1.3.
    #[error("it does not speak TLS 1.3")]
    OldTls,
    /// It stopped in the middle.
    #[error("it did not finish the handshake within {} s", DEADLINE.as_secs())]
    Late,
    /// It hung up.
    #[error("it closed the connection during the handshake")]
    Closed,
    /// The rest.
    #[error("the handshake failed: {0}")]
    Broken(String),
}

impl HandshakeError {
    fn of(error: &io::Error, examination: &Examination) -> Self {
        if let Some(Err(refusal)) = examination.finding() {
            return Self::Refused(refusal.clone());
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(alert)) => Self::Objected((*alert).into()),
            Some(Error::NoCertificatesPresented) => Self::Refused(Refusal::NoCertificate),
            Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Self::Plaintext,
            Some(Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls13RequiredForQuic
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            )) => Self::OldTls,
            Some(other) => Self::Broken(other.to_string()),
            None if hung_up(error) => Self::Closed,
            None => Self::Broken(error.to_string()),
        }
    }
}

fn hung_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// An accepted connection, and who called.
pub(crate) async fn accept(
    credentials: &Arc<Credentials>,
    tcp: TcpStream,
) -> Result<(TlsStream<TcpStream>, SpiffeId), HandshakeError> {
    let examination = Examination::new(credentials.clone(), None);
    let config = examination.serve().map_err(|error| HandshakeError::Broken(error.to_string()))?;
    let accepting = TlsAcceptor::from(config).accept(tcp);
    let stream = time::timeout(DEADLINE, accepting).await.map_err(|_| HandshakeError::Late)?;
    let stream = stream.map_err(|error| HandshakeError::of(&error, &examination))?;
    Ok((stream.into(), found(&examination)?))
}

/// A connection that was made to whom we meant, and the first word it said.
pub(crate) async fn call(
    credentials: &Arc<Credentials>,
    tcp: TcpStream,
    name: ServerName<'static>,
    wanted: &Identity,
) -> Result<(TlsStream<TcpStream>, SpiffeId, FirstWord), HandshakeError> {
    let examination = Examination::new(credentials.clone(), Some(wanted.clone()));
    let config = examination.call().map_err(|error| HandshakeError::Broken(error.to_string()))?;
    let calling = async {
        let mut stream = TlsConnector::from(config).connect(name, tcp).await?;
        // With TLS 1.3 a client is done before the server has looked at its certificate, and hears of a refusal only when it
        // reads. So it reads: an HTTP/2 server speaks as soon as it has accepted.
        let word = first_word(&mut stream).await?;
        Ok((TlsStream::from(stream), word))
    };
    let called = time::timeout(DEADLINE, calling).await.map_err(|_| HandshakeError::Late)?;
    let (stream, word) = called.map_err(|error| HandshakeError::of(&error, &examination))?;
    if word[3] != SETTINGS {
        return Err(HandshakeError::Broken("it speaks TLS, but not HTTP/2".to_owned()));
    }
    Ok((stream, found(&examination)?, word))
}

/// The first word of a server that is called without TLS. To hear one from a server that waits for TLS, it must be spoken to: the
/// preface, which is then not to be sent again.
pub(crate) async fn call_plain(tcp: &mut TcpStream) -> Result<FirstWord, HandshakeError> {
    let calling = async {
        tcp.write_all(PREFACE).await?;
        let mut word = [0; FRAME_HEAD];
        tcp.read_exact(&mut word[..1]).await?;
        if word[0] != ALERT {
            tcp.read_exact(&mut word[1..]).await?;
        }
        Ok::<_, io::Error>(word)
    };
    match time::timeout(DEADLINE, calling).await.map_err(|_| HandshakeError::Late)? {
        Ok(word) if word[0] == ALERT => Err(HandshakeError::Tls),
        Ok(word) if word[3] == SETTINGS => Ok(word),
        Ok(_) => Err(HandshakeError::Broken("it does not speak HTTP/2".to_owned())),
        Err(error) if hung_up(&error) => Err(HandshakeError::Closed),
        Err(error) => Err(HandshakeError::Broken(error.to_string())),
    }
}

/// The head of the first frame a server sends: read before the connection is handed on, and put before what comes after it.
pub(crate) type FirstWord = [u8; FRAME_HEAD];

async fn first_word(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<FirstWord> {
    let mut word = [0; FRAME_HEAD];
    stream.read_exact(&mut word).await?;
    Ok(word)
}

fn found(examination: &Examination) -> Result<SpiffeId, HandshakeError> {
    match examination.finding() {
        Some(Ok(id)) => Ok(id.clone()),
        Some(Err(refusal)) => Err(refusal.clone().into()),
        None => Err(Refusal::NoCertificate.into()),
    }
}
