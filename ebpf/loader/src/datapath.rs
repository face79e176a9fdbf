//! The programs and maps of one host, loaded once.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{Ebpf, EbpfLoader};
use throughline_abi::PortState;

use crate::{
    DatapathError, OBJECT,
    attach::{AttachVia, Attacher, Attachment, Program},
    lanes,
    maps::{self, Maps, Pins},
    port::{self, PortConfig, PortHandle},
    words::{Pages, Words},
};

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A directory on a bpffs, made if need be. With it, maps and links outlive the process, so that an agent killed in
    /// mid-move finds its ports as it left them; without it, everything ends with the process.
    pub pin_dir: Option<PathBuf>,
    /// How to attach; `None`: the best the kernel has.
    pub attach: Option<AttachVia>,
}

/// A host's loaded programs and maps. Cheap to clone; every clone is the same datapath.
#[derive(Clone)]
pub struct Datapath {
    pub(crate) kernel: Arc<Kernel>,
}

/// What all handles share.
pub(crate) struct Kernel {
    ebpf: Mutex<Ebpf>,
    maps: Mutex<Maps>,
    pages: Pages,
    attacher: Attacher,
    /// `land`, by carry device.
    pub(crate) landings: Mutex<HashMap<u32, Attachment>>,
}

/// A panic while a lock was held leaves no half-made state behind: every kernel object is whole after each call.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernel {
    pub(crate) fn maps(&self) -> MutexGuard<'_, Maps> {
        lock(&self.maps)
    }

    pub(crate) fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        lock(&self.ebpf)
    }

    pub(crate) fn words(&self, slot: u32) -> &Words {
        self.pages.slot(slot)
    }

    pub(crate) fn attach(&self, program: Program, ifindex: u32) -> Result<Attachment, DatapathError> {
        self.attacher.attach(&mut self.ebpf(), program, ifindex)
    }

    pub(crate) fn adopt(&self, program: Program, ifindex: u32) -> Result<Attachment, DatapathError> {
        self.attacher.adopt(&mut self.ebpf(), program, ifindex)
    }

    pub(crate) fn left(&self, program: Program, ifindex: u32) -> Result<Option<Attachment>, DatapathError> {
        self.attacher.left(program, ifindex)
    }
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath").field("attacher", &self.kernel.attacher).finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the programs and has the kernel verify them; [`Options::pin_dir`] as given, the rest by default.
    ///
    /// # Errors
    /// [`DatapathError::Load`] or [`DatapathError::Verify`] if the kernel refuses them, [`DatapathError::PinDirectory`] and
    /// [`DatapathError::Layout`] if the directory of pins is unusable.
    pub fn load(pin_dir: Option<&Path>) -> Result<Self, DatapathError> {
        Self::load_with(&Options { pin_dir: pin_dir.map(Path::to_owned), ..Options::default() })
    }

    /// As [`Datapath::load`], with every option.
    ///
    /// # Errors
    /// Those of [`Datapath::load`].
    pub fn load_with(options: &Options) -> Result<Self, DatapathError> {
        let pins = options.pin_dir.as_deref().map(Pins::create).transpose()?;
        let mut loader = EbpfLoader::new();
        if let Some(pins) = &pins {
            for name in maps::NAMES {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut ebpf = loader.load(OBJECT)?;
        // Maps before programs: pins of another layout are told as such, not as the verifier sees them.
        let pages = maps::take_ports(&mut ebpf, pins.as_ref())?;
        let maps = Maps::take(&mut ebpf, pins.as_ref())?;
        for program in Program::ALL {
            let loaded = program.of(&mut ebpf)?.load();
            loaded.map_err(|source| DatapathError::Verify { program: program.name(), source })?;
        }
        lanes::load(&mut ebpf)?;
        let via = options.attach.unwrap_or_else(AttachVia::detect);
        Ok(Self {
            kernel: Arc::new(Kernel {
                ebpf: Mutex::new(ebpf),
                maps: Mutex::new(maps),
                pages,
                attacher: Attacher { via, pins },
                landings: Mutex::default(),
            }),
        })
    }

    /// Puts a port on the move: a slot, its words, `steer` on the tap and `refill` on the hold. Takes some 40 ms; nothing
    /// of it is left after an error.
    ///
    /// # Errors
    /// [`DatapathError::AlreadyOpen`], [`DatapathError::NoSlot`], [`DatapathError::NoInterface`], or the kernel's refusal.
    pub fn open_port(&self, config: &PortConfig) -> Result<PortHandle, DatapathError> {
        let slot = {
            // One lock over choosing and taking, or two ports might get one slot.
            let mut maps = self.kernel.maps();
            if maps.slot_of_tap(config.tap_ifindex)?.is_some() {
                return Err(DatapathError::AlreadyOpen { ifindex: config.tap_ifindex });
            }
            if maps.slot_of_hold(config.hold_ifindex)?.is_some() {
                return Err(DatapathError::AlreadyOpen { ifindex: config.hold_ifindex });
            }
            let slot = maps.free_slot()?;
            self.kernel.words(slot).write(&config.state());
            if let Err(error) = maps.insert_port(slot, config.tap_ifindex, config.hold_ifindex) {
                maps.remove_port(slot, config.tap_ifindex, config.hold_ifindex);
                return Err(error);
            }
            slot
        };
        PortHandle::attach(&self.kernel, slot, port::Origin::Opened)
    }

    /// Takes back a port that an earlier process left on the move. Its mode, direction and counters are as they were, its
    /// programs are replaced by this process's without a gap.
    ///
    /// # Errors
    /// [`DatapathError::NotOpen`] if there is none on that tap, [`DatapathError::NoInterface`] if its devices are gone
    /// (then [`Datapath::discard_port`] is what is left to do), or the kernel's refusal.
    pub fn adopt_port(&self, tap_ifindex: u32) -> Result<PortHandle, DatapathError> {
        let slot = self.slot_of(tap_ifindex)?;
        PortHandle::attach(&self.kernel, slot, port::Origin::Adopted)
    }

    /// Taps of all ports on the move, in ascending order: after a restart, those to adopt or discard.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn leftover_ports(&self) -> Result<Vec<u32>, DatapathError> {
        let mut taps: Vec<u32> = self.kernel.maps().taps()?.into_iter().map(|(tap, _)| tap).collect();
        taps.sort_unstable();
        Ok(taps)
    }

    /// Removes every trace of a port that an earlier process left on the move, without adopting it; its last words.
    ///
    /// # Errors
    /// [`DatapathError::NotOpen`] if there is none on that tap, [`DatapathError::Teardown`] with all that failed.
    pub fn discard_port(&self, tap_ifindex: u32) -> Result<PortState, DatapathError> {
        let slot = self.slot_of(tap_ifindex)?;
        let last = self.kernel.words(slot).snapshot();
        let mut errors = Vec::new();
        let mut left = Vec::new();
        for (program, ifindex) in [(Program::Steer, tap_ifindex), (Program::Refill, last.hold)] {
            match self.kernel.left(program, ifindex) {
                Ok(attachment) => left.extend(attachment),
                Err(error) => errors.push(error),
            }
        }
        errors.extend(port::detach_all(&mut left));
        port::free(&self.kernel, slot, errors).map(|()| last)
    }

    fn slot_of(&self, tap_ifindex: u32) -> Result<u32, DatapathError> {
        let slot = self.kernel.maps().slot_of_tap(tap_ifindex)?;
        slot.ok_or(DatapathError::NotOpen { ifindex: tap_ifindex })
    }
}
