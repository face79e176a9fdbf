//! Programs on interfaces: tcx links where the kernel has them (6.6), filters under clsact below.

use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{
        Link, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
    util::KernelVersion,
};
use nix::net::if_::if_indextoname;

use crate::{DatapathError, maps::Pins};

/// How programs are put on interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachVia {
    /// By tcx link: Linux 6.6 and later. A pinned link outlives the process and is replaced without a gap.
    Tcx,
    /// By a filter under the clsact qdisc, with a fixed priority and handle so that a restarted agent knows it again.
    Clsact,
}

impl AttachVia {
    /// The best this kernel has.
    pub fn detect() -> Self {
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(6, 6, 0) => Self::Tcx,
            _ => Self::Clsact,
        }
    }
}

/// Priority and handle of our filters under clsact: first of all, and the same on every interface.
const FILTER_PRIORITY: u16 = 1;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 0x544c);

/// How long a link that was dropped may still be there.
const DROPPED: Duration = Duration::from_millis(200);
/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A program and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Steer,
    Refill,
    Land,
}

impl Program {
    pub(crate) const ALL: [Self; 3] = [Self::Steer, Self::Refill, Self::Land];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Steer => "steer",
            Self::Refill => "refill",
            Self::Land => "land",
        }
    }

    const fn hook(self) -> TcAttachType {
        match self {
            Self::Steer => TcAttachType::Egress,
            Self::Refill | Self::Land => TcAttachType::Ingress,
        }
    }

    /// The program in a loaded object.
    pub(crate) fn of(self, ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, DatapathError> {
        let name = self.name();
        let program = ebpf.program_mut(name).ok_or(DatapathError::Object { name })?;
        program.try_into().map_err(|source| DatapathError::Verify { program: name, source })
    }
}

/// A program on an interface.
pub(crate) struct Attachment {
    program: Program,
    ifindex: u32,
    /// `None` once detached.
    link: Option<AttachedLink>,
}

enum AttachedLink {
    /// Ends with the process, or when detached.
    Mortal(SchedClassifierLink),
    /// Ends when its pin is removed.
    Pinned { link: PinnedLink, path: PathBuf },
    /// A filter that has to outlive the process: nothing but `detach` ends it.
    Filter(SchedClassifierLink),
}

/// How attachments are made here.
#[derive(Debug, Clone)]
pub(crate) struct Attacher {
    pub(crate) via: AttachVia,
    pub(crate) pins: Option<Pins>,
}

impl Attacher {
    /// Puts `program` on an interface, before any other program there: what waits in line must not have been seen,
    /// counted or changed by others, who will see it when it comes out.
    ///
    /// Takes about 18 ms by tcx link, so it belongs before the pause.
    pub(crate) fn attach(&self, ebpf: &mut Ebpf, program: Program, ifindex: u32) -> Result<Attachment, DatapathError> {
        let name = program.name();
        let interface =
            name_of(ifindex).map_err(|source| DatapathError::NoInterface { ifindex, program: name, source })?;
        if self.via == AttachVia::Clsact {
            add_clsact(&interface).map_err(|source| DatapathError::Attach { program: name, ifindex, source })?;
        }
        let classifier = program.of(ebpf)?;
        let began = Instant::now();
        let link = loop {
            match classifier.attach_with_options(&interface, program.hook(), self.options()) {
                // One that was just dropped lives on while a child process that was forked meanwhile has not exec'd yet.
                Err(error) if is_still_there(&error) && began.elapsed() < DROPPED => thread::sleep(LOOK_AGAIN),
                attached => break attached.and_then(|id| classifier.take_link(id)),
            }
        };
        let link = link.map_err(|source| DatapathError::Attach { program: name, ifindex, source })?;
        self.keep(link, program, ifindex)
    }

    fn options(&self) -> TcAttachOptions {
        match self.via {
            AttachVia::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            AttachVia::Clsact => TcAttachOptions::Netlink(NlOptions {
                priority: FILTER_PRIORITY,
                handle: FILTER_HANDLE,
                ..NlOptions::default()
            }),
        }
    }

    /// Takes back what an earlier process left on an interface and puts this process's program in its place, without a
    /// moment in which there is none; attaches anew if nothing was left.
    pub(crate) fn adopt(&self, ebpf: &mut Ebpf, program: Program, ifindex: u32) -> Result<Attachment, DatapathError> {
        match (self.via, &self.pins) {
            (AttachVia::Tcx, Some(pins)) => {
                let path = pins.link(ifindex, program.name());
                if !path.exists() {
                    return self.attach(ebpf, program, ifindex);
                }
                let left = SchedClassifierLink::try_from(FdLink::from(open(&path)?))
                    .map_err(|source| pinned_error(&path, "recognised", source))?;
                // Two descriptors of one link: that of the replacement may go, the pin keeps the link.
                replace(ebpf, program, left).map_err(|source| DatapathError::Attach {
                    program: program.name(),
                    ifindex,
                    source,
                })?;
                let link = open(&path)?;
                Ok(Attachment { program, ifindex, link: Some(AttachedLink::Pinned { link, path }) })
            }
            (AttachVia::Clsact, Some(_)) => {
                let Ok(left) = filter(program, ifindex) else { return self.attach(ebpf, program, ifindex) };
                match replace(ebpf, program, left) {
                    Ok(link) => Ok(Attachment { program, ifindex, link: Some(AttachedLink::Filter(link)) }),
                    // No such filter: it was never attached, or went with an interface that had this index before.
                    Err(_) => self.attach(ebpf, program, ifindex),
                }
            }
            (_, None) => self.attach(ebpf, program, ifindex),
        }
    }

    /// What an earlier process left on an interface, if it left anything: to be detached.
    pub(crate) fn left(&self, program: Program, ifindex: u32) -> Result<Option<Attachment>, DatapathError> {
        match (self.via, &self.pins) {
            (AttachVia::Tcx, Some(pins)) => {
                let path = pins.link(ifindex, program.name());
                if !path.exists() {
                    return Ok(None);
                }
                let link = open(&path)?;
                Ok(Some(Attachment { program, ifindex, link: Some(AttachedLink::Pinned { link, path }) }))
            }
            (AttachVia::Clsact, Some(_)) => {
                let link = filter(program, ifindex).ok().map(AttachedLink::Filter);
                Ok(link.map(|link| Attachment { program, ifindex, link: Some(link) }))
            }
            (_, None) => Ok(None),
        }
    }

    fn keep(&self, link: SchedClassifierLink, program: Program, ifindex: u32) -> Result<Attachment, DatapathError> {
        let link = match (self.via, &self.pins) {
            (_, None) => AttachedLink::Mortal(link),
            (AttachVia::Clsact, Some(_)) => AttachedLink::Filter(link),
            (AttachVia::Tcx, Some(pins)) => {
                let path = pins.link(ifindex, program.name());
                // A pin without a port: left by a process that died while it closed one.
                remove_pin(&path)?;
                let link = FdLink::try_from(link).map_err(|source| pinned_error(&path, "taken", source))?;
                match link.pin(&path) {
                    Ok(link) => AttachedLink::Pinned { link, path },
                    Err(source) => return Err(DatapathError::Pin { path, source }),
                }
            }
        };
        Ok(Attachment { program, ifindex, link: Some(link) })
    }
}

impl Attachment {
    /// Takes the program off the interface; a second time, and after the interface went, is no error.
    pub(crate) fn detach(&mut self) -> Result<(), DatapathError> {
        let gone = name_of(self.ifindex).is_err();
        let result = match self.link.take() {
            None => Ok(()),
            // Links end with their last reference, which is the descriptor dropped here.
            Some(AttachedLink::Pinned { link: _link, path }) => return remove_pin(&path),
            Some(AttachedLink::Mortal(link) | AttachedLink::Filter(link)) => link.detach(),
        };
        match result {
            Err(source) if !gone => {
                Err(DatapathError::Detach { program: self.program.name(), ifindex: self.ifindex, source })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(AttachedLink::Filter(link)) = self.link.take() {
            // Dropping it would detach it, and this one is to stay for the next process.
            std::mem::forget(link);
        }
    }
}

fn is_still_there(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::AlreadyExists)
}

/// Removes a pin whatever it leads to; none is no error.
fn remove_pin(path: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pinned_error(path, "removed", error)),
        _ => Ok(()),
    }
}

fn open(path: &Path) -> Result<PinnedLink, DatapathError> {
    PinnedLink::from_pin(path).map_err(|source| pinned_error(path, "opened", source))
}

/// Puts this process's program in the place of another's, in one step.
fn replace(ebpf: &mut Ebpf, program: Program, link: SchedClassifierLink) -> Result<SchedClassifierLink, ProgramError> {
    let classifier: &mut SchedClassifier =
        ebpf.program_mut(program.name()).ok_or(ProgramError::NotLoaded)?.try_into()?;
    let id = classifier.attach_to_link(link)?;
    classifier.take_link(id)
}

/// Our filter on an interface, if it is there.
fn filter(program: Program, ifindex: u32) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(&name_of(ifindex)?, program.hook(), FILTER_PRIORITY, FILTER_HANDLE, None)
}

/// Name of an interface in the calling thread's network namespace.
fn name_of(ifindex: u32) -> io::Result<String> {
    let name = if_indextoname(ifindex)?;
    // nix 0.31 takes libc's null pointer for success: no such interface is an empty name.
    if name.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    Ok(name.to_string_lossy().into_owned())
}

fn add_clsact(interface: &str) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(interface) {
        Err(tc::TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(tc::TcError::AlreadyAttached) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn pinned_error(
    path: &Path,
    verb: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> DatapathError {
    DatapathError::PinnedLink { path: path.to_owned(), verb, source: source.into() }
}
