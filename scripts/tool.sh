# Sourced: a cargo tool of a fixed version in the tool cache, built from crates.io if it is not there.
#
#   tool NAME VERSION   ->  $TOOL is its program
#
# Built to be there soon, not to be fast: a minute of compiling spared is worth more than a tenth of a second a run.

tool() {
    root=${THROUGHLINE_CACHE:-$HOME/.cache/throughline}/$1-$2
    TOOL=$root/bin/$1
    if "$TOOL" --version >/dev/null 2>&1 || "$TOOL" "${1#cargo-}" --version >/dev/null 2>&1; then
        return
    fi
    printf 'tools: building %s %s\n' "$1" "$2"
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --quiet --locked "$1" --version "$2" --root "$root"
    # What it was built from is not needed again.
    "$TOOL" --version >/dev/null 2>&1 || "$TOOL" "${1#cargo-}" --version >/dev/null 2>&1 || {
        printf 'tools: %s does not run\n' "$TOOL" >&2
        exit 1
    }
}
