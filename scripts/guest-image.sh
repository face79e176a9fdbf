#!/bin/sh
# Builds the lab's guest: Debian's cloud kernel (taken from its package, not installed here) and an initial RAM disk of
# busybox, virtio's drivers and the static probe. Does nothing if neither the probe nor anything else in it has
# changed. Result: ${THROUGHLINE_CACHE:-~/.cache/throughline}/guest/{vmlinuz,initrd.img,initrd-agent.img}; the last has besides QEMU's
# guest agent, as it is installed here, and what it takes to mount a file system.
set -eu
cd "$(dirname "$0")/.."

GUEST=${THROUGHLINE_CACHE:-$HOME/.cache/throughline}/guest
TARGET=x86_64-unknown-linux-gnu
# What the guest's network card needs, what disks do if it has any, and what hears the power button; what they need in turn is
# found in the modules themselves.
MODULES="virtio_pci virtio_net"
BLK_MODULES="virtio_blk"
BUTTON_MODULES="button evdev"
SCSI_MODULES="virtio_scsi sd_mod"
# ext4 asks for crc32c by that name alone, so that no module says that it needs it.
AGENT_MODULES="virtio_console crc32c_generic ext4"

say() { printf 'guest-image: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

mkdir -p "$GUEST"
# Two set-ups at once would pack each other's halves.
exec 9>"$GUEST/lock"
flock 9

# Everything the RAM disk is made from, by content: checkouts that share the cache do not fool each other.
inputs=$(find lab/probe/src lab/probe/Cargo.toml lab/guest Cargo.lock scripts/guest-image.sh -type f -print0 |
    sort -z | xargs -0 sha256sum | sha256sum)
if [ -f "$GUEST/vmlinuz" ] && [ -f "$GUEST/initrd.img" ] && [ -f "$GUEST/initrd-agent.img" ] && [ "$inputs" = "$(cat "$GUEST/inputs" 2>/dev/null)" ]; then
    say "$GUEST is up to date"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Debian's name for the newest cloud kernel, as "linux-image-6.1.0-56-cloud-amd64".
kernel_package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p'; }

fetch_kernel() {
    [ -n "$(kernel_package)" ] || apt-get update -q >/dev/null
    package=$(kernel_package)
    [ -n "$package" ] || fail "apt knows no linux-image-cloud-amd64: the guest's kernel comes from Debian's repository"
    say "fetching $package"
    # apt's own user may not write to our directory; root may, and says so at length.
    (cd "$work" && { apt-get download -q "$package" || { apt-get update -q && apt-get download -q "$package"; }; }) \
        >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "cannot fetch $package"; }
    dpkg-deb -x "$work/$package"_*.deb "$work/kernel"
}

# Copies a module, whatever its compression, and before it those it depends on, to $GUEST/modules. The second word is the file
# there that has the order to load them in, after those of `order`. One that is built into the kernel is not needed.
keep_module() {
    ! (cd "$GUEST/modules" && touch order "$2" && cat order "$2") | grep -qx "$1" || return 0
    file=$(find "$work/kernel" \( -name "$1.ko" -o -name "$1.ko.xz" -o -name "$1.ko.zst" \) -print -quit)
    case $file in
    *.ko) cp "$file" "$GUEST/modules/$1.ko" ;;
    *.xz) xz -dc "$file" >"$GUEST/modules/$1.ko" ;;
    *.zst) zstd -qdc "$file" >"$GUEST/modules/$1.ko" ;;
    *)
        grep -q "/$1\.ko" "$work"/kernel/lib/modules/*/modules.builtin || fail "the kernel has no module $1"
        return 0
        ;;
    esac
    for needed in $(tr '\0' '\n' <"$GUEST/modules/$1.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do keep_module "$needed" "$2"; done
    echo "$1" >>"$GUEST/modules/$2"
}

# Copies modules to $1, each order with those it names.
pack_modules() {
    to=$1/modules
    shift
    for order in "$@"; do
        cp "$GUEST/modules/$order" "$to/"
        while read -r module; do cp "$GUEST/modules/$module.ko" "$to/"; done <"$GUEST/modules/$order"
    done
}

# The mark says of what: with other modules it is another set.
wanted="$MODULES; $BLK_MODULES; $SCSI_MODULES; $BUTTON_MODULES; $AGENT_MODULES"
if [ ! -f "$GUEST/vmlinuz" ] || [ "$wanted" != "$(cat "$GUEST/modules/complete" 2>/dev/null)" ]; then
    fetch_kernel
    rm -rf "$GUEST/modules" && mkdir "$GUEST/modules"
    for module in $MODULES; do keep_module "$module" order; done
    for module in $BLK_MODULES; do keep_module "$module" order.blk; done
    for module in $SCSI_MODULES; do keep_module "$module" order.scsi; done
    for module in $BUTTON_MODULES; do keep_module "$module" order.button; done
    for module in $AGENT_MODULES; do keep_module "$module" order.agent; done
    mv "$work"/kernel/boot/vmlinuz-* "$GUEST/vmlinuz"
    echo "$wanted" >"$GUEST/modules/complete"
fi

say "building the static probe"
# Debug information off and a little optimization: under emulation both are felt.
CARGO_PROFILE_DEV_OPT_LEVEL=2 CARGO_PROFILE_DEV_STRIP=true RUSTFLAGS='-C target-feature=+crt-static' \
    cargo build --quiet --package throughline-probe --target "$TARGET"
probe=${CARGO_TARGET_DIR:-target}/$TARGET/debug/throughline-probe

say "packing the RAM disk"
root=$work/root
mkdir -p "$root/bin" "$root/modules"
cp /bin/busybox "$root/bin/busybox"
cp "$probe" "$root/bin/throughline-probe"
pack_modules "$root" order order.blk order.scsi order.button
install -m 755 lab/guest/init "$root/init"
# Not compressed: QEMU reads it faster than an emulated processor unpacks it.
pack() { (cd "$1" && find . | cpio --quiet -o -H newc); }
pack "$root" >"$work/initrd.img"

# The kernel unpacks one archive after the other. A guest without an agent is spared the second.
agent=$(command -v qemu-ga) || fail "there is no qemu-ga: install qemu-guest-agent"
extra=$work/extra
mkdir -p "$extra/modules" "$extra/bin"
pack_modules "$extra" order.agent
cp "$agent" "$extra/bin/qemu-ga"
ldd "$agent" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$extra$(dirname "$library")"
    cp -L "$library" "$extra$library"
done
{ cat "$work/initrd.img" && pack "$extra"; } >"$work/initrd-agent.img"
mv "$work/initrd.img" "$work/initrd-agent.img" "$GUEST"
echo "$inputs" >"$GUEST/inputs"
say "$GUEST is ready"
