//! A guest with an agent of its own: its file systems are written out in its points, and no daemon that is killed leaves it frozen.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::failover::{now_ms, raw_copy};
use crate::lab::{GUEST, Lab, wait_for};

/// A point, an agent's return, or a guest that writes.
const SOON: Duration = Duration::from_secs(60);
const AGENT: &str = "tl.agent=yes tl.mount=root tl.probe=off";

/// An image with an ext4 file system; gone with the value.
struct Image(PathBuf);

impl Image {
    fn new(lab: &Lab) -> Self {
        let path = std::env::temp_dir().join(format!("throughline-{}.ext4", lab.name()));
        fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path).status().expect("e2fsprogs is missing");
        assert!(made.success());
        Self(path)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Lab {
    /// How many files the guest has written.
    fn written(&self, host: &str) -> u64 {
        let number = |line: &str| line.trim().strip_prefix("init: wrote ")?.split(' ').next()?.parse().ok();
        self.console(host).lines().rev().find_map(number).unwrap_or(0)
    }

    fn assert_writes_on(&self, host: &str) {
        let before = self.written(host);
        wait_for("the guest writes on", SOON, || (self.written(host) > before + 40).then_some(()));
    }

    /// Has it frozen as a daemon does that is killed then.
    fn freeze(&self, host: &str) {
        let socket = self.state().join(host).join("state/guests").join(GUEST).join("agent.sock");
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        writeln!(&stream, r#"{{"execute": "guest-sync", "arguments": {{"id": 9}}}}"#).unwrap();
        writeln!(&stream, r#"{{"execute": "guest-fsfreeze-freeze"}}"#).unwrap();
        // Of the daemon that was killed there may be something, in parts that are no text.
        let mut lines =
            BufReader::new(stream).split(b'\n').map(|line| String::from_utf8_lossy(&line.unwrap()).into_owned());
        lines.find(|line| line.contains(r#""return": 9"#)).expect("its agent is in step");
        assert_eq!(lines.next().unwrap(), r#"{"return": 1}"#, "its only file system");
    }

    /// Waits for a point of that time or later in which file systems are written out.
    fn wait_for_quiesced(&self, host: &str, since_ms: u64) {
        wait_for(&format!("a quiesced point at {host}"), SOON, || {
            let replica = self.replica(host);
            let newest = replica["points"].as_array()?.last().cloned()?;
            (newest["at_ms"].as_u64() >= Some(since_ms) && newest["quiesced"] == true).then_some(())
        });
    }
}

fn assert_clean(image: &Path) {
    let raw = raw_copy(image);
    let head = Command::new("dumpe2fs").arg("-h").arg(&raw).output().unwrap();
    let check = Command::new("e2fsck").arg("-fn").arg(&raw).output().unwrap();
    fs::remove_file(raw).unwrap();
    let head = String::from_utf8_lossy(&head.stdout).into_owned();
    assert!(head.contains("has_journal") && !head.contains("needs_recovery"), "{head}");
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn a_guest_fails_over_with_file_systems_that_need_no_repair() {
    let mut lab = Lab::up("quiesced");
    let image = Image::new(&lab);
    let disk = format!("name=root,size=32MiB,image={}", image.0.display());
    lab.boot_guest_from("initrd-agent.img", AGENT, &["--guest-agent", "--disk", &disk]);
    lab.assert_writes_on("h1");
    lab.create_replica("h2", &["--every", "1s", "--keep", "3"]);
    lab.wait_for_quiesced("h2", 0);

    // Killed here and there on the way, and just when the guest is frozen.
    for after_ms in [0, 250, 500, 750] {
        lab.wait_for_point("h2", now_ms());
        thread::sleep(Duration::from_millis(after_ms));
        let agent = lab.kill_agent("h1");
        wait_for("the controller misses it", SOON, || (!lab.is_connected("h1")).then_some(()));
        if after_ms == 0 {
            lab.freeze("h1");
            thread::sleep(Duration::from_secs(1));
            let before = lab.written("h1");
            thread::sleep(Duration::from_secs(1));
            assert_eq!(lab.written("h1"), before, "it is frozen");
        }
        lab.start_again(&agent);
        lab.assert_writes_on("h1");
        lab.wait_for_quiesced("h2", now_ms());
    }

    lab.lose_host("h1");
    lab.stop_guest(&["--no-wait"]).done();
    let newest = lab.replica("h2")["points"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(newest["quiesced"], true, "{newest}");
    lab.promote("h2", &[]).done();
    assert_clean(&lab.disk_dir("h2").join("root.qcow2"));
    lab.start_guest().done();
    lab.assert_writes_on("h2");
}
