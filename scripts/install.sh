#!/bin/sh
# Places what was built, and what systemd needs to know, below DESTDIR (empty: this machine). Starts nothing, makes no user;
# docs/install.md says what comes next. Configuration that is there already is left as it is.
set -eu
cd "$(dirname "$0")/.."

DESTDIR=${DESTDIR:-}
BINARIES=${BINARIES:-target/release}
PROGRAMS="throughline throughline-agent throughline-controller throughline-seal"

fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

for program in $PROGRAMS; do
    [ -x "$BINARIES/$program" ] || fail "$BINARIES/$program is not built: cargo build --release --workspace --bins"
done

put() { install -D -m "$1" "$2" "$DESTDIR$3"; }

for program in $PROGRAMS; do
    put 0755 "$BINARIES/$program" "/usr/bin/$program"
done
for unit in packaging/systemd/*.service; do
    put 0644 "$unit" "/usr/lib/systemd/system/${unit##*/}"
done
put 0644 packaging/sysusers.d/throughline.conf /usr/lib/sysusers.d/throughline.conf
put 0644 packaging/tmpfiles.d/throughline.conf /usr/lib/tmpfiles.d/throughline.conf
put 0644 docs/install.md /usr/share/doc/throughline/install.md
put 0644 LICENSE /usr/share/doc/throughline/LICENSE
for settings in packaging/etc/*.env; do
    name=/etc/throughline/${settings##*/}
    [ -e "$DESTDIR$name" ] || put 0644 "$settings" "$name"
done
