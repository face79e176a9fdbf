//! A guest's kernel and initial RAM disk: opened by the agent, read by QEMU from the descriptor.
//!
//! QEMU's user needs no way to the path, and the path is looked up once. Because the agent may read everything, and a guest sees
//! what it boots, only what everybody may read is given to one: not the host's keys and passwords, whoever asks.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Component, Path},
};

use throughline_cutover::{Boot, GuestName};

use crate::HypervisorError;

/// May be read by others than owner and group.
const BY_ALL: u32 = 0o004;

/// What a guest boots, open.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) kernel: File,
    pub(crate) initrd: Option<File>,
}

impl Images {
    /// Opens both.
    pub(crate) fn open(guest: &GuestName, boot: &Boot) -> Result<Self, HypervisorError> {
        let open = |path: &str| {
            open_public(Path::new(path)).map_err(|why| HypervisorError::Image {
                guest: guest.clone(),
                path: path.to_owned(),
                why: why.to_string(),
            })
        };
        let initrd = if boot.initrd.is_empty() { None } else { Some(open(&boot.initrd)?) };
        Ok(Self { kernel: open(&boot.kernel)?, initrd })
    }
}

/// Opens a file that an operator names and a guest sees: by a plain path, and readable by everybody.
///
/// # Errors
/// What is wrong with it, in words for the operator.
pub fn open_public(path: &Path) -> io::Result<File> {
    let leads_down = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !leads_down {
        return Err(io::Error::other("give an absolute path without `..`"));
    }
    // Looked at before it is opened: to open a device may do something.
    let found = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let metadata = found.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if metadata.mode() & BY_ALL == 0 {
        return Err(io::Error::other(
            "not everybody may read it, so no guest gets it; if it is no secret, chmod o+r it",
        ));
    }
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_boots_files_that_are_no_secret_by_paths_that_are_plain() {
        assert!(open_public(Path::new("/etc/os-release")).is_ok(), "a link to a public file");
        for (path, why) in [
            ("/etc/shadow", "not everybody may read"),
            ("/etc/../etc/os-release", "without `..`"),
            ("etc/os-release", "absolute"),
            ("", "absolute"),
            ("/dev/zero", "not a file"),
            ("/etc", "not a file"),
            ("/nonexistent/vmlinuz", "No such file"),
        ] {
            let error = open_public(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
    }
}
