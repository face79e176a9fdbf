//! Files and directories for one user's eyes.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, process::geteuid};

const PRIVATE: u32 = 0o700;
const PASSAGE: u32 = 0o711;
const FILE: u32 = 0o600;
/// What group and others may do.
const OTHERS: u32 = 0o077;

/// Why a file or directory is not used. Nothing of it was read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NotPrivate {
    /// It is somebody else's.
    #[error("{} belongs to user {owner}, this process runs as {own}: give it to that user, or name another", path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// Who asks.
        own: u32,
    },
    /// Others may look into the directory.
    #[error(
        "{0} has mode {found:04o}, and others may look into it: see who could read what is there, then `chmod {mode:04o} {0}`",
        path.display()
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// Its mode.
        found: u32,
        /// The widest it may have.
        mode: u32,
    },
    /// It is not what it should be, or leads somewhere else.
    #[error("{} is a {found}, not a {wanted}: name the {wanted} itself, or take the {found} away", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// The system refused.
    #[error("{} cannot be opened: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes a directory for this process's user alone. One that is there is taken if it is that already: it is this user's, and
/// nobody else may do anything in it. A wider one is refused, not narrowed: it may be a common one, such as `/tmp`, named by
/// mistake.
///
/// # Errors
/// [`NotPrivate`].
pub fn private_dir(path: &Path) -> Result<(), NotPrivate> {
    own_dir(path, PRIVATE).map(drop)
}

/// The same, but others may pass through it to a directory in it that is theirs. They still see nothing: not what is in it, and
/// not what is in a [`private_file`] there.
///
/// # Errors
/// [`NotPrivate`].
pub fn passage_dir(path: &Path) -> Result<(), NotPrivate> {
    let directory = own_dir(path, PASSAGE)?;
    let passable = directory.set_permissions(Permissions::from_mode(PASSAGE));
    passable.map_err(|source| NotPrivate::Io { path: path.to_owned(), source })
}

/// A directory with no more than `mode`.
fn own_dir(path: &Path, mode: u32) -> Result<File, NotPrivate> {
    // Without a slash at the end, which would lead through a symbolic link.
    let path = &path.components().collect::<PathBuf>();
    let failed = |source| NotPrivate::Io { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let directory = opened.map_err(|source| blame(path, "directory", source))?;
    let metadata = directory.metadata().map_err(failed)?;
    check_owner(path, &metadata)?;
    match metadata.mode() & 0o7777 {
        found if found & OTHERS & !mode != 0 => Err(NotPrivate::Open { path: path.clone(), found, mode }),
        _ => Ok(directory),
    }
}

/// Opens a file for this process's user alone, to read and write, and makes it if it is not there. One that others may read,
/// as an older version left it, is narrowed; it stands in a [`private_dir`].
///
/// # Errors
/// [`NotPrivate`].
pub fn private_file(path: &Path) -> Result<File, NotPrivate> {
    let failed = |source| NotPrivate::Io { path: path.to_owned(), source };
    // Without waiting for a writer, should it be a pipe.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE).custom_flags(flags);
    let file = options.open(path).map_err(|source| blame(path, "file", source))?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(NotPrivate::Kind { path: path.to_owned(), found: kind(&metadata), wanted: "file" });
    }
    check_owner(path, &metadata)?;
    if metadata.mode() & OTHERS != 0 {
        file.set_permissions(Permissions::from_mode(FILE)).map_err(failed)?;
    }
    Ok(file)
}

/// A [`private_file`] to which is only ever added, wherever its end is by then.
///
/// # Errors
/// [`NotPrivate`].
pub fn private_log(path: &Path) -> Result<File, NotPrivate> {
    let file = private_file(path)?;
    let appending = rustix::fs::fcntl_setfl(&file, OFlags::APPEND);
    appending.map_err(|source| NotPrivate::Io { path: path.to_owned(), source: source.into() })?;
    Ok(file)
}

fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), NotPrivate> {
    let (owner, own) = (metadata.uid(), geteuid().as_raw());
    if owner == own { Ok(()) } else { Err(NotPrivate::Owner { path: path.to_owned(), owner, own }) }
}

/// Why it did not open: what the system says, or better what stands in the way.
fn blame(path: &Path, wanted: &'static str, source: io::Error) -> NotPrivate {
    match path.symlink_metadata() {
        Ok(metadata) if kind(&metadata) != wanted => {
            NotPrivate::Kind { path: path.to_owned(), found: kind(&metadata), wanted }
        }
        _ => NotPrivate::Io { path: path.to_owned(), source },
    }
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_symlink() => "symbolic link",
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () => "device, pipe or socket",
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{chown, symlink},
    };

    use super::*;

    /// A directory of the test's own, gone with the value.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("throughline-confine-{}-{test}", std::process::id()));
            private_dir(&path).unwrap();
            Self(path)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_made_is_for_its_user_alone() {
        let scratch = Scratch::new("made");
        let (deep, file) = (scratch.path("a/b"), scratch.path("a/b/file"));
        private_dir(&deep).unwrap();
        private_file(&file).unwrap();
        assert_eq!((mode(&scratch.path("a")), mode(&deep), mode(&file)), (0o700, 0o700, 0o600));
        private_dir(&deep).unwrap();
    }

    #[test]
    fn a_directory_others_may_look_into_is_refused_and_left_alone() {
        let scratch = Scratch::new("wide");
        for wide in [0o750, 0o701, 0o755, 0o1777] {
            chmod(&scratch.0, wide);
            let refused = private_dir(&scratch.0).unwrap_err().to_string();
            assert!(refused.contains(&format!("{wide:04o}")) && refused.contains("chmod 0700"), "{refused}");
            assert_eq!(mode(&scratch.0), wide);
        }
    }

    #[test]
    fn a_passage_lets_others_through_and_shows_them_nothing() {
        let scratch = Scratch::new("passage");
        for fine in [0o700, 0o711] {
            chmod(&scratch.0, fine);
            passage_dir(&scratch.0).unwrap();
            assert_eq!(mode(&scratch.0), 0o711);
        }
        for wide in [0o751, 0o713, 0o755] {
            chmod(&scratch.0, wide);
            assert!(passage_dir(&scratch.0).unwrap_err().to_string().contains("chmod 0711"));
            assert_eq!(mode(&scratch.0), wide);
        }
    }

    #[test]
    fn a_file_others_may_read_is_narrowed_and_keeps_what_it_holds() {
        let scratch = Scratch::new("narrow");
        let path = scratch.path("file");
        fs::write(&path, "kept").unwrap();
        chmod(&path, 0o644);
        private_file(&path).unwrap();
        assert_eq!((mode(&path), fs::read_to_string(&path).unwrap().as_str()), (0o600, "kept"));
    }

    #[test]
    fn nothing_is_opened_through_a_symbolic_link() {
        let scratch = Scratch::new("link");
        let (dir, file) = (scratch.path("dir"), scratch.path("file"));
        fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o700);
        fs::write(&file, "not ours to open").unwrap();
        chmod(&file, 0o644);
        for (target, link) in [(&dir, scratch.path("to-dir")), (&file, scratch.path("to-file"))] {
            symlink(target, &link).unwrap();
        }
        for slash in ["to-dir", "to-dir/"] {
            let refused = private_dir(&scratch.path(slash)).unwrap_err();
            assert!(matches!(refused, NotPrivate::Kind { found: "symbolic link", .. }), "{refused}");
        }
        let refused = private_file(&scratch.path("to-file")).unwrap_err();
        assert!(matches!(refused, NotPrivate::Kind { found: "symbolic link", .. }), "{refused}");
        assert_eq!(mode(&file), 0o644, "it was not touched");
        // One that leads nowhere makes nothing there.
        symlink(scratch.path("nowhere"), scratch.path("dangling")).unwrap();
        private_file(&scratch.path("dangling")).unwrap_err();
        assert!(!scratch.path("nowhere").exists());
    }

    #[test]
    fn what_is_something_else_is_refused() {
        let scratch = Scratch::new("kind");
        private_file(&scratch.path("file")).unwrap();
        private_dir(&scratch.path("dir")).unwrap();
        private_dir(&scratch.path("file")).unwrap_err();
        let refused = private_file(&scratch.path("dir")).unwrap_err();
        assert!(matches!(refused, NotPrivate::Kind { found: "directory", .. }), "{refused}");
        let pipe = scratch.path("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let refused = private_file(&pipe).unwrap_err();
        assert!(matches!(refused, NotPrivate::Kind { wanted: "file", .. }), "{refused}");
    }

    #[test]
    fn a_log_is_added_to_at_its_end_wherever_that_is() {
        use std::io::Write as _;
        let scratch = Scratch::new("log");
        let path = scratch.path("log");
        let mut log = private_log(&path).unwrap();
        log.write_all(b"one\n").unwrap();
        fs::File::options().write(true).truncate(true).open(&path).unwrap();
        log.write_all(b"two\n").unwrap();
        private_log(&path).unwrap().write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\nthree\n");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn somebody_elses_is_refused() {
        assert!(geteuid().is_root(), "run as root: this test gives a file away");
        let scratch = Scratch::new("owner");
        let (dir, file) = (scratch.path("dir"), scratch.path("file"));
        private_dir(&dir).unwrap();
        private_file(&file).unwrap();
        for path in [&dir, &file] {
            chown(path, Some(65_534), None).unwrap();
        }
        for refused in [private_dir(&dir).unwrap_err(), private_file(&file).unwrap_err()] {
            assert!(matches!(refused, NotPrivate::Owner { owner: 65_534, own: 0, .. }), "{refused}");
        }
    }
}
