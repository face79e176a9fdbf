#!/bin/sh
# Makes a Debian 12 machine with rustup's stable toolchain able to build, test and show Throughline. Idempotent: it only
# installs what is missing, and a second run only looks. Run as root.
set -eu
cd "$(dirname "$0")/.."

PACKAGES="qemu-system-x86 qemu-utils qemu-guest-agent e2fsprogs iproute2 procps busybox-static cpio xz-utils zstd gcc libc6-dev make util-linux systemd"

say() { printf 'setup: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "run as root: network namespaces, taps and BPF programs need it"
command -v dpkg-query >/dev/null || fail "this needs Debian 12; elsewhere install by hand: $PACKAGES"
command -v cargo >/dev/null || fail "no cargo: install rustup's stable toolchain first, https://rustup.rs"

missing() {
    for package in $PACKAGES; do
        case $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) in
        ii*) ;;
        *) printf '%s ' "$package" ;;
        esac
    done
}

packages=$(missing)
if [ -n "$packages" ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # Twice: what is there in another release's version, such as backports' qemu-utils, goes when its sisters come.
    for _ in first second; do
        say "installing $packages"
        # shellcheck disable=SC2086 # a list of words
        apt-get install -y -q --no-install-recommends $packages
        packages=$(missing)
        [ -n "$packages" ] || break
    done
    [ -z "$packages" ] || fail "apt does not keep together: $packages; see what it said above, and install them by hand"
else
    say "system packages: all there"
fi
scripts/ebpf-toolchain.sh
scripts/guest-image.sh
scripts/deny.sh --setup
