#!/bin/sh
# What others' code comes in: its licences, where it is from, what must not be used, and what is known to be broken
# (deny.toml). For each of our lock files. The last needs a database that is fetched from elsewhere: it is looked at where
# there is one, `ADVISORIES=fetch` gets it first, and where there is none this says so.
#
#   scripts/deny.sh --setup   only makes the tool ready
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/tool.sh
. scripts/tool.sh
tool cargo-deny 0.20.2
[ "${1:-}" = --setup ] && exit 0

deny() {
    manifest=$1
    shift
    "$TOOL" --log-level error --manifest-path "$manifest" --config deny.toml --locked "$@"
}

# An allowance that nobody needs is an error in the first, which has most; the others need fewer.
deny Cargo.toml check licenses bans sources
for manifest in ebpf/programs/Cargo.toml fuzz/Cargo.toml; do
    deny "$manifest" check --allow license-not-encountered licenses bans sources
done

DATABASES=${CARGO_HOME:-$HOME/.cargo}/advisory-dbs
if [ "${ADVISORIES:-}" = fetch ]; then
    deny Cargo.toml fetch db
fi
if [ -n "$(find "$DATABASES" -mindepth 2 -maxdepth 2 -name crates 2>/dev/null)" ]; then
    for manifest in Cargo.toml ebpf/programs/Cargo.toml fuzz/Cargo.toml; do
        deny "$manifest" --offline check advisories
    done
else
    printf 'deny: ADVISORIES WERE NOT LOOKED AT: no database in %s; ADVISORIES=fetch gets it where github.com can be reached\n' \
        "$DATABASES"
fi
