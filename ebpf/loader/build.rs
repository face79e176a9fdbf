//! Builds `ebpf/programs` for the BPF target and leaves the object where `src/lib.rs` embeds it.
//!
//! Compiler and linker are looked for where `scripts/ebpf-toolchain.sh` puts them, in the order documented there.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const LINKER_DIR: &str = "bpf-linker-0.13.0";
/// LLVM of that linker: it reads bitcode of this version and older.
const LINKER_LLVM: u32 = 22;
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const HELP: &str = "Throughline's tc programs cannot be built on this machine yet; run `make setup` once";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

enum Compiler {
    Nightly,
    Debian,
}

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let programs = Path::new("../programs").canonicalize()?;
    for input in ["src", "Cargo.toml", "Cargo.lock", "../abi/src", "../abi/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", programs.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=THROUGHLINE_CACHE");

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let object = build(&programs, &out.join("target"))?;
    fs::copy(object, out.join("throughline-programs"))?;
    Ok(())
}

/// Runs cargo in `programs`; the object it made.
fn build(programs: &Path, target_dir: &Path) -> Result<PathBuf> {
    let mut cargo = match compiler()? {
        Compiler::Nightly => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
            cargo.env_remove("RUSTC");
            cargo
        }
        Compiler::Debian => {
            let mut cargo = Command::new(env::var_os("CARGO").ok_or("cargo sets CARGO")?);
            cargo.arg("build").env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
    };
    cargo
        .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .current_dir(programs)
        .env("PATH", path_with_linker()?)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Clink-arg=--btf");
    // What the outer cargo says to its own compiler (clippy, coverage, another toolchain) is not for this one.
    for variable in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(variable);
    }
    let output = cargo.output().map_err(|error| format!("{cargo:?} did not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("{cargo:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(target_dir.join(TARGET).join("release/throughline-programs"))
}

fn compiler() -> Result<Compiler> {
    if nightly_can_build() {
        Ok(Compiler::Nightly)
    } else if debian_can_build() {
        Ok(Compiler::Debian)
    } else {
        Err(format!(
            "{HELP} (no compiler with `core` for {TARGET}: neither rustup nightly with rust-src and an LLVM up to \
             {LINKER_LLVM}, nor {DEBIAN_RUSTC} with libstd-rust-web-dev-bpf)"
        )
        .into())
    }
}

fn nightly_can_build() -> bool {
    let rustc = |arguments: &[&str]| {
        let mut rustup = Command::new("rustup");
        rustup.args(["run", "nightly", "rustc"]).args(arguments);
        stdout_of(&mut rustup)
    };
    let Some(sysroot) = rustc(&["--print", "sysroot"]) else { return false };
    let has_source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists();
    let llvm = rustc(&["-vV"]).and_then(|version| {
        version.lines().find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
    });
    has_source && llvm.is_some_and(|major: u32| major <= LINKER_LLVM)
}

fn debian_can_build() -> bool {
    let Some(sysroot) = stdout_of(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"])) else { return false };
    let Ok(libraries) = fs::read_dir(Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib")) else {
        return false;
    };
    libraries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// `PATH`, the cached linker before any other.
fn path_with_linker() -> Result<std::ffi::OsString> {
    let cache = env::var_os("THROUGHLINE_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache/throughline")));
    let cached = cache.map(|cache| cache.join(LINKER_DIR).join("bin"));
    let old = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = cached.into_iter().chain(env::split_paths(&old)).collect();
    if !directories.iter().any(|directory| directory.join("bpf-linker").exists()) {
        return Err(format!("{HELP} (no bpf-linker in the cache or on PATH)").into());
    }
    Ok(env::join_paths(directories)?)
}

fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
