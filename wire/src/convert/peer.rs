//! What the two ends of a migration say to each other.

use std::net::SocketAddrV4;

use super::field::{InvalidField, Problem};
use crate::v1;

/// Where the destination's QEMU listens for memory. QEMU takes more forms of a URI, among them commands to be run: none but
/// this one is let through.
///
/// # Errors
/// What is wrong with it.
pub fn memory_target(prepared: &v1::Prepared) -> Result<SocketAddrV4, InvalidField> {
    let uri = &prepared.memory_uri;
    let address = uri.strip_prefix("tcp:").and_then(|address| address.parse::<SocketAddrV4>().ok());
    // As it is written, too: two forms of one address would be two ways past a comparison.
    address.filter(|address| *uri == format!("tcp:{address}") && address.port() != 0).ok_or_else(|| {
        let words = "is not tcp:ADDRESS:PORT, with an IPv4 address; nothing else is given to QEMU".to_owned();
        InvalidField::new("memory_uri", Problem::Other(words))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_to_an_address_and_nowhere_else() {
        let target = |uri: &str| memory_target(&v1::Prepared { memory_uri: uri.to_owned() });
        assert_eq!(target("tcp:192.0.2.2:49152"), Ok("192.0.2.2:49152".parse().expect("an address")));
        for uri in [
            "",
            "tcp:",
            "exec:touch /tmp/here",
            "exec:tcp:192.0.2.2:1",
            "unix:/run/x.sock",
            "fd:3",
            "file:/etc/passwd",
            "tcp:host:49152",
            "tcp:[::1]:49152",
            "tcp:192.0.2.2:0",
            "tcp:192.0.2.2:049152",
            "tcp:192.0.2.2:49152,to=50000",
            " tcp:192.0.2.2:49152",
        ] {
            assert_eq!(target(uri).expect_err(uri).field, "memory_uri");
        }
    }
}
