//! QEMU's programs for image formats: qemu-img and qemu-io; and qemu-nbd ([`server`]).
//!
//! They read what operators name and what guests wrote, and so are kept as a guest's QEMU is: a user that is not root, no capability, no
//! network. They open no path but their own descriptors', which the agent opened: the file they write to is theirs while they
//! run, by its owner. Formats are always said, never guessed, and nothing that an image names is opened.

mod process;
mod server;
mod user;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::{
            fs::{MetadataExt as _, fchown},
            net::UnixStream,
        },
    },
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use serde::Deserialize;
use serde_json::json;
use throughline_cutover::DiskFormat;

use self::process::run;
use super::Extent;

pub use self::{server::PointServer, user::ToolUser};

const IMG: &str = "qemu-img";
const IO: &str = "qemu-io";

/// How long a tool may take for what is not copying. It takes some 0.05 s, on a busy disk more.
const DEADLINE: Duration = Duration::from_secs(30);
/// And to go back to a snapshot or forget one: it counts anew how often each piece of the file is used.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(120);
/// What copying is allowed besides: at least this many bytes a second.
const SLOWEST_COPY: u64 = 8 << 20;
/// Most commands that qemu-io is given at a time: an argument list has an end.
const COMMANDS: usize = 4096;

/// Why a tool did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Its file could not be given to it, or taken back.
    #[error("cannot give QEMU's tools its file: {0}")]
    Lend(#[source] io::Error),
    /// It could not be started.
    #[error("cannot start {program}: {source}; is package qemu-utils installed?")]
    Spawn {
        /// Program.
        program: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It took too long, and was ended.
    #[error("{program} was not done after {after:?}, and was ended; is the disk directory's file system very slow?")]
    Late {
        /// Program.
        program: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// It failed.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// Program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its words.
        said: String,
    },
    /// It ended before it served.
    #[error("{program} did not begin to serve: {said}")]
    NotUp {
        /// Program.
        program: &'static str,
        /// Its words.
        said: String,
    },
    /// It said something else than this version understands.
    #[error("cannot understand what {program} says: {said:?}")]
    Answer {
        /// Program.
        program: &'static str,
        /// Its words.
        said: String,
    },
}

/// What a qcow2 file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A guest's disk.
    Disk,
    /// A chart: nothing but its bitmap, so that tables are to be few.
    Chart,
}

/// The tools, run as a user that is not root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tools {
    user: ToolUser,
}

impl Tools {
    pub(super) fn new(user: ToolUser) -> Self {
        Self { user }
    }

    /// Makes `file` a blank qcow2 of `size` bytes.
    pub(super) fn create(&self, file: &File, size: u64, form: Form) -> Result<(), ToolError> {
        let options = match form {
            Form::Disk => "compat=1.1",
            Form::Chart => "compat=1.1,cluster_size=2M",
        };
        let (path, size) = (path(file), size.to_string());
        self.write(IMG, &["create", "-q", "-f", "qcow2", "-o", options, &path, &size], file, DEADLINE)
    }

    /// Makes `file` a blank qcow2 of `size` bytes over a qcow2 of that name, which nobody opens.
    pub(super) fn create_over(&self, file: &File, size: u64, image: &str) -> Result<(), ToolError> {
        let (path, size) = (path(file), size.to_string());
        let over = ["-u", "-F", "qcow2", "-b", image, "-o", "compat=1.1"];
        let arguments = [&["create", "-q", "-f", "qcow2"][..], &over, &[&path, &size]].concat();
        self.write(IMG, &arguments, file, DEADLINE)
    }

    /// Makes a qcow2 longer.
    pub(super) fn resize(&self, file: &File, size: u64) -> Result<(), ToolError> {
        let (path, size) = (path(file), size.to_string());
        self.write(IMG, &["resize", "-q", "-f", "qcow2", &path, &size], file, DEADLINE)
    }

    /// Adds to a qcow2 an enabled bitmap that stays in it, a bit for `grain` bytes.
    pub(super) fn add_bitmap(&self, file: &File, name: &str, grain: u64) -> Result<(), ToolError> {
        let (path, grain) = (path(file), grain.to_string());
        self.write(IMG, &["bitmap", "--add", "-f", "qcow2", "-g", &grain, &path, name], file, DEADLINE)
    }

    /// Writes zeroes to a qcow2 that has nothing else; what for is its bitmap. It is not on disk then.
    pub(super) fn write_zeroes(&self, file: &File, extents: &[Extent]) -> Result<(), ToolError> {
        let path = path(file);
        for some in extents.chunks(COMMANDS) {
            let commands: Vec<_> =
                some.iter().map(|it| format!("write -q -z {} {}", it.start, it.end - it.start)).collect();
            let mut arguments = vec!["-f", "qcow2", "-t", "unsafe"];
            arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
            arguments.push(&path);
            self.write(IO, &arguments, file, DEADLINE)?;
        }
        Ok(())
    }

    /// Copies an image of that format into `file`, some `bytes`.
    pub(super) fn convert(&self, image: &File, file: &File, format: DiskFormat, bytes: u64) -> Result<(), ToolError> {
        let (from, to) = (alone(image, format), path(file));
        let deadline = DEADLINE + Duration::from_secs(bytes / SLOWEST_COPY);
        let arguments = ["convert", "-q", "-O", format.as_str(), &from, &to];
        self.lend(file, || run(self.user, IMG, &arguments, &[image.as_fd(), file.as_fd()], deadline).map(drop))
    }

    /// Bytes that a copy of a qcow2 image takes.
    pub(super) fn measure(&self, image: &File) -> Result<u64, ToolError> {
        #[derive(Deserialize)]
        struct Measured {
            required: u64,
        }
        let from = alone(image, DiskFormat::Qcow2);
        let arguments = ["measure", "--output=json", "-O", "qcow2", &from];
        let said = run(self.user, IMG, &arguments, &[image.as_fd()], DEADLINE)?;
        let measured: Result<Measured, _> = serde_json::from_str(&said);
        measured.map(|it| it.required).map_err(|_| ToolError::Answer { program: IMG, said })
    }

    /// Makes a qcow2 what it was at one of its internal snapshots, which stay.
    pub(super) fn go_back(&self, file: &File, snapshot: &str) -> Result<(), ToolError> {
        let file_name = alone(file, DiskFormat::Qcow2);
        self.write(IMG, &["snapshot", "-q", "-a", snapshot, &file_name], file, SNAPSHOT_DEADLINE)
    }

    /// Serves a qcow2 that another may write, as it was at one of its internal snapshots, for as long as there is that snapshot. See
    /// [`server::serve`].
    pub(super) fn serve(
        &self,
        file: &File,
        snapshot: &str,
        socket: &Path,
    ) -> Result<(PointServer, UnixStream), ToolError> {
        self.lend(file, || server::serve(self.user, file, snapshot, socket))
    }

    /// Removes an internal snapshot of a qcow2.
    pub(super) fn forget_point(&self, file: &File, snapshot: &str) -> Result<(), ToolError> {
        let file_name = alone(file, DiskFormat::Qcow2);
        self.write(IMG, &["snapshot", "-q", "-d", snapshot, &file_name], file, SNAPSHOT_DEADLINE)
    }

    /// Names of the internal snapshots of a qcow2.
    pub(super) fn points(&self, file: &File) -> Result<Vec<String>, ToolError> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(default)]
            snapshots: Vec<Snapshot>,
        }
        #[derive(Deserialize)]
        struct Snapshot {
            name: String,
        }
        let arguments = ["info", "--output=json", &alone(file, DiskFormat::Qcow2)];
        let said = self.lend(file, || run(self.user, IMG, &arguments, &[file.as_fd()], DEADLINE))?;
        let info: Result<Info, _> = serde_json::from_str(&said);
        let named = |info: Info| info.snapshots.into_iter().map(|snapshot| snapshot.name).collect();
        info.map(named).map_err(|_| ToolError::Answer { program: IMG, said })
    }

    fn write(
        &self,
        program: &'static str,
        arguments: &[&str],
        file: &File,
        deadline: Duration,
    ) -> Result<(), ToolError> {
        self.lend(file, || run(self.user, program, arguments, &[file.as_fd()], deadline).map(drop))
    }

    /// Gives `file` to the tools' user while `work` is done: it is opened anew by its descriptor, as whoever owns it may.
    fn lend<T>(&self, file: &File, work: impl FnOnce() -> Result<T, ToolError>) -> Result<T, ToolError> {
        let before = file.metadata().map_err(ToolError::Lend)?;
        fchown(file, Some(self.user.uid.as_raw()), Some(self.user.gid.as_raw())).map_err(ToolError::Lend)?;
        let done = work();
        fchown(file, Some(before.uid()), Some(before.gid())).map_err(ToolError::Lend)?;
        done
    }
}

/// The path by which a process opens its own descriptor.
fn path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// An image as QEMU's name for one that rests on no other, whatever it says itself.
fn alone(image: &File, format: DiskFormat) -> String {
    let file = json!({ "driver": "file", "filename": path(image) });
    let name = match format {
        DiskFormat::Raw => json!({ "driver": "raw", "file": file }),
        DiskFormat::Qcow2 => json!({ "driver": "qcow2", "backing": null, "file": file }),
    };
    format!("json:{name}")
}
