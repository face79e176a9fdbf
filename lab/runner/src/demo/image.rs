//! The guest's image, as `scripts/guest-image.sh` leaves it.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// A directory with a kernel and an initial RAM disk.
#[derive(Debug)]
pub(crate) struct Image {
    directory: PathBuf,
}

impl Image {
    /// Finds it where the script puts it.
    pub(crate) fn find() -> Result<Self> {
        let cache = match env::var_os("THROUGHLINE_CACHE") {
            Some(cache) => PathBuf::from(cache),
            None => PathBuf::from(env::var_os("HOME").context("neither THROUGHLINE_CACHE nor HOME is set")?)
                .join(".cache/throughline"),
        };
        let image = Self { directory: cache.join("guest") };
        for file in [image.kernel(), image.initrd()] {
            ensure!(PathBuf::from(&file).exists(), "there is no {file}: run `make setup`");
        }
        Ok(image)
    }

    /// Path of the kernel.
    pub(crate) fn kernel(&self) -> String {
        self.directory.join("vmlinuz").to_string_lossy().into_owned()
    }

    /// Path of the initial RAM disk.
    pub(crate) fn initrd(&self) -> String {
        self.directory.join("initrd.img").to_string_lossy().into_owned()
    }
}
