//! The handle, and what it remembers between calls.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use throughline_cutover::{MacAddr, Vni};

use crate::{Error, Result, names, verbs::Verbs};

/// A way to the network configuration of one namespace. Clones share it.
#[derive(Debug, Clone)]
pub struct Netlink {
    pub(crate) verbs: Verbs,
    known: Arc<Mutex<Known>>,
}

/// Interface indexes of a network's two devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) bridge: u32,
    pub(crate) vxlan: u32,
}

#[derive(Debug, Default)]
struct Known {
    /// So that a flip asks for no indexes.
    segments: HashMap<Vni, Segment>,
    /// So that a reconciliation leaves the markers of moves under way alone.
    markers: BTreeSet<(Vni, MacAddr)>,
}

impl Netlink {
    /// Opens netlink in the calling thread's network namespace. To be called within a tokio runtime, which then runs
    /// the connection until the last clone is dropped.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self> {
        let verbs = Verbs::open().map_err(Error::Open)?;
        Ok(Self { verbs, known: Arc::default() })
    }

    /// The network's devices, asked of the kernel once.
    pub(crate) async fn segment(&self, vni: Vni) -> Result<Segment> {
        if let Some(segment) = self.known().segments.get(&vni) {
            return Ok(*segment);
        }
        let (bridge, vxlan) = (names::bridge(vni), names::vxlan(vni));
        let bridge = self.find(&bridge).await?.ok_or(Error::NoNetwork(vni))?.index;
        let vxlan = self.find(&vxlan).await?.ok_or(Error::NoNetwork(vni))?.index;
        let segment = Segment { bridge, vxlan };
        self.remember(vni, segment);
        Ok(segment)
    }

    pub(crate) fn remember(&self, vni: Vni, segment: Segment) {
        self.known().segments.insert(vni, segment);
    }

    pub(crate) fn forget(&self, vni: Vni) {
        self.known().segments.remove(&vni);
    }

    pub(crate) fn remember_marker(&self, vni: Vni, mac: MacAddr) {
        self.known().markers.insert((vni, mac));
    }

    pub(crate) fn forget_marker(&self, vni: Vni, mac: MacAddr) {
        self.known().markers.remove(&(vni, mac));
    }

    pub(crate) fn forget_markers(&self, vni: Vni) {
        self.known().markers.retain(|(network, _)| *network != vni);
    }

    /// Marker addresses of moves under way in a network.
    pub(crate) fn markers(&self, vni: Vni) -> BTreeSet<MacAddr> {
        self.known().markers.iter().filter(|(network, _)| *network == vni).map(|&(_, mac)| mac).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each holder makes one change that cannot panic half way.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
