//! What an operator installs: that it is all there, that systemd understands it, and that it grants what the daemons keep and
//! no more. Needs root and systemd's own tools (`make setup`); nothing is started, and nothing is placed outside a directory of
//! the test's own.

#![expect(clippy::unwrap_used, reason = "a helper of tests panics as they do")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use throughline_agent::privilege;

const AGENT: &str = include_str!("../../packaging/systemd/throughline-agent.service");
const CONTROLLER: &str = include_str!("../../packaging/systemd/throughline-controller.service");

/// Everything `make install` places, with its mode.
const PLACED: [(&str, u32); 12] = [
    ("etc/throughline/agent.env", 0o644),
    ("etc/throughline/controller.env", 0o644),
    ("usr/bin/throughline", 0o755),
    ("usr/bin/throughline-agent", 0o755),
    ("usr/bin/throughline-controller", 0o755),
    ("usr/bin/throughline-seal", 0o755),
    ("usr/lib/systemd/system/throughline-agent.service", 0o644),
    ("usr/lib/systemd/system/throughline-controller.service", 0o644),
    ("usr/lib/sysusers.d/throughline.conf", 0o644),
    ("usr/lib/tmpfiles.d/throughline.conf", 0o644),
    ("usr/share/doc/throughline/LICENSE", 0o644),
    ("usr/share/doc/throughline/install.md", 0o644),
];

/// How exposed each may be, in tenths, as `systemd-analyze security` reckons it: what docs/install.md says.
const EXPOSURE: [(&str, u32); 2] = [("throughline-agent", 46), ("throughline-controller", 14)];

/// A machine's root, as far as an installation has one; gone with the value.
struct Root(PathBuf);

impl Root {
    fn installed(test: &str) -> Self {
        let root = Self(std::env::temp_dir().join(format!("throughline-install-{}-{test}", std::process::id())));
        let _ = fs::remove_dir_all(&root.0);
        fs::create_dir(&root.0).unwrap();
        succeeded(&root.install());
        root
    }

    fn install(&self) -> Output {
        // This is .../target/PROFILE/deps/packaging-HASH.
        let binaries = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
        let makefile = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let mut make = Command::new("make");
        make.args(["--silent", "-C", makefile, "install"]).env("DESTDIR", &self.0).env("BINARIES", binaries);
        make.output().unwrap()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn files(&self) -> BTreeSet<(String, u32)> {
        let mut found = BTreeSet::new();
        let mut directories = vec![self.0.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let name = path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned();
                found.insert((name, mode(&path)));
            }
        }
        found
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "it ended with {}:\n{told}", output.status);
    told
}

#[test]
fn all_of_it_is_placed_and_settings_that_are_there_stay() {
    let root = Root::installed("placed");
    let placed = PLACED.map(|(name, mode)| (name.to_owned(), mode));
    assert_eq!(root.files(), BTreeSet::from(placed));

    let settings = root.path("etc/throughline/agent.env");
    fs::write(&settings, "THROUGHLINE_HOST=h7\n").unwrap();
    succeeded(&root.install());
    assert_eq!(fs::read_to_string(&settings).unwrap(), "THROUGHLINE_HOST=h7\n", "an upgrade keeps what was decided");
}

#[test]
fn systemd_understands_the_units() {
    let root = Root::installed("units");
    for unit in ["throughline-agent", "throughline-controller"] {
        // The program where it was placed: systemd looks whether it can be run.
        let text = fs::read_to_string(root.path(&format!("usr/lib/systemd/system/{unit}.service"))).unwrap();
        let started = format!("\nExecStart={}/usr/bin/{unit} ", root.0.display());
        let text = text.replace(&format!("\nExecStart=/usr/bin/{unit} "), &started);
        assert!(text.contains(&started), "{unit} starts something else:\n{text}");
        let path = root.path(&format!("{unit}.service"));
        fs::write(&path, text).unwrap();
        let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
        assert_eq!(succeeded(&verified), "", "systemd has something to say about {unit}");
    }
}

#[test]
fn the_units_are_no_more_exposed_than_the_handbook_says() {
    let handbook = include_str!("../../docs/install.md");
    for (unit, tenths) in EXPOSURE {
        let path = format!("{}/../packaging/systemd/{unit}.service", env!("CARGO_MANIFEST_DIR"));
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--no-pager", "--offline=true", &format!("--threshold={tenths}"), &path]);
        succeeded(&analyze.output().unwrap());
        let row = format!("| `{unit}` | {}.{} |", tenths / 10, tenths % 10);
        assert!(handbook.contains(&row), "docs/install.md does not say {row:?}");
    }
}

#[test]
fn users_and_directories_come_out_as_the_daemons_want_them() {
    let root = Root::installed("users");
    fs::write(root.path("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.path("etc/group"), "root:x:0:\nkvm:x:104:\n").unwrap();
    let flag = format!("--root={}", root.0.display());
    succeeded(&Command::new("systemd-sysusers").arg(&flag).output().unwrap());
    succeeded(&Command::new("systemd-tmpfiles").args([&flag, "--create"]).output().unwrap());

    let users = fs::read_to_string(root.path("etc/passwd")).unwrap();
    let id_of = |name: &str| {
        let user =
            users.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_else(|| panic!("{users}"));
        assert!(user.ends_with(":/usr/sbin/nologin"), "nobody logs in as {user}");
        user.split(':').nth(2).unwrap().parse::<u32>().unwrap()
    };
    let (controller, guests) = (id_of("throughline"), id_of("throughline-qemu"));
    assert!(controller != 0 && guests != 0 && controller != guests);
    let groups = fs::read_to_string(root.path("etc/group")).unwrap();
    assert!(groups.contains("kvm:x:104:throughline-qemu"), "guests may use KVM: {groups}");

    for (name, owner, mode) in [
        ("var/lib/throughline", 0, 0o711),
        ("var/lib/throughline-controller", controller, 0o700),
        ("sys/fs/bpf/throughline", 0, 0o700),
        ("etc/throughline/tls", 0, 0o700),
    ] {
        let metadata = fs::metadata(root.path(name)).unwrap();
        let found = (std::os::unix::fs::MetadataExt::uid(&metadata), metadata.permissions().mode() & 0o7777);
        assert_eq!(found, (owner, mode), "{name}");
    }
}

/// Every value of a setting, in order.
fn settings<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

#[test]
fn the_units_grant_the_capabilities_that_are_kept() {
    let kept: BTreeSet<_> = privilege::kept(false)
        .iter()
        .flat_map(|keep| keep.capability.iter_names().map(|(name, _)| format!("CAP_{name}")))
        .collect();
    let granted = settings(AGENT, "CapabilityBoundingSet");
    let granted: BTreeSet<_> = granted.iter().flat_map(|line| line.split(' ').map(str::to_owned)).collect();
    assert_eq!(granted, kept, "throughline-agent.service grants one set, agent/daemon/src/privilege.rs keeps another");
    assert_eq!(settings(CONTROLLER, "CapabilityBoundingSet"), [""], "the controller needs none");
    for unit in [AGENT, CONTROLLER] {
        assert_eq!((settings(unit, "AmbientCapabilities"), settings(unit, "NoNewPrivileges")), (vec![""], vec!["yes"]));
    }
}

#[test]
fn guests_outlive_their_agents_unit() {
    for (name, value) in [("KillMode", "process"), ("Delegate", "yes"), ("OOMPolicy", "continue")] {
        assert_eq!(settings(AGENT, name), [value], "{name}: or a stop of the agent takes its guests along");
    }
}
