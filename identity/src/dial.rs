//! The way to a server, and to no other than the one that is meant.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{net, time};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    Connection, HandshakeError, Identity, Keyring, NotLoopback, Objection, Refusal, Security, connection::Standing,
    handshake,
};

/// Why a server was not reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// Not an address, or not one for this security.
    #[error("{0}")]
    Address(String),
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
    /// `--insecure` was to go beyond this machine.
    #[error(transparent)]
    NotLoopback(#[from] NotLoopback),
    /// Somebody answered, and one of the two would not go on.
    #[error("{wanted} at {address}: {error}")]
    Handshake {
        /// Where.
        address: SocketAddr,
        /// Whom we meant.
        wanted: Identity,
        /// Who we are; nobody, with `--insecure`.
        own: Option<Identity>,
        /// Why.
        error: Box<HandshakeError>,
    },
}

impl DialError {
    /// What to do about it, where that is plain.
    pub fn advice(&self) -> Option<String> {
        let Self::Handshake { error, own, wanted, .. } = self else { return None };
        let own = own.as_ref()?;
        Some(match &**error {
            HandshakeError::Objected(Objection::Expired | Objection::Revoked | Objection::NoIdentity) => {
                format!("issue another certificate with `throughline pki rotate {own}`, and copy it here")
            }
            HandshakeError::Objected(Objection::UnknownCa) | HandshakeError::Refused(Refusal::UnknownCa) => {
                "both ends need certificates of one CA, or each the other's CA in its ca.pem".to_owned()
            }
            HandshakeError::Objected(_) => format!("its log says what it has against {own}"),
            HandshakeError::Refused(Refusal::Expired(_)) => {
                format!("issue another certificate with `throughline pki rotate {wanted}`, and copy it there")
            }
            HandshakeError::Refused(Refusal::OtherIdentity { .. } | Refusal::OtherDomain { .. }) => {
                "check the address".to_owned()
            }
            _ => return None,
        })
    }

    /// All of it, for a log.
    pub fn told(&self) -> String {
        self.advice().map_or_else(|| self.to_string(), |advice| format!("{self}; {advice}"))
    }

    /// The one in a chain of errors: transports wrap what their connector says.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut error = Some(error);
        while let Some(one) = error {
            if let Some(found) = one.downcast_ref() {
                return Some(found);
            }
            error = one.source();
        }
        None
    }

    /// True when one end would not have the other: trying again changes nothing before an operator has.
    pub fn is_refusal(&self) -> bool {
        let handshake = match self {
            Self::Handshake { error, .. } => error,
            Self::Address(_) | Self::NotLoopback(_) => return true,
            Self::Unreachable(_) => return false,
        };
        matches!(**handshake, HandshakeError::Refused(_) | HandshakeError::Objected(_))
    }
}

impl Security {
    /// Connects to an address where `wanted` is to be.
    ///
    /// # Errors
    /// Nobody is there, or somebody else, or the two do not accept each other.
    pub async fn dial(&self, endpoint: Endpoint, wanted: &Identity) -> Result<Channel, DialError> {
        self.check(endpoint.uri())?;
        let (security, wanted) = (self.clone(), wanted.clone());
        let connector = tower::service_fn(move |uri: Uri| {
            let (security, wanted) = (security.clone(), wanted.clone());
            async move { security.reach(&uri, &wanted).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connector).await.map_err(|error| match DialError::find(&error) {
            Some(found) => found.clone(),
            None => DialError::Unreachable(innermost(&error)),
        })
    }

    /// Whether an address is one for this security, as far as can be told without asking for a name.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub fn check(&self, uri: &Uri) -> Result<(), DialError> {
        let problem = match (self, uri.scheme_str()) {
            (Self::Proven(_), Some("https")) => return Ok(()),
            (Self::Insecure, Some("http")) => {
                let beyond = host(uri)?.parse().ok().filter(|address: &IpAddr| !address.is_loopback());
                let port = uri.port_u16().unwrap_or_default();
                return beyond.map_or(Ok(()), |address| Err(NotLoopback(SocketAddr::new(address, port)).into()));
            }
            (Self::Proven(_), Some("http")) => {
                "is plaintext: write https://, or give --insecure at both ends, on loopback"
            }
            (Self::Insecure, Some("https")) => "is TLS: write http://, or leave --insecure out",
            _ => "is no address: write https://HOST:PORT",
        };
        Err(DialError::Address(format!("{uri} {problem}")))
    }

    async fn reach(&self, uri: &Uri, wanted: &Identity) -> Result<Connection, DialError> {
        let host = host(uri)?;
        let port = uri.port_u16().unwrap_or(match self {
            Self::Proven(_) => 443,
            Self::Insecure => 80,
        });
        let unreachable = |error: std::io::Error| DialError::Unreachable(format!("{host} port {port}: {error}"));
        let addresses: Vec<SocketAddr> = net::lookup_host((host, port)).await.map_err(unreachable)?.collect();
        if matches!(self, Self::Insecure)
            && let Some(beyond) = addresses.iter().find(|address| !address.ip().is_loopback())
        {
            return Err(NotLoopback(*beyond).into());
        }
        let connecting = time::timeout(handshake::DEADLINE, net::TcpStream::connect(&*addresses)).await;
        let tcp = connecting.map_err(|_| unreachable(std::io::ErrorKind::TimedOut.into()))?.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let address = tcp.peer_addr().map_err(unreachable)?;
        let connection = match self {
            Self::Insecure => greet_plain(tcp, address).await,
            Self::Proven(keyring) => greet(keyring, tcp, address, wanted).await,
        };
        let own = self.own().cloned();
        connection.map_err(|error| DialError::Handshake {
            address,
            wanted: wanted.clone(),
            own,
            error: Box::new(error),
        })
    }
}

/// The host in an address; one of IPv6 without its brackets.
fn host(uri: &Uri) -> Result<&str, DialError> {
    let host = uri.host().ok_or_else(|| DialError::Address(format!("{uri} names no host")))?;
    Ok(host.trim_start_matches('[').trim_end_matches(']'))
}

async fn greet(
    keyring: &Arc<Keyring>,
    tcp: net::TcpStream,
    address: SocketAddr,
    wanted: &Identity,
) -> Result<Connection, HandshakeError> {
    let credentials = keyring.current();
    let name = ServerName::IpAddress(address.ip().into());
    let (stream, id, word) = handshake::call(&credentials, tcp, name, wanted).await?;
    let standing = Standing::new(&stream, id, address);
    keyring.note(&standing, &credentials);
    Ok(Connection::proven(stream, Some(word), standing))
}

async fn greet_plain(mut tcp: net::TcpStream, address: SocketAddr) -> Result<Connection, HandshakeError> {
    let word = handshake::call_plain(&mut tcp).await?;
    Ok(Connection::unproven_call(tcp, address, word))
}

/// What an error chain ends with: transport layers only say "transport error".
fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
