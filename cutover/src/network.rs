//! Values of the network: MAC addresses, VNIs, generations and numbers that must not be confused with each other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a network value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetworkValue {
    /// Not six hex pairs.
    #[error("is not a MAC address; write six hex pairs, like 02:00:00:00:00:01")]
    Mac,
    /// Group bit set or all zero.
    #[error("{0} is not a unicast MAC address; the first octet must be even and the address not zero")]
    NotUnicast(MacAddr),
    /// Out of 24 bits, or zero.
    #[error("is {0}; a VNI is 1 to 16777215 (24 bits, RFC 7348)")]
    Vni(u64),
    /// Out of 24 bits, or zero.
    #[error("is {0}; a carry id is 1 to 16777215")]
    CarryId(u64),
    /// Below what IPv4 needs or above what fits a datagram.
    #[error("is {0}; an MTU is 576 to 65485 bytes")]
    Mtu(u64),
    /// Zero.
    #[error("is 0; port ids begin at 1")]
    PortId,
    /// None, or more than a lot.
    #[error("is {0}; a network card has 1 to 8 queues")]
    Queues(u64),
    /// Not 16 bytes.
    #[error("has {0} bytes; a marker's secret has 16")]
    MarkerSecret(usize),
    /// Not 32 hex digits.
    #[error("is not a marker's secret; that is 32 hex digits")]
    MarkerSecretText,
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// From its octets, any value.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// Its octets.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Neither group address nor zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// Itself, if a network card may have it.
    ///
    /// # Errors
    /// [`InvalidNetworkValue::NotUnicast`].
    pub fn unicast(self) -> Result<Self, InvalidNetworkValue> {
        if self.is_unicast() { Ok(self) } else { Err(InvalidNetworkValue::NotUnicast(self)) }
    }
}

impl FromStr for MacAddr {
    type Err = InvalidNetworkValue;
    fn from_str(text: &str) -> Result<Self, InvalidNetworkValue> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or(InvalidNetworkValue::Mac)?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(InvalidNetworkValue::Mac),
        }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidNetworkValue;
    fn try_from(text: String) -> Result<Self, InvalidNetworkValue> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $repr:ty, $range:expr, $error:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name($repr);

        impl $name {
            /// The number.
            pub const fn get(self) -> $repr {
                self.0
            }
        }

        impl TryFrom<u64> for $name {
            type Error = InvalidNetworkValue;
            fn try_from(number: u64) -> Result<Self, InvalidNetworkValue> {
                if $range.contains(&number) {
                    <$repr>::try_from(number).map(Self).map_err(|_| $error(number))
                } else {
                    Err($error(number))
                }
            }
        }

        impl TryFrom<u32> for $name {
            type Error = InvalidNetworkValue;
            fn try_from(number: u32) -> Result<Self, InvalidNetworkValue> {
                Self::try_from(u64::from(number))
            }
        }

        impl From<$name> for u64 {
            fn from(number: $name) -> Self {
                u64::from(number.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// VXLAN network identifier, 24 bits (RFC 7348).
    Vni, u32, (1..=0xff_ffff_u64), InvalidNetworkValue::Vni
);
number!(
    /// Tunnel key of the frames one port's migration carries, 24 bits.
    CarryId, u32, (1..=0xff_ffff_u64), InvalidNetworkValue::CarryId
);
number!(
    /// Largest payload of a frame, bytes.
    Mtu, u32, (576..=65485_u64), InvalidNetworkValue::Mtu
);
number!(
    /// Fabric-wide number of a port; its devices carry it in their names.
    PortId, u32, (1..=u64::from(u32::MAX)), |_| InvalidNetworkValue::PortId
);

number!(
    /// Queues of a guest's network cards: pairs of one for what comes and one for what goes.
    Queues, u32, (1..=8_u64), InvalidNetworkValue::Queues
);

impl Queues {
    /// A plain card's.
    pub const ONE: Self = Self(1);

    /// Whether there is more than one.
    pub const fn are_several(self) -> bool {
        self.0 > 1
    }
}

/// A guest of whom nothing is said has plain cards; so have those on record from before there were others.
impl Default for Queues {
    fn default() -> Self {
        Self::ONE
    }
}

/// What a peer's markers are made from in one migration, on one port. Random; known to that peer, to the two ends and to the
/// controller, so that no other host and no guest can mark in the peer's name. Never shown.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MarkerSecret([u8; Self::BYTES]);

impl MarkerSecret {
    /// How long one is.
    pub const BYTES: usize = 16;

    /// From its bytes, which the caller has drawn.
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for who makes or checks markers.
    pub const fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl TryFrom<&[u8]> for MarkerSecret {
    type Error = InvalidNetworkValue;
    fn try_from(bytes: &[u8]) -> Result<Self, InvalidNetworkValue> {
        bytes.try_into().map(Self).map_err(|_| InvalidNetworkValue::MarkerSecret(bytes.len()))
    }
}

impl TryFrom<String> for MarkerSecret {
    type Error = InvalidNetworkValue;
    fn try_from(text: String) -> Result<Self, InvalidNetworkValue> {
        let is_hex = text.len() == 2 * Self::BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| is_hex);
        number.map(|number| Self(number.to_be_bytes())).ok_or(InvalidNetworkValue::MarkerSecretText)
    }
}

/// For the record and the journal, which are the fabric's own.
impl From<MarkerSecret> for String {
    fn from(secret: MarkerSecret) -> Self {
        format!("{:032x}", u128::from_be_bytes(secret.0))
    }
}

impl fmt::Debug for MarkerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MarkerSecret(..)")
    }
}

/// Counts changes of a binding's ownership. Only grows; whoever acts on an older one is refused with the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl Generation {
    /// The first that is ever given out in a fabric.
    pub const FIRST: Self = Self(1);

    pub(crate) const fn first() -> Self {
        Self::FIRST
    }

    /// The next owner's.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trips_and_refuses_near_misses() {
        let mac: MacAddr = "02:00:5e:00:AB:01".parse().expect("valid");
        assert_eq!(mac.to_string(), "02:00:5e:00:ab:01");
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02-00-00-00-00-01",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "0g:00:00:00:00:01",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
        assert!("01:00:5e:00:00:01".parse::<MacAddr>().expect("parses").unicast().is_err());
    }

    #[test]
    fn a_secret_keeps_its_bytes_and_does_not_show_them() {
        let secret = MarkerSecret::new([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(MarkerSecret::try_from(String::from(secret)), Ok(secret));
        assert_eq!(MarkerSecret::try_from(&secret.bytes()[..]), Ok(secret));
        assert_eq!(format!("{secret:?}"), "MarkerSecret(..)");
        assert_eq!(MarkerSecret::try_from(&[0; 15][..]), Err(InvalidNetworkValue::MarkerSecret(15)));
        for bad in ["", "00", "+0000000000000000000000000000000", "0000000000000000000000000000000g"] {
            assert!(MarkerSecret::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_know_their_range() {
        assert!(Vni::try_from(0_u32).is_err());
        assert!(Vni::try_from(1_u32 << 24).is_err());
        assert_eq!(Vni::try_from(0xff_ffff_u32).map(Vni::get), Ok(0xff_ffff));
        assert!(Mtu::try_from(575_u32).is_err());
        assert!(PortId::try_from(0_u32).is_err());
    }
}
