//! The controller as a program: whoever starts it, it may do nothing, and what it keeps is for its own eyes.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::support::StateDir;

/// The daemon, ended with the value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(state: &Path, notify: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline-controller"));
    command.args(["--insecure", "--listen", "127.0.0.1:0", "--state-dir"]).arg(state).env("NOTIFY_SOCKET", notify);
    command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn started_by_root_it_gives_everything_up() {
    let (state, place) = (StateDir::new(), StateDir::new());
    fs::create_dir_all(&place.0).unwrap();
    let socket = place.0.join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let daemon = Daemon(start(&state.0, &socket));
    let mut told = [0; 64];
    let length = systemd.recv(&mut told).unwrap();
    assert_eq!(std::str::from_utf8(&told[..length]).unwrap().trim(), "READY=1", "systemd is told once it serves");

    for thread in fs::read_dir(format!("/proc/{}/task", daemon.0.id())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    }
    assert_eq!(mode(&state.0), 0o700);
    for file in fs::read_dir(&state.0).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_state_directory_others_may_read_is_refused() {
    let state = StateDir::new();
    fs::create_dir_all(&state.0).unwrap();
    fs::set_permissions(&state.0, fs::Permissions::from_mode(0o755)).unwrap();
    let ended = start(&state.0, Path::new("/nobody/listens")).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("chmod 0700"), "{said}");
    assert_eq!(fs::read_dir(&state.0).unwrap().count(), 0, "nothing was made there");
}
