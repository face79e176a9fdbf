//! Where a destination waits for a stream of the source: the agent listens, and QEMU gets one connection, the one that says the
//! token. Whoever else comes is sent away and changes nothing.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::token::{LENGTH, Token};

/// How long a caller may take to say the token.
const PREFACE_DEADLINE: Duration = Duration::from_secs(2);
/// Callers that are listened to at one time. One more, and the one that has been silent longest is sent away.
const CALLERS: usize = 64;
/// Connections the kernel keeps until they are accepted.
const BACKLOG: u32 = 128;
/// Strangers that are told of one by one; of the rest only how many.
const TOLD: u64 = 5;
/// When the host is out of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// How long a destination may take to answer a call.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// An open door: for one caller, then it is gone. Closed when dropped.
#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    address: SocketAddrV4,
    source: Ipv4Addr,
    token: Token,
}

/// How many were sent away.
#[derive(Debug, Default)]
struct Strangers(u64);

impl Strangers {
    fn send_away(&mut self, from: Option<SocketAddr>, why: &str) {
        self.0 += 1;
        let from = from.map_or_else(|| "unknown".to_owned(), |from| from.to_string());
        if self.0 <= TOLD {
            warn!(from, why, "a stranger at a stream's port was sent away");
        } else {
            debug!(from, why, "a stranger at a stream's port was sent away");
        }
    }
}

impl Door {
    /// On a port of the kernel's choice, for a caller from `source` that knows the token.
    pub(super) fn open(address: Ipv4Addr, source: Ipv4Addr, token: Token) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddrV4::new(address, 0).into())?;
        let listener = socket.listen(BACKLOG)?;
        let SocketAddr::V4(address) = listener.local_addr()? else {
            return Err(io::Error::other("an IPv4 socket has another address"));
        };
        Ok(Self { listener, address, source, token })
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Waits for the one caller; the door is closed behind it. What it sends after the token has not been read.
    pub(super) async fn admit(self) -> TcpStream {
        let mut strangers = Strangers::default();
        let mut callers = JoinSet::new();
        let mut silent: VecDeque<AbortHandle> = VecDeque::new();
        let admitted = loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((_, from)) if from.ip() != self.source => {
                        strangers.send_away(Some(from), "the source has another address");
                    }
                    Ok((stream, from)) => {
                        silent.retain(|caller| !caller.is_finished());
                        if silent.len() >= CALLERS && let Some(longest) = silent.pop_front() {
                            longest.abort();
                        }
                        silent.push_back(callers.spawn(hear(stream, from, self.token)));
                    }
                    Err(error) => {
                        debug!(%error, "a call for a stream could not be taken");
                        sleep(ACCEPT_AGAIN).await;
                    }
                },
                Some(heard) = callers.join_next() => match heard {
                    Ok(Ok(stream)) => break stream,
                    Ok(Err((from, why))) => strangers.send_away(Some(from), &why),
                    Err(_aborted) => strangers.send_away(None, "too many were silent"),
                },
            }
        };
        if strangers.0 > 0 {
            info!(strangers = strangers.0, "the source's stream is open; strangers were sent away before");
        }
        admitted
    }
}

/// The connection if it says the token in time, and nothing read beyond it.
async fn hear(mut stream: TcpStream, from: SocketAddr, token: Token) -> Result<TcpStream, (SocketAddr, String)> {
    let mut said = [0; LENGTH];
    match timeout(PREFACE_DEADLINE, stream.read_exact(&mut said)).await {
        Ok(Ok(_)) if token.is(&said) => Ok(stream),
        Ok(Ok(_)) => Err((from, "it does not know the token".to_owned())),
        Ok(Err(error)) => Err((from, format!("it broke off: {error}"))),
        Err(_) => Err((from, format!("it did not say the token within {PREFACE_DEADLINE:?}"))),
    }
}

/// A source's call: connects from `source`, says the token. What is sent goes at once, also the last words.
pub(super) async fn call(to: SocketAddrV4, source: Ipv4Addr, token: Token) -> io::Result<TcpStream> {
    let calling = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddrV4::new(source, 0).into())?;
        let mut stream = socket.connect(to.into()).await?;
        stream.set_nodelay(true)?;
        tokio::io::AsyncWriteExt::write_all(&mut stream, token.as_bytes()).await?;
        Ok(stream)
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("{to} did not answer within {CALL_DEADLINE:?}"));
    timeout(CALL_DEADLINE, calling).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
    const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

    fn door() -> (Door, Token, SocketAddrV4) {
        let token = Token::fresh();
        let door = Door::open(HOST, HOST, token).unwrap();
        let address = door.address();
        (door, token, address)
    }

    /// Whether the other side has closed it.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        matches!(timeout(Duration::from_secs(4), stream.read(&mut [0])).await, Ok(Ok(0) | Err(_)))
    }

    #[tokio::test]
    async fn the_source_is_admitted_and_nothing_is_read_beyond_the_token() {
        let (door, token, address) = door();
        let admitted = tokio::spawn(door.admit());
        let mut source = call(address, HOST, token).await.unwrap();
        assert!(source.nodelay().unwrap());
        source.write_all(b"memory").await.unwrap();
        let mut admitted = admitted.await.unwrap();
        let mut memory = [0; 6];
        admitted.read_exact(&mut memory).await.unwrap();
        assert_eq!(&memory, b"memory");
        // A second one with the right token finds no door.
        assert!(call(address, HOST, token).await.is_err());
    }

    #[tokio::test]
    async fn strangers_get_nothing_and_are_in_nobodys_way() {
        let (door, token, address) = door();
        let admitted = tokio::spawn(door.admit());
        let mut first = TcpStream::connect(address).await.unwrap();
        let mut wrong = call(address, HOST, Token::fresh()).await.unwrap();
        let mut babbler = TcpStream::connect(address).await.unwrap();
        let _broken = babbler.write_all(&[0x55; 100_000]).await;
        let mut elsewhere = call(address, ELSEWHERE, token).await.unwrap();
        assert!(is_closed(&mut wrong).await, "a wrong token");
        assert!(is_closed(&mut babbler).await, "garbage");
        assert!(is_closed(&mut elsewhere).await, "the right token from another host");
        // Silent ones, more than are listened to.
        let mut silent = Vec::new();
        for _ in 0..3 * CALLERS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let _source = call(address, HOST, token).await.unwrap();
        let admitted = timeout(Duration::from_secs(1), admitted).await.expect("at once").unwrap();
        assert_eq!(admitted.peer_addr().unwrap(), _source.local_addr().unwrap());
        assert!(is_closed(&mut first).await, "the first to come");
        for stranger in &mut silent {
            assert!(is_closed(stranger).await, "one that said nothing");
        }
    }

    #[tokio::test]
    async fn silence_is_not_waited_for() {
        let (door, _token, address) = door();
        let admitted = tokio::spawn(door.admit());
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(&[0; LENGTH - 1]).await.unwrap();
        assert!(is_closed(&mut silent).await);
        assert!(!admitted.is_finished());
        admitted.abort();
    }

    #[tokio::test]
    async fn nobody_there_is_said_at_once() {
        let (door, token, address) = door();
        drop(door);
        let error = call(address, HOST, token).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
