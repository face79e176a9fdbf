//! Files that are there whole or not at all: daemons may watch them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use super::AuthorityError;

/// Mode of what anybody may read, in a directory only its owner may enter.
pub(super) const PUBLIC: u32 = 0o644;
/// Mode of a private key.
pub(super) const PRIVATE: u32 = 0o600;

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, AuthorityError> {
    result.map_err(|source| AuthorityError::File { path: path.to_owned(), source })
}

/// Makes a directory, and those above it, for its owner only. One that is there keeps its mode.
pub(super) fn make_directory(path: &Path) -> Result<(), AuthorityError> {
    at(path, DirBuilder::new().recursive(true).mode(0o700).create(path))
}

/// Keeps other commands out of a directory for as long as the lock lives.
pub(super) fn lock(directory: &Path) -> Result<File, AuthorityError> {
    let file = at(directory, File::open(directory))?;
    at(directory, file.lock())?;
    Ok(file)
}

pub(super) fn read(path: &Path) -> Result<String, AuthorityError> {
    at(path, fs::read_to_string(path))
}

/// Reads a key, unless others could have read it too.
pub(super) fn read_private(path: &Path) -> Result<String, AuthorityError> {
    let mode = at(path, fs::metadata(path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let problem = format!("may be read by others than its owner (mode {mode:03o}); chmod it to 600");
        return Err(AuthorityError::Content { path: path.to_owned(), problem });
    }
    read(path)
}

/// Writes a file beside its place and moves it there.
pub(super) fn write(path: &Path, content: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = || {
        // One that was left by a command that died may have another mode.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        // Whatever the umask takes away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    at(path, written())
}
