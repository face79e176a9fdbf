//! A disk of the guest by its serial number, which is what its operator named it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long a disk is waited for: SCSI disks are found some time after their controller.
const PATIENCE: Duration = Duration::from_secs(20);
/// Before the serial number itself in a page of a SCSI disk's.
const PAGE_HEAD: usize = 4;

/// The device of that serial number; a path is one by itself.
pub fn find(name: &str) -> io::Result<PathBuf> {
    if name.starts_with('/') {
        return Ok(PathBuf::from(name));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(device) = look(Path::new("/sys/block"), name)? {
            return Ok(Path::new("/dev").join(device));
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("no disk has the serial number {name:?}")));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn look(disks: &Path, name: &str) -> io::Result<Option<String>> {
    for disk in fs::read_dir(disks)? {
        let disk = disk?;
        if serial(&disk.path()).as_deref() == Some(name) {
            return Ok(disk.file_name().into_string().ok());
        }
    }
    Ok(None)
}

/// What a virtio disk's driver, or a SCSI disk itself, says.
fn serial(disk: &Path) -> Option<String> {
    let virtio = fs::read(disk.join("serial")).ok();
    let scsi = || fs::read(disk.join("device/vpd_pg80")).ok()?.get(PAGE_HEAD..).map(<[u8]>::to_vec);
    let text = String::from_utf8(virtio.or_else(scsi)?).ok()?;
    Some(text.trim_matches(|char: char| char.is_whitespace() || char == '\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_by_serial_number_on_either_bus() {
        let root = std::env::temp_dir().join(format!("tl-probe-serial-{}", std::process::id()));
        fs::create_dir_all(root.join("vda")).unwrap();
        fs::create_dir_all(root.join("sda/device")).unwrap();
        fs::create_dir_all(root.join("loop0")).unwrap();
        fs::write(root.join("vda/serial"), "root\n").unwrap();
        fs::write(root.join("sda/device/vpd_pg80"), b"\0\x80\0\x04data").unwrap();
        let found = ["root", "data", "oot", ""].map(|name| look(&root, name).unwrap());
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [Some("vda".to_owned()), Some("sda".to_owned()), None, None]);
    }
}
