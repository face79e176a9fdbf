//! What is sent to the guest while it moves.

/// A mix of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// Its name on the command line and in JSON.
    pub(super) name: &'static str,
    /// What it is, for the report.
    pub(super) title: &'static str,
    /// Numbered UDP each way between the first peer and the guest, packets a second, echoed; a paced TCP stream and pings go
    /// beside it.
    pub(super) paced: u32,
    /// More for the guest alone.
    pub(super) floods: &'static [Flood],
}

/// What one peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flood {
    /// The peer's number, from 0.
    pub(super) peer: usize,
    /// Numbered UDP to the guest, packets a second, over all its flows.
    pub(super) pps: u32,
    /// Flows.
    pub(super) flows: u32,
    /// Whether TCP goes as fast as it can, each way.
    pub(super) bulk: bool,
}

const fn udp(peer: usize, pps: u32, flows: u32) -> Flood {
    Flood { peer, pps, flows, bulk: false }
}

const BULK: Flood = Flood { peer: 0, pps: 0, flows: 1, bulk: true };

/// The probes that go beside a flood: enough to see an outage to within 5 ms, and little for an emulated guest to do.
const BESIDE: u32 = 200;

/// Under which all ways are compared.
pub(super) const COMPARED: [Load; 5] = [
    Load { name: "paced", title: "2,000 packets/s each way, echoed", paced: 2000, floods: &[] },
    Load { name: "fast", title: "20,000 packets/s to the guest", paced: BESIDE, floods: &[udp(0, 20_000, 1)] },
    Load {
        name: "most",
        title: "60,000 packets/s to the guest, more than it takes",
        paced: BESIDE,
        floods: &[udp(0, 60_000, 1)],
    },
    Load { name: "bulk", title: "TCP bulk, each way", paced: BESIDE, floods: &[BULK] },
    Load {
        name: "flows",
        title: "64 flows from 3 peers, 6,000 packets/s",
        paced: BESIDE,
        floods: &[udp(0, 2000, 22), udp(1, 2000, 21), udp(2, 2000, 21)],
    },
];

/// What Throughline alone is put under.
pub(super) const HEAVY: [Load; 2] = [
    Load {
        name: "two-peers",
        title: "2 × 10,000 packets/s from two peers",
        paced: BESIDE,
        floods: &[udp(0, 10_000, 1), udp(1, 10_000, 1)],
    },
    Load {
        name: "two-peers-and-bulk",
        title: "the same, and TCP bulk each way",
        paced: BESIDE,
        floods: &[Flood { bulk: true, ..udp(0, 10_000, 1) }, udp(1, 10_000, 1)],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_what_their_titles_say() {
        let flows = COMPARED[4].floods;
        assert_eq!(flows.iter().map(|flood| flood.flows).sum::<u32>(), 64);
        assert_eq!(flows.iter().map(|flood| flood.pps).sum::<u32>(), 6000);
        assert!(COMPARED.iter().chain(&HEAVY).flat_map(|load| load.floods).all(|flood| flood.peer < 3));
    }
}
