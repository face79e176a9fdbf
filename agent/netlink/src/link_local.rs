//! The link-local address that a port has without saying so.

use std::net::{IpAddr, Ipv6Addr};

use throughline_cutover::MacAddr;

/// With IPv6, a device has a link-local address too (RFC 4291 §2.1): the one its MAC address gives, unless `ips` has one.
/// A guest may have chosen another. Announcing this one all the same harms nobody: an advertisement changes only entries
/// that are there (RFC 4861 §7.2.5), and no other MAC address gives this address. Answering for it would: whoever
/// made it his by hand would find it taken. So it is announced, and never bound.
pub(crate) fn implied_link_local(mac: MacAddr, ips: &[IpAddr]) -> Option<Ipv6Addr> {
    let has_one = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    (ips.iter().any(IpAddr::is_ipv6) && !ips.iter().any(has_one)).then(|| of(mac))
}

/// The address a MAC address gives (RFC 4291, appendix A).
fn of(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_modified_eui_64_of_a_port_with_ipv6_and_no_other() {
        let mac = "02:00:5e:10:00:01".parse().unwrap();
        let ips = |texts: &[&str]| texts.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        let expected = "fe80::5eff:fe10:1".parse().unwrap();
        assert_eq!(implied_link_local(mac, &ips(&["10.0.0.5", "2001:db8::5"])), Some(expected));
        assert_eq!(implied_link_local(mac, &ips(&["2001:db8::5", "fe80::5"])), None);
        assert_eq!(implied_link_local(mac, &ips(&["10.0.0.5"])), None);
    }
}
