//! The numbered packet all UDP and ICMP probes send.

/// Bytes of a probe packet's payload.
pub const LEN: usize = 64;

const MAGIC: u32 = 0x544c_504b;

/// Offset of the sequence number in the payload, for whoever reads it from a captured frame.
pub const SEQUENCE_OFFSET: usize = 8;

/// A numbered packet. What its sender knows about itself rides along, so that it is stamped with the receiver's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The session it belongs to; others are ignored.
    pub session: u32,
    /// Counts from 0 in each direction of each probe.
    pub sequence: u64,
    /// TCP segments the sender's end of the stream has retransmitted so far.
    pub retransmits: u32,
}

impl Packet {
    /// The payload on the wire, big endian.
    pub fn encode(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.session.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.retransmits.to_be_bytes());
        bytes
    }

    /// Reads a payload; `None` if it is not a probe packet.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.get(..LEN)?.try_into().ok()?;
        if bytes[0..4] != MAGIC.to_be_bytes() {
            return None;
        }
        Some(Self {
            session: u32::from_be_bytes(bytes[4..8].try_into().ok()?),
            sequence: u64::from_be_bytes(bytes[8..16].try_into().ok()?),
            retransmits: u32::from_be_bytes(bytes[16..20].try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        let packet = Packet { session: 7, sequence: 1 << 40, retransmits: 3 };
        assert_eq!(Packet::decode(&packet.encode()), Some(packet));
    }

    #[test]
    fn strangers_are_not_counted() {
        assert_eq!(Packet::decode(&[0; LEN]), None);
        assert_eq!(Packet::decode(&Packet { session: 0, sequence: 0, retransmits: 0 }.encode()[..LEN - 1]), None);
    }
}
