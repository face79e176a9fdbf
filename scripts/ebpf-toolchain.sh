#!/bin/sh
# Makes this machine able to build ebpf/programs, Throughline's tc programs. Idempotent: what is there is kept, and a
# second run only looks. ebpf/loader/build.rs looks in the same places, in the same order:
#
#   compiler  (a) rustup's nightly with rust-src, if its LLVM is not newer than the linker's (bitcode is not forward
#                 compatible): cargo +nightly -Z build-std=core
#             (b) Debian's rustc-web with libstd-rust-web-dev-bpf, which brings `core` ready-made for the BPF target
#   linker    (a) bpf-linker in ${THROUGHLINE_CACHE:-~/.cache/throughline}/bpf-linker-<version>/bin
#             (b) bpf-linker on PATH
#
# Whatever is missing is installed: the compiler as (b) by apt-get, the linker as (a) by cargo, against Debian's LLVM.
set -eu

LINKER_VERSION=0.13.0
LLVM=22
LLVM_PREFIX=/usr/lib/llvm-$LLVM
DEBIAN_RUSTC=/usr/bin/rustc
TARGET=bpfel-unknown-none
LINKER_ROOT=${THROUGHLINE_CACHE:-$HOME/.cache/throughline}/bpf-linker-$LINKER_VERSION

say() { printf 'ebpf-toolchain: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

nightly_can_build() {
    command -v rustup >/dev/null || return 1
    sysroot=$(rustc +nightly --print sysroot 2>/dev/null) || return 1
    [ -f "$sysroot/lib/rustlib/src/rust/library/core/Cargo.toml" ] || return 1
    major=$(rustc +nightly -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    [ "$major" -le "$LLVM" ]
}

debian_can_build() {
    [ -x "$DEBIAN_RUSTC" ] || return 1
    [ -n "$(find "$("$DEBIAN_RUSTC" --print sysroot)/lib/rustlib/$TARGET/lib" -name 'libcore-*.rlib' 2>/dev/null)" ]
}

linker_works() { "$1" --version >/dev/null 2>&1; }

llvm_is_here() { [ -e "$LLVM_PREFIX/lib/libLLVM.so" ] && [ -x "$LLVM_PREFIX/bin/llvm-config" ]; }

apt_install() {
    command -v apt-get >/dev/null || fail "no apt-get here to install: $*. See the head of $0 for what is needed."
    if [ "$(id -u)" -eq 0 ]; then sudo=; else sudo=sudo; fi
    say "installing $*"
    # The package lists may be absent or stale: try what is there, then once more with fresh ones.
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 || {
        $sudo apt-get update -q
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
    }
}

if nightly_can_build; then
    say "compiler: rustup nightly with rust-src"
elif debian_can_build; then
    say "compiler: $DEBIAN_RUSTC with core for $TARGET"
else
    apt_install rustc-web libstd-rust-web-dev-bpf
    debian_can_build || fail "$DEBIAN_RUSTC still has no core for $TARGET after the installation"
    say "compiler: $DEBIAN_RUSTC with core for $TARGET (just installed)"
fi

if linker_works "$LINKER_ROOT/bin/bpf-linker"; then
    say "linker: $LINKER_ROOT/bin/bpf-linker"
elif linker_works bpf-linker; then
    say "linker: $(command -v bpf-linker)"
else
    llvm_is_here || apt_install llvm-$LLVM-dev libpolly-$LLVM-dev zlib1g-dev libzstd-dev libxml2-dev
    say "building bpf-linker $LINKER_VERSION against LLVM $LLVM (about a minute)"
    # Two variables, two readers: LLVM_PREFIX is bpf-linker's own build script's, the other is llvm-sys's.
    env LLVM_PREFIX="$LLVM_PREFIX" LLVM_SYS_221_PREFIX="$LLVM_PREFIX" cargo install --quiet bpf-linker \
        --version "$LINKER_VERSION" --locked --no-default-features --features llvm-$LLVM --root "$LINKER_ROOT"
    linker_works "$LINKER_ROOT/bin/bpf-linker" || fail "$LINKER_ROOT/bin/bpf-linker does not run"
    say "linker: $LINKER_ROOT/bin/bpf-linker (just built)"
fi
