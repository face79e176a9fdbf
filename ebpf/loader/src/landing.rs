//! The destination's end of carry tunnels.

use std::{collections::hash_map::Entry, net::Ipv4Addr};

use throughline_abi::{Landing, MarkerKey};

use crate::{Datapath, DatapathError, MARKERS, PortHandle, attach::Program, datapath::lock, maps::Strays};

/// Whose frames and markers a port takes at its landing.
#[derive(Clone, Debug)]
pub struct LandingConfig {
    /// The only tunnel end point whose frames land.
    pub source_vtep: Ipv4Addr,
    /// Where markers are addressed.
    pub marker_mac: [u8; 6],
    /// The peers whose markers are awaited, each by its number, and the tags of its markers by their sequence numbers.
    pub peers: Vec<(u32, [u64; MARKERS as usize])>,
}

impl Datapath {
    /// Puts `land` on the host's carry device, once for all moves; a second time, and after a restart, is no error.
    ///
    /// # Errors
    /// [`DatapathError::NoInterface`], [`DatapathError::Attach`].
    pub fn attach_land(&self, carry_ifindex: u32) -> Result<(), DatapathError> {
        if let Entry::Vacant(vacant) = lock(&self.kernel.landings).entry(carry_ifindex) {
            vacant.insert(self.kernel.adopt(Program::Land, carry_ifindex)?);
        }
        Ok(())
    }

    /// Takes `land` off the carry device, before the device goes; not there is no error.
    ///
    /// # Errors
    /// [`DatapathError::Detach`], [`DatapathError::PinnedLink`].
    pub fn detach_land(&self, carry_ifindex: u32) -> Result<(), DatapathError> {
        let held = lock(&self.kernel.landings).remove(&carry_ifindex);
        match held.map_or_else(|| self.kernel.left(Program::Land, carry_ifindex), |attachment| Ok(Some(attachment)))? {
            Some(mut attachment) => attachment.detach(),
            None => Ok(()),
        }
    }

    /// From now on frames with tunnel key `carry_id` from the landing's source go to `port`'s tap, and those to its marker
    /// address end here. From any other source they are refused and counted, and so is a marker that is none of its peers'.
    /// The same again is no error, and what came stays noted; it ends with [`Datapath::close_landing`] or with the port.
    ///
    /// # Errors
    /// [`DatapathError::LandingTaken`] if the carry id has another landing; [`DatapathError::Map`].
    pub fn open_landing(&self, carry_id: u32, port: &PortHandle, config: &LandingConfig) -> Result<(), DatapathError> {
        let LandingConfig { source_vtep, marker_mac, peers } = config;
        let landing = Landing {
            slot: port.slot(),
            source_vtep: source_vtep.to_bits(),
            marker_mac: *marker_mac,
            reserved: [0; 2],
        };
        let mut maps = self.kernel.maps();
        match maps.landing(carry_id)? {
            Some(present) if present == landing => return Ok(()),
            Some(_) => return Err(DatapathError::LandingTaken { carry_id }),
            None => {}
        }
        // The markers before the landing: none comes too early to be known.
        let awaited =
            peers.iter().try_for_each(|(peer, tags)| maps.await_markers(MarkerKey { carry_id, peer: *peer }, *tags));
        let opened = awaited.and_then(|()| maps.insert_landing(carry_id, landing));
        if opened.is_err() {
            // The first error is the one to tell.
            let _ = maps.remove_landing(carry_id);
        }
        opened
    }

    /// Nothing lands under `carry_id` any more, and its markers are forgotten; none is no error.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn close_landing(&self, carry_id: u32) -> Result<(), DatapathError> {
        self.kernel.maps().remove_landing(carry_id)
    }

    /// The markers of one peer that arrived: one bit for each sequence number, [`crate::ALL_MARKERS`] when all are in.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn markers_seen(&self, carry_id: u32, peer: u32) -> Result<u64, DatapathError> {
        self.kernel.maps().markers_seen(MarkerKey { carry_id, peer })
    }

    /// What came to this host's carry tunnel and belongs to no move; it was dropped.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn strays(&self) -> Result<Strays, DatapathError> {
        self.kernel.maps().strays()
    }
}
