//! What can go wrong between the agent and the kernel's programs.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};

/// Why the datapath could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel refused the object: too old, a lacking privilege (CAP_BPF and CAP_NET_ADMIN), or the verifier.
    #[error("the kernel refused Throughline's tc programs; no port can be moved on this host until it takes them")]
    Load(#[from] EbpfError),
    /// The verifier refused one program.
    #[error("the kernel refused the program `{program}`; no port can be moved on this host until it takes it")]
    Verify {
        /// Its name.
        program: &'static str,
        /// The verifier's words.
        #[source]
        source: ProgramError,
    },
    /// The embedded object lacks something: it was built from other sources.
    #[error("the embedded object has no `{name}`; build the agent again")]
    Object {
        /// Program or map.
        name: &'static str,
    },
    /// A map operation failed.
    #[error("map `{map}` could not be {verb}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What was tried: "read", "written", ...
        verb: &'static str,
        /// The kernel's answer.
        #[source]
        source: MapError,
    },
    /// A pinned map has another layout: left by an agent of another version.
    #[error(
        "the pinned map {} has another layout than this agent's: finish or abort the moves of the older agent, then remove \
         the directory", path.display()
    )]
    Layout {
        /// Where it is pinned.
        path: PathBuf,
    },
    /// The port map's pages could not be mapped.
    #[error("the port map's pages could not be mapped")]
    Mmap(#[source] io::Error),
    /// The queues of a hold or tap could not be given their lanes or flows.
    #[error("the queues could not be given their lanes or flows; is it a tap with several queues?")]
    Queues {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The directory of pins could not be used.
    #[error("{} cannot hold pins; it must be a directory on a mounted bpffs, names without dots", path.display())]
    PinDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A link could not be pinned, found or unpinned.
    #[error("the link {} could not be pinned", path.display())]
    Pin {
        /// The link's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PinError,
    },
    /// A pinned link could not be taken back or removed.
    #[error("the pinned link {} could not be {verb}", path.display())]
    PinnedLink {
        /// The link's file.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No such interface in the calling thread's network namespace.
    #[error("there is no interface {ifindex} in this network namespace to attach `{program}` to")]
    NoInterface {
        /// The index.
        ifindex: u32,
        /// What was to be attached.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached.
    #[error("`{program}` could not be attached to interface {ifindex}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// The interface.
        ifindex: u32,
        /// The kernel's answer.
        #[source]
        source: ProgramError,
    },
    /// A program could not be detached.
    #[error("`{program}` could not be detached from interface {ifindex}; it goes with the interface")]
    Detach {
        /// Its name.
        program: &'static str,
        /// The interface.
        ifindex: u32,
        /// The kernel's answer.
        #[source]
        source: ProgramError,
    },
    /// Every slot is taken.
    #[error("{} ports are on the move on this host already; let one settle first", throughline_abi::SLOTS)]
    NoSlot,
    /// The tap or the hold already belongs to a port on the move.
    #[error("interface {ifindex} already belongs to a port on the move; adopt or close that one first")]
    AlreadyOpen {
        /// The interface.
        ifindex: u32,
    },
    /// The tap belongs to no port on the move.
    #[error("tap {ifindex} belongs to no port on the move")]
    NotOpen {
        /// The tap.
        ifindex: u32,
    },
    /// The carry id is in use.
    #[error("carry id {carry_id} already has a landing; two moves must not share one")]
    LandingTaken {
        /// The carry id.
        carry_id: u32,
    },
    /// Teardown went on to its end, but not all of it worked.
    #[error("not everything of tap {ifindex}'s move could be removed: {}", list(errors))]
    Teardown {
        /// The tap.
        ifindex: u32,
        /// Everything that failed.
        errors: Vec<DatapathError>,
    },
}

impl DatapathError {
    /// For `map_err` on a map operation.
    pub(crate) fn map(map: &'static str, verb: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { map, verb, source }
    }
}

fn list(errors: &[DatapathError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
