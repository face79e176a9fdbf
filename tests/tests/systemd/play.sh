# What happens on the machine of boot.sh.
set -eu
export PATH="/run/programs:$PATH" THROUGHLINE_CONTROLLER=http://127.0.0.1:7700

say() { printf '%s\n' "$*"; }
fail() { say "fail: $*"; systemctl --no-pager --full status throughline-agent throughline-controller || true; exit 1; }
soon() {
    what=$1; shift
    for _ in $(seq 300); do "$@" && return; sleep 0.2; done
    fail "waited a minute in vain: $what"
}

soon "systemd is there" systemctl --quiet is-active here.target
soon "the controller is up" systemctl --quiet is-active throughline-controller
throughline host create h1 --output json >/dev/null || fail "the controller does not answer"
soon "the agent is up" systemctl --quiet is-active throughline-agent
connected() { throughline host get h1 --output json | grep -q '"connected": *true'; }
soon "the agent is connected" connected

say "agent $(systemctl show --value -p MainPID throughline-agent)"
grep -E '^(Cap|NoNewPrivs|Seccomp)' "/proc/$(systemctl show --value -p MainPID throughline-agent)/status" | sed 's/^/agent /'
grep -E '^(Uid|Cap|NoNewPrivs|Seccomp)' "/proc/$(systemctl show --value -p MainPID throughline-controller)/status" | sed 's/^/controller /'

throughline network create blue --vni 7001 --output json >/dev/null
throughline guest create web-1 --host h1 --network blue --ip 10.7.0.10 --memory 131064KiB \
    --kernel /run/image/vmlinuz --initrd /run/image/initrd.img --cmdline 'console=ttyS0 quiet panic=-1' --output json >/dev/null ||
    fail "the guest does not start"
running() { throughline guest get web-1 --output json | grep -q '"state": *"RUNNING"'; }
soon "the guest runs" running
qemu=$(pgrep -f 'guest=web-1')
say "guest $qemu"

systemctl restart throughline-agent || fail "the agent does not start again"
soon "the agent is connected again" connected
soon "the guest is reported again" running
[ "$(pgrep -f 'guest=web-1')" = "$qemu" ] || fail "the guest's QEMU did not outlive a restart of its agent"
systemctl stop throughline-agent
sleep 1
[ "$(pgrep -f 'guest=web-1')" = "$qemu" ] || fail "the guest's QEMU did not outlive a stop of its agent"
systemctl start throughline-agent || fail "the agent does not start again"
soon "the agent is connected once more" connected
throughline guest delete web-1 --output json >/dev/null || fail "the guest cannot be deleted"
gone() { ! pgrep -f 'guest=web-1' >/dev/null; }
soon "the guest is gone" gone
