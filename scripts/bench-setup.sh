#!/bin/sh
# Installs what only the bench needs: FRR, to compare with BGP EVPN. Idempotent. The package would start daemons of its own on
# this machine; they are kept from it, then and at the next boot. Run as root.
set -eu

POLICY=/usr/sbin/policy-rc.d

say() { printf 'bench-setup: %s\n' "$*"; }

if [ -x /usr/lib/frr/bgpd ] && [ -x /usr/lib/frr/zebra ]; then
    say "FRR is there"
    exit 0
fi

# Debian's way of saying that nothing is to be started. One that is there already is someone else's, and is obeyed.
if [ ! -e "$POLICY" ]; then
    trap 'rm -f "$POLICY"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
fi
say "installing frr"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -q --no-install-recommends frr >/dev/null 2>&1 || {
    apt-get update -q
    apt-get install -y -q --no-install-recommends frr
}
if [ -d /run/systemd/system ]; then systemctl disable --now frr.service; else update-rc.d frr disable; fi
