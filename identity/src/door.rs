//! Where connections are let in: proved one by one, beside each other, so that a slow one delays nobody.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::warn;

use crate::{Connection, Keyring, NotLoopback, Security, connection::Standing, handshake};

/// Handshakes under way; whoever comes beyond is turned away at once. Each lasts at most [`handshake::DEADLINE`].
const MOST: usize = 512;
/// Of them from one address, so that one cannot take all places.
const MOST_OF_ONE: usize = 64;
/// Connections that are let in and not yet served.
const WAITING: usize = 64;
/// How long a door stays shut that cannot accept, say for want of descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// A listener, and how those who come are proved.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    security: Security,
}

impl Door {
    /// A door in a wall.
    ///
    /// # Errors
    /// It would be open, `--insecure`, to others than this machine.
    pub fn new(listener: TcpListener, security: Security) -> io::Result<Self> {
        let address = listener.local_addr()?;
        if matches!(security, Security::Insecure) && !address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, NotLoopback(address)));
        }
        Ok(Self { listener, address, security })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Those who were let in, for tonic's `serve_with_incoming`. The door closes when the stream is dropped.
    pub fn incoming(self) -> ReceiverStream<io::Result<Connection>> {
        let (inside, served) = mpsc::channel(WAITING);
        tokio::spawn(self.keep(inside));
        ReceiverStream::new(served)
    }

    async fn keep(self, inside: mpsc::Sender<io::Result<Connection>>) {
        let porter = Arc::new(Porter::default());
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                () = inside.closed() => return,
                Some(_) = handshakes.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, address)) => {
                        // gRPC's messages are small and waited for. Where it cannot be set it is slower, no worse.
                        let _ = tcp.set_nodelay(true);
                        let Some(place) = porter.place(address.ip()) else {
                            porter.complain(address, &"too many handshakes are under way");
                            continue;
                        };
                        handshakes.spawn(admit(self.security.clone(), tcp, address, place, inside.clone()));
                    }
                    Err(error) => {
                        porter.complain(self.address, &format!("cannot accept: {error}"));
                        time::sleep(BREATH).await;
                    }
                }
            }
        }
    }
}

async fn admit(
    security: Security,
    tcp: TcpStream,
    address: SocketAddr,
    place: Place,
    inside: mpsc::Sender<io::Result<Connection>>,
) {
    let connection = match &security {
        Security::Insecure => Connection::unproven(tcp, address),
        Security::Proven(keyring) => match prove(keyring, tcp, address).await {
            Ok(connection) => connection,
            Err(error) => return place.porter.complain(address, &error),
        },
    };
    // The handshake is over; what follows is gRPC's business, whose own limits hold.
    drop(place);
    let _ = inside.send(Ok(connection)).await;
}

async fn prove(
    keyring: &Keyring,
    tcp: TcpStream,
    address: SocketAddr,
) -> Result<Connection, handshake::HandshakeError> {
    let credentials = keyring.current();
    let (stream, id) = handshake::accept(&credentials, tcp).await?;
    let standing = Standing::new(&stream, id, address);
    keyring.note(&standing, &credentials);
    Ok(Connection::proven(stream, None, standing))
}

/// Counts who is at the door, and says in the log who was not let in.
#[derive(Debug, Default)]
struct Porter {
    under_way: Mutex<HashMap<IpAddr, usize>>,
    complaints: Mutex<Complaints>,
}

/// A place at the door; free again when dropped.
struct Place {
    porter: Arc<Porter>,
    address: IpAddr,
}

impl Porter {
    fn place(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.values().sum::<usize>() >= MOST {
            return None;
        }
        let of_one = under_way.entry(address).or_default();
        if *of_one >= MOST_OF_ONE {
            return None;
        }
        *of_one += 1;
        Some(Place { porter: self.clone(), address })
    }

    fn complain(&self, peer: SocketAddr, reason: &dyn std::fmt::Display) {
        let told = self.complaints.lock().unwrap_or_else(PoisonError::into_inner).tell(peer.ip(), Instant::now());
        match told {
            Some(0) => warn!(%peer, %reason, "a connection was not let in"),
            Some(untold) => warn!(%peer, %reason, untold, "a connection was not let in, and more before it"),
            None => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.porter.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = under_way.get_mut(&self.address) {
            *of_one -= 1;
            if *of_one == 0 {
                under_way.remove(&self.address);
            }
        }
    }
}

/// What the log was told: a few lines an address and time, so that no caller can fill the disk.
#[derive(Debug, Default)]
struct Complaints(HashMap<IpAddr, Told>);

#[derive(Debug)]
struct Told {
    since: Instant,
    lines: u32,
    untold: u64,
}

impl Complaints {
    const LINES: u32 = 5;
    const WINDOW: Duration = Duration::from_secs(10);
    const ADDRESSES: usize = 1024;

    /// Whether a line may be written, and how many of this address were not since the last one.
    fn tell(&mut self, address: IpAddr, now: Instant) -> Option<u64> {
        if !self.0.contains_key(&address) && self.0.len() >= Self::ADDRESSES {
            self.0.retain(|_, told| now.duration_since(told.since) < Self::WINDOW);
            if self.0.len() >= Self::ADDRESSES {
                return None;
            }
        }
        let told = self.0.entry(address).or_insert(Told { since: now, lines: 0, untold: 0 });
        if now.duration_since(told.since) >= Self::WINDOW {
            (told.since, told.lines) = (now, 0);
        }
        if told.lines >= Self::LINES {
            told.untold += 1;
            return None;
        }
        told.lines += 1;
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let porter = Arc::new(Porter::default());
        let mut places: Vec<_> = (0..MOST_OF_ONE).map(|_| porter.place(address(1)).unwrap()).collect();
        assert!(porter.place(address(1)).is_none());
        let other = porter.place(address(2));
        assert!(other.is_some());
        places.pop();
        assert!(porter.place(address(1)).is_some(), "a place that is left is free");
    }

    #[test]
    fn all_together_have_so_many_places() {
        let porter = Arc::new(Porter::default());
        let places: Vec<_> = (0..).map_while(|n| porter.place(address(n))).collect();
        assert_eq!(places.len(), MOST);
        drop(places);
        assert!(porter.under_way.lock().unwrap().is_empty(), "nothing is remembered of who left");
    }

    #[test]
    fn the_log_is_told_a_few_times_and_how_much_it_missed() {
        let (mut complaints, now) = (Complaints::default(), Instant::now());
        for _ in 0..Complaints::LINES {
            assert_eq!(complaints.tell(address(1), now), Some(0));
        }
        for _ in 0..3 {
            assert_eq!(complaints.tell(address(1), now), None);
        }
        assert_eq!(complaints.tell(address(2), now), Some(0), "another address has its own lines");
        assert_eq!(complaints.tell(address(1), now + Complaints::WINDOW), Some(3));
        for n in 0..5000 {
            complaints.tell(address(n), now);
        }
        assert!(complaints.0.len() <= Complaints::ADDRESSES);
    }
}
