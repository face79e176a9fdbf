# What happens on the machine of boot.sh.
set -eu

say() { printf '%s\n' "$*"; }
fail() {
    say "fail: $*"
    throughline host list || true
    throughline guest list || true
    systemctl --no-pager --full status throughline-agent throughline-agent2 throughline-controller || true
    exit 1
}
soon() {
    what=$1; shift
    for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
    fail "waited a minute in vain: $what"
}
active() { systemctl --quiet is-active "$1"; }
pid() { systemctl show --value -p MainPID "$1"; }
connected() { throughline host get "$1" --output json | grep -q '"connected": *true'; }
running() { throughline guest get web-1 --output json | grep -q '"state": *"RUNNING"'; }
qemu() { pgrep -f 'guest=web-1'; }
gone() { ! qemu; }
move() {
    soon "the guest is reported running" running
    throughline migrate web-1 --to "$1" || fail "the guest does not move to $1"
}

soon "the controller is up" active throughline-controller
throughline host create h1 >/dev/null && throughline host create h2 >/dev/null || fail "the controller does not answer"
for host in h1 h2; do soon "$host is connected" connected $host; done
active throughline-agent && active throughline-agent2 || fail "an agent is connected, and systemd does not know that it is up"
for daemon in agent controller; do
    grep -E '^(Uid|Cap|NoNewPrivs|Seccomp)' "/proc/$(pid throughline-$daemon)/status" | sed "s/^/$daemon /"
done
printf 'controller EnvironOwner:\t%s\n' "$(stat -c %u "/proc/$(pid throughline-controller)/environ")"

throughline network create blue --vni 7001 >/dev/null
throughline guest create web-1 --host h1 --network blue --ip 10.7.0.10 --memory 131064KiB --kernel /run/image/vmlinuz \
    --initrd /run/image/initrd.img --cmdline 'console=ttyS0 quiet panic=-1' >/dev/null || fail "the guest does not start"
move h2
move h1

before=$(qemu)
systemctl restart throughline-agent || fail "the agent does not start again"
soon "the agent is connected again" connected h1
soon "the guest is reported again" running
[ "$(qemu)" = "$before" ] || fail "the guest's QEMU did not outlive a restart of its agent"
systemctl stop throughline-agent
sleep 1
[ "$(qemu)" = "$before" ] || fail "the guest's QEMU did not outlive a stop of its agent"
systemctl start throughline-agent || fail "the agent does not start once more"
soon "the agent is connected once more" connected h1
# Run by an agent that did not start it.
move h2
throughline guest delete web-1 >/dev/null || fail "the guest cannot be deleted"
soon "the guest is gone" gone
