#!/bin/sh
# Fuzzes one decoder: scripts/fuzz.sh TARGET SECONDS. It begins with fuzz/corpus/TARGET; what it finds beside that is kept
# in fuzz/target/corpus/TARGET, what breaks a decoder in fuzz/artifacts/TARGET. `scripts/fuzz.sh TARGET cmin` takes what is
# new into the corpus and keeps of it as little as covers as much.
#
# With the stable toolchain: the decoders have no unsafe code for a sanitizer to look into, and coverage is stable's own.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/tool.sh
. scripts/tool.sh
[ $# -eq 2 ] || {
    printf 'usage: make fuzz TARGET=... SECONDS=..., the target being one of:\n%s\n' "$(ls fuzz/corpus)" >&2
    exit 2
}
target=$1
[ -f "fuzz/fuzz_targets/$target.rs" ] || {
    printf 'fuzz: no target %s; there are: %s\n' "$target" "$(ls fuzz/corpus | tr '\n' ' ')" >&2
    exit 2
}
# libFuzzer comes with its sources, in C++.
command -v c++ >/dev/null || {
    printf 'fuzz: installing g++\n'
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends g++ >/dev/null 2>&1 || {
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends g++
    }
}
tool cargo-fuzz 0.13.2

found=fuzz/target/corpus/$target
mkdir -p "$found"
if [ "$2" = cmin ]; then
    cp -n "$found"/* "fuzz/corpus/$target/" 2>/dev/null || true
    exec "$TOOL" fuzz cmin --sanitizer none "$target"
fi
exec "$TOOL" fuzz run --sanitizer none "$target" "$found" "fuzz/corpus/$target" -- \
    -max_total_time="$2" -max_len=16384 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1
