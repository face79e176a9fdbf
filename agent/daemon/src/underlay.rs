//! What the network between the hosts takes: a line that is released at once may be more than its queues do, and what they
//! drop nobody sends again.

use std::{fs, net::Ipv4Addr, num::NonZeroU64};

use nix::ifaddrs::getifaddrs;

use crate::config::Config;

/// Bytes per second in a megabit per second.
const PER_MBIT: u64 = 125_000;

/// Bytes per second at which this host sends a line after its guest; `None`: as fast as it can.
///
/// As the operator says, or nine tenths of what the interface says of itself: tunnel headers and other traffic take
/// theirs.
pub fn release_pace(config: &Config) -> Option<NonZeroU64> {
    let said = config.release_mbit.map(|mbit| u64::from(mbit) * PER_MBIT);
    let pace = said.or_else(|| Some(speed_mbit(config.vtep)? * PER_MBIT / 10 * 9));
    pace.and_then(NonZeroU64::new)
}

/// Speed of the interface with that address, if it knows it: a virtual one may not, and one without a carrier does not.
fn speed_mbit(address: Ipv4Addr) -> Option<u64> {
    let mut interfaces = getifaddrs().ok()?;
    let has_it = |socket: nix::sys::socket::SockaddrStorage| socket.as_sockaddr_in().map(|it| it.ip()) == Some(address);
    let name = interfaces.find(|interface| interface.address.is_some_and(has_it))?.interface_name;
    // -1: unknown.
    fs::read_to_string(format!("/sys/class/net/{name}/speed")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn pace(arguments: &[&str]) -> Option<u64> {
        let needed = ["agent", "--host", "h1", "--vtep", "127.0.0.1", "--peer-listen", "127.0.0.1:7701"];
        release_pace(&Config::parse_from(needed.iter().chain(arguments))).map(NonZeroU64::get)
    }

    #[test]
    fn as_the_operator_says() {
        assert_eq!(pace(&["--release-mbit", "1000"]), Some(125_000_000));
        assert_eq!(pace(&["--release-mbit", "0"]), None);
    }

    #[test]
    fn an_interface_that_does_not_know_its_speed_sets_none() {
        assert_eq!(pace(&[]), None, "the loopback has none");
        assert_eq!(speed_mbit([192, 0, 2, 77].into()), None, "nobody's address");
    }
}
