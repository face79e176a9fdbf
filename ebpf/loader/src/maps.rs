//! The maps, typed, and the directory that keeps them over an agent's death.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData},
};
use throughline_abi::{Landing, MarkerKey, PortState, SLOTS, SenderKey};

use crate::{DatapathError, words::Pages};

/// Names of all maps, as in `ebpf/programs`.
pub(crate) const NAMES: [&str; 6] = ["PORTS", "TAPS", "HOLDS", "LANDINGS", "MARKERS_SEEN", "SENDERS"];

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
    markers_seen: HashMap<MapData, MarkerKeyValue, u64>,
    senders: HashMap<MapData, SenderKeyValue, u32>,
}

/// Takes a map out of a freshly loaded object. A pinned one is the older agent's, so its layout is looked at first.
fn take(ebpf: &mut Ebpf, name: &'static str, layout: Layout, pins: Option<&Pins>) -> Result<Map, DatapathError> {
    let map = ebpf.take_map(name).ok_or(DatapathError::Object { name })?;
    let (Map::Array(data) | Map::HashMap(data)) = &map else { return Err(DatapathError::Object { name }) };
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
            markers_seen: typed(ebpf, "MARKERS_SEEN", pins)?,
            senders: typed(ebpf, "SENDERS", pins)?,
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

    /// Removes a landing and the markers seen there; none is no error.
    pub(crate) fn remove_landing(&mut self, carry_id: u32) -> Result<(), DatapathError> {
        gone(self.landings.remove(&carry_id)).map_err(DatapathError::map("LANDINGS", "written"))?;
        let keys: Vec<MarkerKeyValue> =
            self.markers_seen.keys().collect::<Result<_, _>>().map_err(DatapathError::map("MARKERS_SEEN", "listed"))?;
        for key in keys.into_iter().filter(|key| key.0.carry_id == carry_id) {
            gone(self.markers_seen.remove(&key)).map_err(DatapathError::map("MARKERS_SEEN", "written"))?;
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
        found(self.markers_seen.get(&MarkerKeyValue(key), 0))
            .map(Option::unwrap_or_default)
            .map_err(DatapathError::map("MARKERS_SEEN", "read"))
    }
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

/// Removing what is not there succeeds.
fn gone(result: MapResult<()>) -> MapResult<()> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
