//! Guests with an agent of their own, the real one, and an ext4 file system that is written without a pause: see `lab/guest/init`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use throughline_hypervisor::{Guest, Launch};

use super::{Lab, PATIENCE, image::Image, kernel};

/// How long a guest's agent takes to say that it is in step, if it was heard.
const IN_STEP: Duration = Duration::from_secs(10);

/// That guest; its first disk has the file system, if it has disks.
pub(crate) fn plan(lab: &Lab, side: &str, disks: &[Image], incoming: bool) -> Launch {
    let mount = disks.first().map(|disk| format!("tl.mount={}", disk.name)).unwrap_or_default();
    let mut plan = lab.plan(side, &format!("tl.agent=yes tl.probe=off {mount}"), incoming);
    let initrd = kernel().with_file_name("initrd-agent.img");
    assert!(initrd.exists(), "there is no {}: run make setup", initrd.display());
    plan.boot.initrd = initrd.to_str().unwrap().to_owned();
    Launch { disks: disks.iter().map(Image::open).collect(), guest_agent: true, ..plan }
}

/// Makes an ext4 file system with a journal of a raw disk.
pub(crate) fn format(image: &Image) {
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image.path).status().expect("e2fsprogs is missing");
    assert!(made.success());
}

/// How many files the guest has written.
pub(crate) fn written(guest: &Guest) -> u64 {
    let log = fs::read(guest.run_dir().serial_log()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let number = |line: &str| line.trim().strip_prefix("init: wrote ")?.split(' ').next()?.parse().ok();
    log.lines().rev().find_map(number).unwrap_or(0)
}

/// Waits until it has written more than it has now.
pub(crate) async fn writes_on(guest: &Guest) {
    let (before, started) = (written(guest), Instant::now());
    while written(guest) < before + 40 {
        assert!(started.elapsed() < PATIENCE, "the guest does not write: {before} files");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks the guest's agent as anybody could who may open its socket; waits until it is there.
pub(crate) fn ask(guest: &Guest, command: &Value) -> Value {
    let started = Instant::now();
    let (stream, mut answers) = loop {
        let stream = UnixStream::connect(guest.run_dir().agent_socket()).expect("QEMU has a channel");
        stream.set_read_timeout(Some(IN_STEP)).unwrap();
        writeln!(&stream, "{}", json!({"execute": "guest-sync", "arguments": {"id": 1}})).unwrap();
        // Of who was connected before there may be something, in parts that are no JSON.
        let lines = BufReader::new(stream.try_clone().unwrap()).split(b'\n').map_while(Result::ok);
        let mut answers = lines.filter_map(|line| serde_json::from_slice::<Value>(&line).ok());
        if answers.any(|answer| answer == json!({"return": 1})) {
            break (stream, answers);
        }
        // QEMU has one client at a time, and what the next one said before it was let in may be lost.
        assert!(started.elapsed() < PATIENCE, "the guest's agent is not in step");
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(&stream, "{command}").unwrap();
    answers.next().unwrap()
}

/// Has the agent stopped, and waits until it is: one that was stopped while it has the guest frozen could thaw it no more.
pub(crate) fn stop(guest: &Guest) {
    let stop = json!({"path": "/bin/killall", "arg": ["-STOP", "qemu-ga"]});
    ask(guest, &json!({"execute": "guest-exec", "arguments": stop}));
    let answers = || {
        let mut stream = UnixStream::connect(guest.run_dir().agent_socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        writeln!(&stream, "{}", json!({"execute": "guest-ping"})).unwrap();
        stream.read(&mut [0]).is_ok()
    };
    while answers() {}
}

/// `dumpe2fs -h` of a disk's content, and whether `e2fsck -fn` finds it clean.
pub(crate) fn examine(dir: &Path, content: &[u8]) -> (String, Output) {
    let path = dir.join("examined");
    fs::write(&path, content).unwrap();
    let head = Command::new("dumpe2fs").arg("-h").arg(&path).output().expect("e2fsprogs is missing");
    let check = Command::new("e2fsck").arg("-fn").arg(&path).output().unwrap();
    fs::remove_file(path).unwrap();
    assert!(head.status.success(), "{head:?}");
    (String::from_utf8(head.stdout).unwrap(), check)
}
