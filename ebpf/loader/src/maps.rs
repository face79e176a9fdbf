//! The maps, typed, and the directory that keeps them over an agent's death.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, PerCpuArray},
};
use throughline_abi::{AwaitedMarkers, Landing, MarkerKey, PortState, SLOTS, SenderKey, stray};

use crate::{DatapathError, words::Pages};

/// Names of all maps, as in `ebpf/programs`.
pub(crate) const NAMES: [&str; 7] = ["PORTS", "TAPS", "HOLDS", "LANDINGS", "AWAITED", "SENDERS", "STRAYS"];

/// `BPF_NOEXIST`.
const NEW_ONLY: u64 = 1;

/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct LandingValue(Landing);
// SAFETY: plain old data without padding (asserted in throughline-abi), any bits are valid.
unsafe impl Pod for LandingValue {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct MarkerKeyValue(MarkerKey);
// SAFETY: as above.
unsafe impl Pod for MarkerKeyValue {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct AwaitedValue(AwaitedMarkers);
// SAFETY: as above.
unsafe impl Pod for AwaitedValue {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct SenderKeyValue(SenderKey);
// SAFETY: as above.
unsafe impl Pod for SenderKeyValue {}

/// Where maps and links are pinned.
#[derive(Debug, Clone)]
pub(crate) struct Pins(PathBuf);

impl Pins {
    /// Makes the directories.
    pub(crate) fn create(directory: &Path) -> Result<Self, DatapathError> {
        let pins = Self(directory.to_owned());
        fs::create_dir_all(pins.links())
            .map_err(|source| DatapathError::PinDirectory { path: directory.to_owned(), source })?;
        Ok(pins)
    }

    fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.0.join(name.to_ascii_lowercase())
    }

    pub(crate) fn link(&self, ifindex: u32, program: &str) -> PathBuf {
        self.links().join(format!("{ifindex}-{program}"))
    }
}

/// Every map but the ports', which are mapped pages.
pub(crate) struct Maps {
    taps: HashMap<MapData, u32, u32>,
    holds: HashMap<MapData, u32, u32>,
    landings: HashMap<MapData, u32, LandingValue>,
    awaited: HashMap<MapData, MarkerKeyValue, AwaitedValue>,
    senders: HashMap<MapData, SenderKeyValue, u32>,
    strays: PerCpuArray<MapData, u64>,
}

/// Takes a map out of a freshly loaded object. A pinned one is the older agent's, so its layout is looked at first.
fn take(ebpf: &mut Ebpf, name: &'static str, layout: Layout, pins: Option<&Pins>) -> Result<Map, DatapathError> {
    let map = ebpf.take_map(name).ok_or(DatapathError::Object { name })?;
    let (Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data)) = &map else {
        return Err(DatapathError::Object { name });
    };
    let info = data.info().map_err(DatapathError::map(name, "examined"))?;
    let found = Layout { key: info.key_size(), value: info.value_size(), flags: info.map_flags() & MMAPABLE };
    if found != layout {
        return Err(DatapathError::Layout { path: pins.map_or_else(|| PathBuf::from(name), |pins| pins.map(name)) });
    }
    Ok(map)
}

fn typed<K: Pod, V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    pins: Option<&Pins>,
) -> Result<HashMap<MapData, K, V>, DatapathError> {
    take(ebpf, name, Layout::of::<K, V>(), pins)?.try_into().map_err(DatapathError::map(name, "taken"))
}

#[derive(PartialEq, Eq)]
struct Layout {
    key: u32,
    value: u32,
    flags: u32,
}

impl Layout {
    const fn of<K, V>() -> Self {
        Self { key: size_of::<K>() as u32, value: size_of::<V>() as u32, flags: 0 }
    }
}

/// The mapped ports of a freshly loaded object.
pub(crate) fn take_ports(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<Pages, DatapathError> {
    let layout = Layout { flags: MMAPABLE, ..Layout::of::<u32, PortState>() };
    let Map::Array(ports) = take(ebpf, "PORTS", layout, pins)? else {
        return Err(DatapathError::Object { name: "PORTS" });
    };
    Pages::map(ports).map_err(DatapathError::Mmap)
}

impl Maps {
    /// Takes them out of a freshly loaded object.
    pub(crate) fn take(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<Self, DatapathError> {
        Ok(Self {
            taps: typed(ebpf, "TAPS", pins)?,
            holds: typed(ebpf, "HOLDS", pins)?,
            landings: typed(ebpf, "LANDINGS", pins)?,
            awaited: typed(ebpf, "AWAITED", pins)?,
            senders: typed(ebpf, "SENDERS", pins)?,
            strays: take(ebpf, "STRAYS", Layout::of::<u32, u64>(), pins)?
                .try_into()
                .map_err(DatapathError::map("STRAYS", "taken"))?,
        })
    }

    /// Slot of a tap.
    pub(crate) fn slot_of_tap(&self, tap: u32) -> Result<Option<u32>, DatapathError> {
        found(self.taps.get(&tap, 0)).map_err(DatapathError::map("TAPS", "read"))
    }

    /// Slot of a hold.
    pub(crate) fn slot_of_hold(&self, hold: u32) -> Result<Option<u32>, DatapathError> {
        found(self.holds.get(&hold, 0)).map_err(DatapathError::map("HOLDS", "read"))
    }

    /// Every tap that has a slot.
    pub(crate) fn taps(&self) -> Result<Vec<(u32, u32)>, DatapathError> {
        self.taps.iter().collect::<Result<_, _>>().map_err(DatapathError::map("TAPS", "listed"))
    }

    /// Lowest slot no tap has.
    pub(crate) fn free_slot(&self) -> Result<u32, DatapathError> {
        let taken: BTreeSet<u32> = self.taps()?.into_iter().map(|(_, slot)| slot).collect();
        (0..SLOTS).find(|slot| !taken.contains(slot)).ok_or(DatapathError::NoSlot)
    }

    /// Tap and hold get a slot.
    pub(crate) fn insert_port(&mut self, slot: u32, tap: u32, hold: u32) -> Result<(), DatapathError> {
        self.holds.insert(hold, slot, 0).map_err(DatapathError::map("HOLDS", "written"))?;
        self.taps.insert(tap, slot, 0).map_err(DatapathError::map("TAPS", "written"))
    }

    /// Tap, hold and whatever lands in the slot lose it; goes on after a failure.
    pub(crate) fn remove_port(&mut self, slot: u32, tap: u32, hold: u32) -> Vec<DatapathError> {
        let mut errors = Vec::new();
        match self.landings() {
            Ok(landings) => {
                for (carry_id, _) in landings.into_iter().filter(|(_, landing)| landing.slot == slot) {
                    errors.extend(self.remove_landing(carry_id).err());
                }
            }
            Err(error) => errors.push(error),
        }
        errors.extend(self.remove_senders(slot).err());
        let removed = gone(self.holds.remove(&hold)).map_err(DatapathError::map("HOLDS", "written"));
        errors.extend(removed.err());
        let removed = gone(self.taps.remove(&tap)).map_err(DatapathError::map("TAPS", "written"));
        errors.extend(removed.err());
        errors
    }

    /// Every landing with its carry id.
    fn landings(&self) -> Result<Vec<(u32, Landing)>, DatapathError> {
        self.landings
            .iter()
            .map(|entry| entry.map(|(carry_id, landing)| (carry_id, landing.0)))
            .collect::<Result<_, _>>()
            .map_err(DatapathError::map("LANDINGS", "listed"))
    }

    /// Landing of a carry id.
    pub(crate) fn landing(&self, carry_id: u32) -> Result<Option<Landing>, DatapathError> {
        let landing = found(self.landings.get(&carry_id, 0)).map_err(DatapathError::map("LANDINGS", "read"))?;
        Ok(landing.map(|landing| landing.0))
    }

    /// Gives a carry id its landing.
    pub(crate) fn insert_landing(&mut self, carry_id: u32, landing: Landing) -> Result<(), DatapathError> {
        self.landings.insert(carry_id, LandingValue(landing), 0).map_err(DatapathError::map("LANDINGS", "written"))
    }

    /// From now on these markers of a peer are awaited. Awaited already: what came of them stays.
    pub(crate) fn await_markers(
        &mut self,
        key: MarkerKey,
        tags: [u64; throughline_abi::MARKERS as usize],
    ) -> Result<(), DatapathError> {
        let awaited = AwaitedValue(AwaitedMarkers { seen: 0, tags });
        let inserted = self.awaited.insert(MarkerKeyValue(key), awaited, NEW_ONLY);
        kept(inserted).map_err(DatapathError::map("AWAITED", "written"))
    }

    /// Removes a landing and the markers awaited there; none is no error.
    pub(crate) fn remove_landing(&mut self, carry_id: u32) -> Result<(), DatapathError> {
        gone(self.landings.remove(&carry_id)).map_err(DatapathError::map("LANDINGS", "written"))?;
        let keys: Vec<MarkerKeyValue> =
            self.awaited.keys().collect::<Result<_, _>>().map_err(DatapathError::map("AWAITED", "listed"))?;
        for key in keys.into_iter().filter(|key| key.0.carry_id == carry_id) {
            gone(self.awaited.remove(&key)).map_err(DatapathError::map("AWAITED", "written"))?;
        }
        Ok(())
    }

    /// Gives a sender its lane at a port's gate.
    pub(crate) fn insert_sender(&mut self, slot: u32, mac: [u8; 6], lane: u32) -> Result<(), DatapathError> {
        let key = SenderKeyValue(SenderKey { slot, mac, reserved: [0; 2] });
        self.senders.insert(key, lane, 0).map_err(DatapathError::map("SENDERS", "written"))
    }

    /// Takes a sender's lane at a port's gate; none is no error.
    pub(crate) fn remove_sender(&mut self, slot: u32, mac: [u8; 6]) -> Result<(), DatapathError> {
        let key = SenderKeyValue(SenderKey { slot, mac, reserved: [0; 2] });
        gone(self.senders.remove(&key)).map_err(DatapathError::map("SENDERS", "written"))
    }

    fn remove_senders(&mut self, slot: u32) -> Result<(), DatapathError> {
        let keys: Vec<SenderKeyValue> =
            self.senders.keys().collect::<Result<_, _>>().map_err(DatapathError::map("SENDERS", "listed"))?;
        keys.into_iter().filter(|key| key.0.slot == slot).try_for_each(|key| self.remove_sender(slot, key.0.mac))
    }

    /// Bits of the markers a peer's frames brought.
    pub(crate) fn markers_seen(&self, key: MarkerKey) -> Result<u64, DatapathError> {
        found(self.awaited.get(&MarkerKeyValue(key), 0))
            .map(|awaited| awaited.map_or(0, |awaited| awaited.0.seen))
            .map_err(DatapathError::map("AWAITED", "read"))
    }

    /// What came to the carry tunnel and belongs to no move.
    pub(crate) fn strays(&self) -> Result<Strays, DatapathError> {
        let count = |kind| {
            let by_processor = self.strays.get(&kind, 0).map_err(DatapathError::map("STRAYS", "read"))?;
            Ok::<u64, DatapathError>(by_processor.iter().sum())
        };
        Ok(Strays { without_key: count(stray::NO_KEY)?, unknown_id: count(stray::UNKNOWN_ID)? })
    }
}

/// Frames that came to the host's carry tunnel and belong to no move: counts that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strays {
    /// Without a tunnel key over IPv4.
    pub without_key: u64,
    /// Under a carry id that nothing lands under here: forged, or of a move that is over.
    pub unknown_id: u64,
}

type MapResult<T> = Result<T, aya::maps::MapError>;

/// An absent key is an answer.
fn found<T>(result: MapResult<T>) -> MapResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(aya::maps::MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Inserting what is there already succeeds, and leaves it as it is.
fn kept(result: MapResult<()>) -> MapResult<()> {
    match result {
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(())
        }
        other => other,
    }
}

/// Removing what is not there succeeds.
fn gone(result: MapResult<()>) -> MapResult<()> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
