//! The guest's end of loads: counts what arrives, echoes nothing.

use std::io;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::bulk;
use super::flood::Packet;
use super::mmsg::Datagrams;
use super::track::Track;

/// How many lost packets are named.
pub const MOST_LOST: usize = 1 << 16;

/// Most flows of a load; packets of others are strangers'.
const MOST_FLOWS: usize = 4096;

/// What the guest counted of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Packets that arrived at least once.
    pub arrived: u64,
    /// Flow and number of those that did not, the first [`MOST_LOST`] of them.
    pub lost: Vec<(u32, u64)>,
    /// Arrivals of a packet that had already arrived.
    pub duplicated: u64,
    /// First arrivals that came after one of the same flow with a higher number.
    pub reordered: u64,
    /// The furthest any of them had fallen behind.
    pub displacement: u64,
    /// TCP as fast as it goes.
    pub bulk: bulk::GuestCounts,
}

/// How many loads are remembered, so that the question for their counts may be repeated.
const REMEMBERED: usize = 16;

/// The loads that are under way, and the last ones before them; the oldest first.
#[derive(Debug, Default)]
pub struct Loads(Mutex<Vec<(u32, Load)>>);

#[derive(Debug, Default)]
struct Load {
    flows: Vec<Track>,
    bulk: Arc<bulk::Guest>,
}

impl Loads {
    /// A load begins. Nothing happens if it has begun already.
    pub fn begin(&self, load: u32) {
        let mut loads = self.lock();
        if find(&mut loads, load).is_none() {
            let surplus = (loads.len() + 1).saturating_sub(REMEMBERED);
            loads.drain(..surplus);
            loads.push((load, Load::default()));
        }
    }

    /// A load has ended, `sent` packets having been sent of each flow: what arrived of it; `None` if it is not known.
    pub fn end(&self, load: u32, sent: &[u64]) -> Option<Counts> {
        let bulk = self.bulk(load)?.finish();
        find(&mut self.lock(), load).map(|load| load.counts(sent, bulk))
    }

    /// The bulk connections of a load.
    pub(super) fn bulk(&self, load: u32) -> Option<Arc<bulk::Guest>> {
        find(&mut self.lock(), load).map(|load| load.bulk.clone())
    }

    /// Counts what arrives on a socket until its thread's process ends.
    pub fn count(&self, socket: &UdpSocket) -> io::Result<()> {
        let mut datagrams = Datagrams::new();
        loop {
            let count = datagrams.receive(socket)?;
            let mut loads = self.lock();
            for packet in datagrams.bytes[..count].iter().filter_map(|bytes| Packet::decode(bytes)) {
                let flow = packet.flow as usize;
                let Some(load) = find(&mut loads, packet.load).filter(|_| flow < MOST_FLOWS) else { continue };
                if flow >= load.flows.len() {
                    load.flows.resize_with(flow + 1, Track::default);
                }
                load.flows[flow].note(packet.number);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u32, Load)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(loads: &mut [(u32, Load)], load: u32) -> Option<&mut Load> {
    loads.iter_mut().rev().find(|(id, _)| *id == load).map(|(_, load)| load)
}

impl Load {
    fn counts(&self, sent: &[u64], bulk: bulk::GuestCounts) -> Counts {
        let nothing = Track::default();
        let mut counts = Counts { bulk, ..Counts::default() };
        for (flow, &sent) in sent.iter().enumerate() {
            let track = self.flows.get(flow).unwrap_or(&nothing);
            counts.arrived += track.arrived(sent);
            let room = MOST_LOST - counts.lost.len();
            counts.lost.extend(track.missing(sent).take(room).map(|number| (flow as u32, number)));
            counts.duplicated += track.duplicated;
            counts.reordered += track.reordered;
            counts.displacement = counts.displacement.max(track.displacement);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_known_from_begin_until_many_others_have_begun() {
        let loads = Loads::default();
        assert_eq!(loads.end(1, &[3]), None);
        loads.begin(1);
        loads.begin(1);
        let counts = loads.end(1, &[3, 1]).unwrap();
        assert_eq!((counts.arrived, counts.lost), (0, vec![(0, 0), (0, 1), (0, 2), (1, 0)]));
        (2..=REMEMBERED as u32).for_each(|load| loads.begin(load));
        assert!(loads.end(1, &[]).is_some(), "asked again, and others end at the same time");
        loads.begin(99);
        assert_eq!(loads.end(1, &[]), None);
    }
}
