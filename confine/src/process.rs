//! Giving up what a daemon does not need.

use std::{fmt, io};

use rustix::{
    fs::Mode,
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        no_new_privs, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

/// A capability a daemon keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Which: one.
    pub capability: CapabilitySet,
    /// What would not work without it.
    pub what_for: &'static str,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", Names(self.capability), self.what_for)
    }
}

/// Why a process could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// It was not given what it needs.
    #[error("this process lacks {}; start it as root, or by its systemd unit", List(missing))]
    Missing {
        /// What it lacks.
        missing: Vec<Keep>,
    },
    /// Other threads would keep what this one gives up.
    #[error("the process has {threads} threads already, and capabilities are given up by one; please report it")]
    Threads {
        /// How many.
        threads: usize,
    },
    /// The kernel refused a step.
    #[error("cannot {step}: {source}")]
    Refused {
        /// Which.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel said yes, and it is not so.
    #[error("capabilities were given up, and the kernel still says {found}; please report it")]
    Unchanged {
        /// What it says.
        found: String,
    },
}

/// What a confined process may still do. As text it is what a log says at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confined {
    kept: CapabilitySet,
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kept.is_empty() { f.write_str("none") } else { Names(self.kept).fmt(f) }
    }
}

/// Gives up every capability but `kept`, for this process and all it will start, and the ways back: no set-user-id program
/// and no file's capabilities will raise it again. What it writes from now on is for its own user alone, and it leaves no
/// core: its memory has keys. Call it while the process has one thread.
///
/// # Errors
/// [`ConfineError`]; some of it may be done by then.
pub fn confine(kept: &[Keep]) -> Result<Confined, ConfineError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(refused("count this process's threads"))?.count();
    if threads != 1 {
        return Err(ConfineError::Threads { threads });
    }
    let wanted: CapabilitySet = kept.iter().map(|keep| keep.capability).collect();
    let had = capabilities(None).map_err(refused("read capabilities"))?;
    let missing: Vec<_> = kept.iter().filter(|keep| !had.permitted.contains(keep.capability)).copied().collect();
    if !missing.is_empty() {
        return Err(ConfineError::Missing { missing });
    }

    umask(Mode::from_raw_mode(0o077));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(refused("forbid cores"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("forbid tracing"))?;
    set_no_new_privs(true).map_err(refused("forbid new privileges"))?;
    clear_ambient_capability_set().map_err(refused("clear the ambient capabilities"))?;
    // Without it the bounding set stays as it was given, and bounds nothing: there are no new privileges to bound.
    if had.effective.contains(CapabilitySet::SETPCAP) {
        bound(wanted).map_err(refused("narrow the bounding set"))?;
    }
    let sets = CapabilitySets { effective: wanted, permitted: wanted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(refused("give up capabilities"))?;
    check(sets)?;
    Ok(Confined { kept: wanted })
}

/// Takes everything but `wanted` out of the bounding set, capabilities this version has no name for included.
fn bound(wanted: CapabilitySet) -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !wanted.contains(one) => remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            // Beyond the kernel's last.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn check(sets: CapabilitySets) -> Result<(), ConfineError> {
    let now = capabilities(None).map_err(refused("read capabilities"))?;
    let barred = no_new_privs().map_err(refused("read whether new privileges are forbidden"))?;
    if now == sets && barred {
        return Ok(());
    }
    let CapabilitySets { effective, permitted, inheritable } = now;
    let [effective, permitted, inheritable] = [effective, permitted, inheritable].map(|set| set.bits());
    let found = format!(
        "effective {effective:x}, permitted {permitted:x}, inheritable {inheritable:x}, no new privileges {barred}"
    );
    Err(ConfineError::Unchanged { found })
}

fn refused<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |source| ConfineError::Refused { step, source: source.into() }
}

/// Capabilities as the kernel's manuals write them.
struct Names(CapabilitySet);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, _)) in self.0.iter_names().enumerate() {
            write!(f, "{}CAP_{name}", if index == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

struct List<'a>(&'a [Keep]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, keep) in self.0.iter().enumerate() {
            write!(f, "{}{keep}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADMIN: Keep = Keep { capability: CapabilitySet::NET_ADMIN, what_for: "to make devices" };
    const BPF: Keep = Keep { capability: CapabilitySet::BPF, what_for: "to load programs" };

    #[test]
    fn what_is_missing_is_named_with_what_it_is_for() {
        let error = ConfineError::Missing { missing: vec![ADMIN, BPF] };
        let said = error.to_string();
        assert!(said.contains("lacks CAP_NET_ADMIN (to make devices), CAP_BPF (to load programs);"), "{said}");
    }

    #[test]
    fn the_log_says_what_is_kept() {
        assert_eq!(Confined { kept: CapabilitySet::empty() }.to_string(), "none");
        assert_eq!(Confined { kept: ADMIN.capability | BPF.capability }.to_string(), "CAP_NET_ADMIN CAP_BPF");
    }

    #[test]
    fn a_process_with_threads_is_left_as_it_was() {
        // The harness has a thread of its own besides this one.
        let before = capabilities(None).unwrap();
        assert!(matches!(confine(&[]), Err(ConfineError::Threads { threads: 2.. })));
        assert_eq!((capabilities(None).unwrap(), no_new_privs().unwrap()), (before, false));
    }
}
